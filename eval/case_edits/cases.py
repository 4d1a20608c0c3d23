"""Cases to edit, from a folder: PIE-Bench's, or captioned photographs with what is to become of them.

A photograph has its caption in a .txt beside it or in metadata.jsonl (.csv, .parquet), whose rows may also have
`target`, a description of the edited picture, or `instruction`, the edit as an order (each may be a list); `mask`, the
file of a picture whose white may change; and `kind`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data.captioning.maker import CaptionMaker
from data.captioning.tasks import rewrite
from data.jobs.kept import KeptFolder, digest
from data.pictures.files import list_images
from data.pictures.images import DamagedImage, decode
from data.pictures.source import DamagedInput
from data.world.pie_layout import MAPPING
from eval.benchmarks.entries import TYPE_NAMES
from eval.pie.cases import PieCase, read_pie_bench
from eval.pie.edits import read_pixels
from eval.scene_edits.edit_set import EditSet, PictureEdit
from models.pictures import from_pictures
from models.upright import fitted

Levels = NDArray[np.uint8]
"""A picture, [H, W, 3]."""

PHOTOGRAPH = "photograph"
"""Kind of a photograph's edit where nothing else is said."""


@dataclass(frozen=True)
class PictureCase:
    """A picture and what is to become of it.

    Args:
        key: Name in tables.
        kind: Kind of the edit, in words.
        picture: The picture.
        prompt: Description of it.
        target: Description of the edited picture; empty where it is to be written by the instruction.
        instruction: The edit as an order, or empty.
        mask: The places that may change, bool [H, W]; None where nobody says.
        truth: The true edit, or None.
        long_prompts: Detailed descriptions of both, or None.
    """

    key: str
    kind: str
    picture: Levels
    prompt: str
    target: str
    instruction: str = ""
    mask: NDArray[np.bool_] | None = None
    truth: Levels | None = None
    long_prompts: tuple[str, str] | None = None


@dataclass(frozen=True)
class FoundCases:
    """The cases of a folder, the kinds taking turns, and the reasons why others cannot be used, by key."""

    cases: tuple[PictureCase, ...]
    left_out: dict[str, str]


def read_cases(
    data: Path, side: int, num: int, targets: Sequence[str] = (), instructions: Sequence[str] = ()
) -> FoundCases:
    """Read at most `num` cases of each kind.

    Args:
        data: Folder of PIE-Bench, or of captioned photographs.
        side: Side in pixels of the squares on which the model works. Photographs are cropped at the centre; cases of
            PIE-Bench that are no such squares are left out.
        targets: Descriptions of edited photographs, for those whose row has no edit of its own.
        instructions: Orders, likewise.

    Raises:
        ValueError: No case can be used, or targets are given for PIE-Bench, which has its own.
    """
    if is_pie_bench(data):
        if targets or instructions:
            raise ValueError(
                f"--target and --instruction are for photographs; {data} is a PIE-Bench folder with its own"
            )
        return _pie_cases(data, side, num)
    return _photograph_cases(data, side, num, targets, instructions)


def is_pie_bench(data: Path) -> bool:
    """Whether a folder is one of PIE-Bench."""
    return (data / MAPPING).is_file()


def _pie_cases(data: Path, side: int, num: int) -> FoundCases:
    every, bad = read_pie_bench(data)
    left_out = {note.key: note.reason for note in bad if note.left_out}
    squares = [case for case in every if case.mask.shape == (side, side)]
    for case in every:
        if case.mask.shape != (side, side):
            height, width = case.mask.shape
            left_out[case.key] = f"the picture has {width}x{height} px; this command takes squares of {side} px"
    return FoundCases(tuple(_pie_case(case) for case in _turns(squares, [c.type_id for c in squares], num)), left_out)


def _pie_case(case: PieCase) -> PictureCase:
    return PictureCase(
        case.key,
        TYPE_NAMES[case.type_id],
        read_pixels(case.image),
        case.source_prompt,
        case.target_prompt,
        case.instruction,
        case.mask,
        None if case.truth is None else read_pixels(case.truth),
        case.long_prompts,
    )


def _turns(items: Sequence[Any], kinds: Sequence[str], num: int) -> list[Any]:
    """Choose at most `num` items of each kind: the first of every kind, then the second ones, and so on."""
    seen: dict[str, int] = {}
    order = []
    for place, kind in enumerate(kinds):
        order.append((seen.get(kind, 0), kind, place))
        seen[kind] = seen.get(kind, 0) + 1
    return [items[place] for turn, _, place in sorted(order) if turn < num]


