"""Cases as the subjects of eval.ablation: their prompts of both lengths, a second change, and what they lack."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from data.captioning.maker import CaptionMaker
from data.jobs.kept import KeptFolder
from eval.ablations.composed import composed_with
from eval.ablations.prompts import GIVEN
from eval.ablations.subjects import Subjects
from eval.case_edits.cases import FoundCases, PictureCase, case_edits, is_pie_bench, read_cases, with_targets
from eval.case_edits.judge import WITHOUT_TRUTH, CaseJudge
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.written_captions import kept_captions

_LEFT_OUT = "left out"
"""Words of eval.metrics.networks where a network is not there."""


def case_subjects(
    data: Path,
    side: int,
    num: int,
    targets: Sequence[str],
    instructions: Sequence[str],
    second: str,
    judge: CaseJudge,
    maker: CaptionMaker | None,
    kept: KeptFolder,
    device: torch.device,
) -> Subjects:
    """At most `num` cases of each kind; the options are those of eval.ablation.

    Parts run with the detailed prompts where all cases have such: the folder's own, or for PIE-Bench those that a
    captioner writes of the pictures and changes by the instructions.

    Raises:
        ValueError: No case can be used.
    """
    found, refused = usable_cases(data, side, num, targets, instructions, maker, kept)
    lengths = _lengths(found.cases, data, maker, kept, device)
    edits = list(lengths.values())[-1]
    left_out = {}
    if not all(case.instruction for case in found.cases):
        left_out["instructions"] = "not every picture has an instruction"
    elif maker is None:
        left_out["instructions"] = "needs a captioner (--captioner), which describes pictures and changes descriptions"
    elif "detailed" in lengths and not all(case.long_prompts for case in found.cases):
        left_out["instructions"] = "the detailed prompts are the captioner's: the part prompts compares them"
    return Subjects(
        edits,
        judge,
        lengths,
        composed_with(edits, second),
        left_out,
        tuple(lacking(edits, judge, refused)),
        _most_missing(found.cases, refused),
        {"data": data, "cases": len(edits), "left_out": refused, "second": second, "metrics": judge.models.about},
    )


def usable_cases(
    data: Path,
    side: int,
    num: int,
    targets: Sequence[str],
    instructions: Sequence[str],
    maker: CaptionMaker | None,
    kept: KeptFolder,
) -> tuple[FoundCases, dict[str, str]]:
    """The cases of a folder with their targets, and the reasons why others cannot be used, by key."""
    found = read_cases(data, side, num, targets, instructions)
    ready = with_targets(found.cases, maker, kept)
    return ready, {**found.left_out, **ready.left_out}


def lacking(edits: EditSet, judge: CaseJudge, refused: Mapping[str, str]) -> list[str]:
    """Sentences on what is not measured of these cases, and on those that are left out."""
    sentences = [WITHOUT_TRUTH]
    if not edits.has_truths:
        sentences.append("PSNR inside the mask is left out: no true edits are given.")
    if without := int((~edits.bounded).sum()):
        sentences.append(
            f"What is kept outside of the mask is measured of {len(edits) - without} of {len(edits)} edits: the others "
            "have no mask, or may change the whole picture."
        )
    sentences += [f"{words}." for words in judge.models.about.values() if _LEFT_OUT in words]
    if refused:
        key, reason = next(iter(refused.items()))
        sentences.append(f"{len(refused)} cases are left out. The first: {key}, {reason}.")
    return sentences


def _most_missing(cases: Sequence[PictureCase], refused: Mapping[str, str]) -> str | None:
    total = len(cases) + len(refused)
    return f"{len(refused)} of {total} cases" if 2 * len(refused) > total else None


def _lengths(
    cases: Sequence[PictureCase], data: Path, maker: CaptionMaker | None, kept: KeptFolder, device: torch.device
) -> dict[str, EditSet]:
    """The edits by the length of their prompts, those with which parts run the last."""
    given = case_edits(cases, device)
    if all(case.long_prompts is not None for case in cases):
        return {"short": given, "detailed": case_edits(cases, device, detailed=True)}
    if maker is not None and is_pie_bench(data):
        return {"short": given, "detailed": kept_captions(given, maker, kept, "detailed prompts")[0]}
    return {GIVEN: given}
