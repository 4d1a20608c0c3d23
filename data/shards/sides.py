"""Two sides of a folder of shards, training and validation: what belongs together, and on which side it lies.

A side follows from the pictures alone, so a captioned and an encoded folder of the same pictures are divided alike.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass

from data.jobs.errors import ShardError

_SEPARATOR = re.compile(r"[\W_]+")
_ENDING = re.compile(r"(?<=[^/])\.[^./]*$")


@dataclass(frozen=True)
class SplitConfig:
    """Options of the split.

    Args:
        validation: what goes to the validation side: a share below 1 (0.02 is 2 %), or a whole number of samples.
        together: regular expression over the paths of the source files; samples in which its groups (or, without
            groups, what it matches) are the same text stay on one side, too. "(.*)/" keeps folders together.
        seed: another seed draws another validation side.
        max_damage: share of unreadable samples over which a side is not finished.
    """

    validation: float = 0.02
    together: str | None = None
    seed: int = 0
    max_damage: float = 0.05

    def __post_init__(self) -> None:
        if not (0 < self.validation < 1 or (self.validation >= 1 and float(self.validation).is_integer())):
            raise ValueError(
                f"--validation is {self.validation:g}, expected a share between 0 and 1 (0.02 is 2 %), or a whole "
                "number of samples"
            )
        if self.seed < 0:
            raise ValueError(f"--seed is {self.seed}, expected at least 0")
        try:
            re.compile(self.together or "")
        except re.error as error:
            raise ValueError(f"--together is {self.together!r}, which is no regular expression: {error}") from error


@dataclass(frozen=True, slots=True)
class Placed:
    """A sample, where it lies, and what its picture is.

    Args:
        unit: name of its shard.
        row: number of the sample there.
        content: sha256 of its picture, hexadecimal; empty where its KEY.json cannot be read.
        source: path of the file that it came from; empty likewise.
    """

    unit: str
    row: int
    content: str
    source: str


@dataclass(frozen=True)
class Sides:
    """Samples of both sides, in the order of their folder.

    Args:
        train: samples of the training side.
        validation: samples that are held out.
        num_together: number of samples that have others with which they had to stay.
        num_largest: samples of the largest group that had to stay together.
    """

    train: list[Placed]
    validation: list[Placed]
    num_together: int
    num_largest: int


def divide_sides(samples: Sequence[Placed], config: SplitConfig) -> Sides:
    """Put each sample on a side.

    A group of samples that belong together has a number between 0 and 1, made of the seed and of the least of its
    contents. With a share, the groups of lower numbers are the validation side: a picture keeps its side when others
    come or go, or when it lies in another folder. With a number of samples, the groups of the least numbers are, as
    long as they fit in. What cannot be read stays on the training side, which lists it as damaged.

    Raises:
        ShardError: one side would be empty, or `together` is found in no source.
    """
    groups = group(samples, config.together)
    sizes = Counter(groups)
    contents: dict[int, str] = {}
    for sample, number in zip(samples, groups, strict=True):
        if sample.content:
            contents[number] = min(sample.content, contents.get(number, sample.content))
    numbers = {number: _number(config.seed, content) for number, content in contents.items()}
    if config.validation < 1:
        held_out = {number for number, value in numbers.items() if value < config.validation}
    else:
        held_out = _least(numbers, sizes, int(config.validation))
    found = Sides(
        train=[sample for sample, n in zip(samples, groups, strict=True) if n not in held_out],
        validation=[sample for sample, n in zip(samples, groups, strict=True) if n in held_out],
        num_together=sum(size for size in sizes.values() if size > 1),
        num_largest=max(sizes.values()),
    )
    for name, side in (("training", found.train), ("validation", found.validation)):
        if not side:
            stay = f", {found.num_largest} of which have to stay together," if found.num_largest > 1 else ""
            raise ShardError(
                f"--validation {config.validation:g} of {len(samples)} samples{stay} leaves the {name} side empty: "
                "give another share or number, or another --seed"
            )
    return found


def group(samples: Sequence[Placed], together: str | None = None) -> list[int]:
    """The group of each sample, by the number of its first one.

    Together are samples of equal content, those of one source, as the pairs of one caption are, those of sources that
    belong to one name (`base_path`), and those in whose sources `together` finds the same text.

    Raises:
        ShardError: `together` is found in no source.
    """
    names = {_name(sample.source) for sample in samples if sample.content}
    matched = _matched(samples, together) if together is not None else {}
    first: dict[tuple[str, ...], int] = {}
    parents = list(range(len(samples)))
    for number, sample in enumerate(samples):
        for label in [*_labels(sample, names), *matched.get(number, [])]:
            one, other = (_root(parents, n) for n in (first.setdefault(label, number), number))
            parents[max(one, other)] = min(one, other)
    return [_root(parents, number) for number in range(len(samples))]


def _matched(samples: Sequence[Placed], together: str) -> dict[int, list[tuple[str, ...]]]:
    """What a pattern finds in each source where it is found."""
    pattern = re.compile(together)
    matches = {number: pattern.search(sample.source) for number, sample in enumerate(samples) if sample.content}
    found = {n: [("together", *(match.groups("") or [match[0]]))] for n, match in matches.items() if match}
    if not found:
        raise ShardError(
            f"--together {together!r} is found in none of the sources, such as "
            f"{next((sample.source for sample in samples if sample.content), 'none that can be read')}"
        )
    return found


def base_path(name: str, names: Set[str]) -> str:
    """The path to which a file's belongs: of `x/a-1`, `x/a (2)` or `x/a_edited` it is `x/a`, if there is such a file.

    The shortest beginning of `name`, in its folder, that is one of `names` and ends before a separator; else `name`
    itself. So running numbers (`IMG_0001`, `IMG_0002`) stay apart.

    Args:
        name: path without its ending.
        names: paths of all files without their endings.
    """
    folder, slash, stem = name.rpartition("/")
    ends = (found.start() for found in _SEPARATOR.finditer(stem) if found.start())
    return next((path for end in ends if (path := folder + slash + stem[:end]) in names), name)


def _labels(sample: Placed, names: Set[str]) -> list[tuple[str, ...]]:
    """What a sample shares with others of its group; nothing where it cannot be read."""
    if not sample.content:
        return []
    return [("content", sample.content), ("name", base_path(_name(sample.source), names))]


def _name(source: str) -> str:
    """The path of a source without its ending."""
    return _ENDING.sub("", source)


def _root(parents: list[int], number: int) -> int:
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = parents[number]
    return number


def _number(seed: int, content: str) -> float:
    """A number from 0 to 1 that a group's content draws."""
    return int(hashlib.sha256(f"{seed} {content}".encode()).hexdigest()[:16], 16) / 2**64


def _least(numbers: dict[int, float], sizes: Counter[int], count: int) -> set[int]:
    """The groups of the least numbers, as many as fit into `count` samples."""
    chosen: set[int] = set()
    for group_number in sorted(numbers, key=numbers.__getitem__):
        if sizes[group_number] <= count:
            chosen.add(group_number)
            count -= sizes[group_number]
    return chosen
