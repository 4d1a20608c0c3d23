"""The first half of a PIE-Bench evaluation: every editor on every case, one picture at a time, kept on disk.

EDITS/ROW/KEY.png is the edit and KEY.json, written last, what it cost; KEY.mask.png and KEY.reconstruction.png are
there where the editor has such. Any number of processes may work in one folder, die and come back.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.jobs.files import file_digest
from data.jobs.kept import KeptFolder
from data.pictures.images import decode as decode_picture
from eval.editors.editor import Editor, EditRequest, InvertedImages, MaskingEditor, ReconstructingEditor, measured
from eval.editors.few_steps import decode_latents
from eval.editors.inversions import PictureInversions
from eval.pie.cases import PieCase
from eval.pie.config import MaskMode, Prompts
from eval.pie.former_settings import take_up
from eval.scene_edits.result import pixels
from models.backbone import Backbone
from models.local_blend import BlendWords
from models.pictures import from_picture

PICTURES = (".png", ".mask.png", ".reconstruction.png")
"""Endings of the pictures of one edit: itself, the mask that it obeyed, the editor's reconstruction of the source."""


@dataclass(frozen=True)
class PieRow:
    """One line of the tables: an editor in one setting.

    Args:
        name: name of the row, and of its folder.
        editor: None where the pictures were made elsewhere.
        needs_prompts: whether the editor reads prompts at all, and not the instruction alone.
        steps: number of the sampler's steps, where there is one.
        backbone: model that decodes the editor's reconstructions, or None if they are not wanted.
        reference: no method, but what methods are read against.
        default: the row is compared unless the command names others.
        settings: all that decides its pictures, as JSON.
        note: sentence on its setting, for the page.
        title: words on the row; None for those of its name.
        seconds: seconds an image, inversion and edit, that someone else gives of pictures made elsewhere.
    """

    name: str
    editor: Editor | None
    prompts: Prompts = "short"
    mask: MaskMode = "none"
    steps: int | None = None
    needs_prompts: bool = True
    backbone: Backbone | None = None
    reference: bool = False
    default: bool = True
    settings: Mapping[str, Any] | None = None
    note: str | None = None
    title: str | None = None
    seconds: tuple[float | None, float | None] = (None, None)


PromptPairs = Mapping[str, tuple[str, str]]
"""Source and target prompt by key."""


def edit_all(
    row: PieRow,
    cases: Sequence[PieCase],
    prompts: PromptPairs,
    folder: Path,
    seed: int,
    device: torch.device,
    others: Sequence[PieRow] = (),
) -> None:
    """Edit all `cases` into folder/ROW, but those that are done, and beside each of these those of `others`.

    A case that the editor refuses (ValueError) is kept as failed, with the reason, and tried again by the next command.
    An edit whose picture, prompts, instruction, words or mask have changed since is made anew.

    Args:
        prompts: prompts of the rows' setting; a case without a pair is failed.
        seed: seed of each picture's randomness.
        others: rows with the same prompts that share the row's inversions; they are not complete after this where the
            row was there already.

    Raises:
        ValueError: the folder holds the row with other settings, or the editor refuses every case.
    """
    edit_some(row, cases, prompts, folder, seed, device, others)
    found = [read_record(folder / row.name, case.key) for case in cases]
    if all("error" in record for record in found):
        raise ValueError(f"{row.name} failed on every case: {found[0]['error']}")


@torch.no_grad()
def edit_some(
    row: PieRow,
    cases: Sequence[PieCase],
    prompts: PromptPairs,
    folder: Path,
    seed: int,
    device: torch.device,
    others: Sequence[PieRow] = (),
) -> None:
    """`edit_all` that lets all of `cases` fail, as some of a benchmark may."""
    by_key = {case.key: case for case in cases}
    rows = [row, *others]
    kept = {one.name: _kept(one, cases, prompts, folder, seed) for one in rows}
    cold = {one.name for one in rows}
    for key in kept[row.name].missing(dict.fromkeys(by_key, 1), row.name, "edit"):
        inversions = PictureInversions()
        # The row's own record comes last: whoever sees it need not wait for the others.
        for one in (*others, row):
            if one is not row and kept[one.name].read(key) is not None:
                continue
            record, pictures = _edit_case(one, by_key[key], prompts.get(key), seed, device, inversions)
            digest = _digest(by_key[key], prompts.get(key), one.mask)
            kept[one.name].keep(key, record | {"warm": one.name not in cold, "digest": digest}, pictures)
            cold.discard(one.name)


