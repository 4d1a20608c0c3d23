"""Cases as the subjects of eval.ablation: their prompts of both lengths, a second change, and what they lack."""

from collections.abc import Mapping, Sequence

import torch

from eval.ablations.composed import composed_with
from eval.ablations.prompts import GIVEN
from eval.ablations.subjects import Subjects
from eval.case_edits.cases import PictureCase, case_edits, is_pie_bench
from eval.case_edits.judge import WITHOUT_TRUTH, CaseJudge
from eval.case_edits.wanted import Wanted, usable_cases
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.written_captions import kept_captions

_OF_SCENES = ("disentangled", "one_step", "renoise", "reweighting")

_LEFT_OUT = "left out"
"""Words of eval.metrics.networks where a network is not there."""


def case_subjects(wanted: Wanted, second: str, judge: CaseJudge, device: torch.device) -> Subjects:
    """The cases that are wanted, with a second change that is said by words.

    Parts run with the detailed prompts where all cases have such: the folder's own, or for PIE-Bench those that a
    captioner writes of the pictures and changes by the instructions.

    Raises:
        ValueError: No case can be used.
    """
    found, refused = usable_cases(wanted)
    lengths = _lengths(found.cases, wanted, device)
    edits = list(lengths.values())[-1]
    left_out = dict.fromkeys(_OF_SCENES, "is judged by the attributes and the truth of scenes")
    if not all(case.instruction for case in found.cases):
        left_out["instructions"] = "not every picture has an instruction"
    elif wanted.maker is None:
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
        most_missing(found.cases, refused),
        {
            "data": wanted.data,
            "cases": len(edits),
            "left_out": refused,
            "second": second,
            "metrics": judge.models.about,
        },
    )


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


def most_missing(cases: Sequence[PictureCase], refused: Mapping[str, str]) -> str | None:
    """Words on the cases that are left out, where these are more than the others."""
    total = len(cases) + len(refused)
    return f"{len(refused)} of {total} cases" if 2 * len(refused) > total else None


def _lengths(cases: Sequence[PictureCase], wanted: Wanted, device: torch.device) -> dict[str, EditSet]:
    """The edits by the length of their prompts, those with which parts run the last."""
    given = case_edits(cases, device)
    if all(case.long_prompts is not None for case in cases):
        return {"short": given, "detailed": case_edits(cases, device, detailed=True)}
    if wanted.maker is not None and is_pie_bench(wanted.data):
        written, _ = kept_captions(given, wanted.maker, wanted.kept, "detailed prompts")
        return {"short": given, "detailed": written}
    return {GIVEN: given}
