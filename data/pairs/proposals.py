"""Triplets of instruction, source caption and target caption: proposed by an engine, or as a list has them."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.captioning.checks import is_refusal, plain_text
from data.captioning.interface import Captioner, NoAnswer
from data.captioning.tasks import propose
from data.captioning.tokens import TokenLimits
from data.jobs.errors import ShardError
from data.shards.sample import key_of
from data.shards.shard import Drop, read_manifest

_COLUMNS = {
    "caption": ("caption", "text", "input"),
    "instruction": ("instruction", "edit"),
    "target": ("target", "output"),
}
"""Names of a list's columns; the last are those of InstructPix2Pix's human-written triplets."""

_THOUGHTS = re.compile(r"^.*</think>", re.DOTALL)
_ANSWER = re.compile(
    r"^[\W\d]*instruction\W*:(?P<instruction>.+?)(?:\n|\s{2,})[\W\d]*result\W*:(?P<target>.+)",
    re.IGNORECASE | re.DOTALL | re.MULTILINE,
)
_DETAIL = 200


@dataclass(frozen=True)
class Written:
    """A caption, and where a list has them an instruction and its result.

    Args:
        name: distinct, of the sample or the line.
        damage: why the caption cannot be read, "" where it can.
    """

    name: str
    caption: str
    instruction: str = ""
    target: str = ""
    damage: str = ""


@dataclass(frozen=True)
class Triplet:
    """An edit in words.

    Args:
        key: name by which samples and their noise are named.
        name: name of the caption.
        source, target: captions before and after.
    """

    key: str
    name: str
    source: str
    target: str
    instruction: str


def read_captions(path: str | Path, with_edits: bool, count: int | None = None) -> list[Written]:
    """The captions of a folder of data.caption or of a .jsonl list, sorted by name. No picture is read.

    Args:
        with_edits: take instructions and results from the list too.
        count: take the first so many; None takes all.

    Raises:
        ShardError: for a path that is neither, a line that is no caption, or captions without edits where those are
            needed.
    """
    path = Path(path)
    if path.suffix == ".jsonl" and path.is_file():
        found = _of_list(path, with_edits)
    elif with_edits:
        raise ShardError(
            f"--engine existing takes edits that are written: INPUT {path} has to be a .jsonl list whose lines hold "
            '"caption", "instruction" and "target"; for captions alone give --engine transformers or server'
        )
    elif path.is_dir():
        found = _of_shards(path, count)
    else:
        raise ShardError(f"INPUT {path} is not a folder of shards and not a list that ends in .jsonl")
    if not found:
        raise ShardError(f"INPUT {path} holds no captions")
    return sorted(found, key=lambda written: written.name)[:count]


def _of_list(path: Path, with_edits: bool) -> list[Written]:
    found = []
    needed = list(_COLUMNS) if with_edits else ["caption"]
    lines = path.read_text("utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            columns: Any = json.loads(line)
        except ValueError as error:
            raise ShardError(f"line {number} of {path} is no JSON: {error}") from error
        values = columns if isinstance(columns, dict) else {}
        texts = {name: next((values[column] for column in _COLUMNS[name] if column in values), "") for name in needed}
        wrong = [name for name, text in texts.items() if not isinstance(text, str) or not text.strip()]
        if wrong:
            raise ShardError(f"line {number} of {path} has no {', '.join(wrong)} (expected text under those names)")
        found.append(Written(f"{number:09d}", **{name: " ".join(text.split()) for name, text in texts.items()}))
    return found


def _of_shards(folder: Path, count: int | None) -> list[Written]:
    if read_manifest(folder)["stage"] == "edit_pairs":
        raise ShardError(
            f"{folder} holds edits already, whose captions are instructions; give a folder of data.caption"
        )
    from data.shards.dataset import ShardDataset, UnreadableSample  # torch takes seconds

    dataset = ShardDataset(folder, ("caption",))
    keys = [dataset.key(number) for number in range(len(dataset))]
    found = []
    for number in sorted(range(len(keys)), key=keys.__getitem__)[:count]:
        try:
            found.append(Written(keys[number], dataset[number]["caption"]))
        except UnreadableSample as error:
            found.append(Written(keys[number], "", damage=str(error)))
    return found


def make_triplets(
    written: Sequence[Written], captioner: Captioner | None, prompt: str, limits: TokenLimits
) -> list[Triplet | Drop]:
    """One triplet a caption, or why there is none.

    Args:
        captioner: proposes the edits; None takes those that are written.
        prompt: see `data.captioning.tasks.propose`.
        limits: tokens of the backbone, which has to read both captions to their ends.

    Raises:
        CaptionerError: when no request can be answered.
    """
    found: list[Triplet | Drop] = [_checked(one, (one.instruction, one.target), limits) for one in written]
    if captioner is not None:
        asked = {row: one for row, one in enumerate(written) if not one.damage and limits.fits(one.caption)}
        answers = propose(captioner, [one.caption for one in asked.values()], prompt) if asked else []
        for (row, one), answer in zip(asked.items(), answers, strict=True):
            found[row] = _checked(one, read_answer(one.name, answer), limits)
    return found


def read_answer(name: str, answer: str) -> tuple[str, str] | Drop:
    """The instruction and the result in an answer of two lines, `Instruction: ...` and `Result: ...`."""
    if isinstance(answer, NoAnswer):
        return Drop(name, f"proposal: {answer.reason}", "policy", answer.detail)
    if is_refusal(plain_text(answer)):
        return Drop(name, "proposal: refusal", "policy", answer[:_DETAIL])
    match = _ANSWER.search(_THOUGHTS.sub("", answer))
    texts = [plain_text(match[group].strip().split("\n")[0]) for group in ("instruction", "target")] if match else []
    if not all(texts) or not texts:
        return Drop(name, "proposal: unreadable", "policy", answer[:_DETAIL])
    return texts[0], texts[1]


def _checked(one: Written, edit: tuple[str, str] | Drop, limits: TokenLimits) -> Triplet | Drop:
    if one.damage:
        return Drop(one.name, one.damage, "damage")
    if isinstance(edit, Drop):
        return edit
    instruction, target = edit
    if long := [text for text in (one.caption, target, instruction) if not limits.fits(text)]:
        return Drop(one.name, "more than the backbone reads", "policy", long[0])
    if target.casefold() == one.caption.casefold():
        return Drop(one.name, "proposal: no change", "policy", instruction)
    return Triplet(key_of(one.name), one.name, one.caption, target, instruction)