def _kept(row: PieRow, cases: Sequence[PieCase], prompts: PromptPairs, folder: Path, seed: int) -> KeptFolder:
    """The row's folder without what is failed or of another case."""
    folder = folder / row.name
    settings = {"prompts": row.prompts, "mask": row.mask, "seed": seed, **(row.settings or {})}
    take_up(folder, settings)
    kept = KeptFolder(folder, settings)
    _forget(kept, {case.key: _digest(case, prompts.get(case.key), row.mask) for case in cases})
    return kept


def _forget(kept: KeptFolder, digests: Mapping[str, str]) -> None:
    """Remove what is there of failed cases, and of those that were another case by `digests` (by key)."""
    for key, digest in digests.items():
        record = kept.read(key)
        if record is not None and ("error" in record or record.get("digest") != digest):
            kept.forget(key, *PICTURES)


def _digest(case: PieCase, prompts: tuple[str, str] | None, mask: MaskMode) -> str:
    """Digest of all of a case that an edit may depend on."""
    files = [file_digest(case.image), None if case.truth is None else file_digest(case.truth)]
    place = hashlib.sha256(case.mask.tobytes()).hexdigest() if mask == "given" else None
    words = json.dumps([files, prompts, case.instruction, case.blended, place])
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def read_record(folder: Path, key: str) -> dict[str, Any]:
    """Read the record of one edit, folder/KEY.json: `costs`, `mask`, `source_prompt`, `target_prompt`, or `error`."""
    record: dict[str, Any] = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
    return record


def read_pixels(path: Path) -> np.ndarray:
    """A picture as uint8 [H, W, 3]."""
    return np.asarray(decode_picture(path.read_bytes()))


def _edit_case(
    row: PieRow,
    case: PieCase,
    prompts: tuple[str, str] | None,
    seed: int,
    device: torch.device,
    inversions: PictureInversions,
) -> tuple[dict[str, Any], dict[str, Callable[[Path], object]]]:
    """The record of one case, and by ending what writes its pictures."""
    assert row.editor is not None, "pictures that were made elsewhere are not edited"
    image = _tensor(case.image).to(device)
    try:
        if prompts is None:
            raise ValueError(f"this case has no {row.prompts} prompts")
        source, target = prompts
        request = EditRequest(
            (target,),
            instruction=(case.instruction,),
            mask=torch.from_numpy(case.mask)[None, None].float().to(device) if row.mask == "given" else None,
            words=(BlendWords((case.blended[0],), (case.blended[1],)) if case.blended else None,),
            seed=seed,
            truth=None if case.truth is None else _tensor(case.truth).to(device),
        )
        meter = measured(row.editor)
        inversion, invert_cost = inversions.of(row.editor, image, source)
        meter.fit_target(inversion, request)
        edited = meter.edit(inversion, request)
        if edited.shape[-2:] != image.shape[-2:]:
            sizes = ["x".join(map(str, shape[:-3:-1])) for shape in (edited.shape, image.shape)]
            raise ValueError(f"the edit has {sizes[0]} px, its picture {sizes[1]}")
    except ValueError as error:
        return {"error": str(error)}, {}
    pictures = {".png": pixels(edited)[0], **_extras(row, inversion)}
    edit_cost = meter.fit_costs[-1] + meter.edit_costs[-1]
    record = {
        "costs": {"invert": asdict(invert_cost), "edit": asdict(edit_cost)},
        "mask": row.mask,
        "source_prompt": source,
        "target_prompt": target,
    }
    return record, {end: partial(Image.fromarray(picture).save, format="PNG") for end, picture in pictures.items()}


def _extras(row: PieRow, inversion: InvertedImages) -> dict[str, np.ndarray]:
    """The mask that the edit obeyed and the reconstruction, where the editor has such; not part of its costs."""
    found = {}
    if isinstance(row.editor, MaskingEditor) and row.editor.last_mask is not None:
        # A mask has values in [0, 1]; by way of to_uint8, which takes [-1, 1], some levels would round to another one.
        found[".mask.png"] = (row.editor.last_mask[0, 0].float().clamp(0, 1) * 255).round().byte().cpu().numpy()
    if row.backbone is not None and isinstance(row.editor, ReconstructingEditor):
        found[".reconstruction.png"] = pixels(decode_latents(row.backbone, row.editor.reconstruct(inversion)[-1]))[0]
    return found


def _tensor(path: Path) -> Tensor:
    """A picture as an image [1, 3, H, W] in [-1, 1]."""
    return from_picture(decode_picture(path.read_bytes())).contiguous()[None]