def _photograph_cases(
    data: Path, side: int, num: int, targets: Sequence[str], instructions: Sequence[str]
) -> FoundCases:
    folder = list_images(data)
    found: list[PictureCase] = []
    left_out: dict[str, str] = {}
    masks: set[str] = set()
    for number, name in enumerate(folder.names):
        try:
            entry = folder.read(number)
            masks.add(str(entry.columns.get("mask")))
            caption = " ".join((entry.caption or "").split())
            if not caption:
                raise ValueError("no caption (.txt beside it, or a row of metadata.jsonl)")
            picture = decode(entry.content)
            begun = PictureCase(
                name,
                str(entry.columns.get("kind") or PHOTOGRAPH),
                _square(picture, side),
                caption,
                "",
                mask=_mask(data, entry.columns.get("mask"), picture, side),
            )
            own = _edits_of(begun, _texts(entry.columns, "target"), _texts(entry.columns, "instruction"))
            edits = own or _edits_of(begun, targets, instructions)
            if not edits:
                raise ValueError(
                    "no target and no instruction: give --target or --instruction, or columns of that name"
                )
            found += edits
        except (DamagedInput, DamagedImage, ValueError) as error:
            left_out[name] = str(error)
    left_out = {name: reason for name, reason in left_out.items() if name not in masks}
    if not found:
        reason = next(iter(left_out.values()), "there is no picture")
        raise ValueError(f"no photograph of {data} can be used; the first reason: {reason}")
    return FoundCases(tuple(_turns(found, [case.kind for case in found], num)), left_out)


def _edits_of(begun: PictureCase, targets: Sequence[str], instructions: Sequence[str]) -> list[PictureCase]:
    """A case for each target and each instruction."""
    made = [replace(begun, target=text) for text in targets] + [
        replace(begun, instruction=text) for text in instructions
    ]
    if len(made) < 2:
        return made
    return [replace(case, key=f"{case.key}#{number}") for number, case in enumerate(made, start=1)]


def _texts(columns: dict[str, Any], name: str) -> list[str]:
    """The texts of a column, which has one or a list of them, or nothing."""
    value = columns.get(name) or []
    return [str(text) for text in (value if isinstance(value, list) else [value])]


def _square(picture: Image.Image, side: int) -> Levels:
    return np.asarray(fitted(picture, (side, side))[0])


def _mask(data: Path, name: Any, picture: Image.Image, side: int) -> NDArray[np.bool_] | None:
    """The mask of a row, cut as its picture is. Raises ValueError where it cannot be used."""
    if not name:
        return None
    try:
        drawn = decode((data / str(name)).read_bytes())
    except (OSError, DamagedImage) as error:
        raise ValueError(f"its mask {name} cannot be read ({error})") from error
    if drawn.size != picture.size:
        sizes = ["x".join(map(str, found.size)) for found in (drawn, picture)]
        raise ValueError(f"its mask {name} has {sizes[0]} px, the photograph {sizes[1]}")
    return _square(drawn, side)[..., 0] > 127


def completed_cases(cases: Sequence[PictureCase], maker: CaptionMaker | None, kept: KeptFolder) -> FoundCases:
    """The cases with a target, where need be the description as a captioner changes it by the instruction.

    Args:
        maker: The captioner, or None.
        kept: Folder where its texts are kept.

    Raises:
        ValueError: No case has a target.
    """
    open_ones = [case for case in cases if not case.target]
    written: dict[str, str] = {}
    if open_ones and maker is not None:
        pairs = [[case.prompt, case.instruction] for case in open_ones]
        piece = f"targets-{digest(pairs, maker.identity())}"
        for _ in kept.missing({piece: len(open_ones)}, "targets by the instructions", "caption"):
            kept.keep(piece, list(rewrite(maker.captioner(), *map(list, zip(*pairs, strict=True)))))
        written = {case.key: text for case, text in zip(open_ones, kept.read(piece), strict=True) if text}
    ready = tuple(replace(case, target=case.target or written.get(case.key, "")) for case in cases)
    reason = "the captioner wrote no target" if maker else "its instruction needs --captioner, which makes it a target"
    left_out = {case.key: reason for case in ready if not case.target}
    if len(left_out) == len(ready):
        raise ValueError(f"no case can be edited: {reason}")
    return FoundCases(tuple(case for case in ready if case.target), left_out)


def case_edits(cases: Sequence[PictureCase], device: torch.device | str, detailed: bool = False) -> EditSet:
    """Cases of one size as a set of edits.

    Args:
        detailed: Take the detailed descriptions, which all have to have.
    """
    sources = from_pictures([case.picture for case in cases])
    if detailed:
        prompts = [case.long_prompts for case in cases if case.long_prompts is not None]
    else:
        prompts = [(case.prompt, case.target) for case in cases]
    assert len(prompts) == len(cases), "every case has the prompts that are asked for"
    return EditSet(
        tuple(PictureEdit(case.key, case.kind, case.instruction) for case in cases),
        sources.to(device),
        _truths(cases, sources).to(device),
        torch.from_numpy(np.stack(list(_masks(cases))))[:, None].to(device),
        tuple(source for source, _ in prompts),
        tuple(target for _, target in prompts),
    )


def _truths(cases: Sequence[PictureCase], sources: torch.Tensor) -> torch.Tensor:
    """The true edits; nan, without memory of its own, where one is not known."""
    truths = [case.truth for case in cases if case.truth is not None]
    if len(truths) == len(cases):
        return from_pictures(truths)
    return torch.full_like(sources[:1, :1, :1, :1], torch.nan).expand_as(sources)


def _masks(cases: Sequence[PictureCase]) -> Iterator[NDArray[np.bool_]]:
    """The masks; all places where there is none."""
    for case in cases:
        yield np.ones(case.picture.shape[:2], dtype=bool) if case.mask is None else case.mask
