"""Ablation: short against detailed prompts, with attention frozen in none to all of the steps."""

from dataclasses import replace

from data.captioning.maker import CaptionMaker
from eval.ablations.bench import Bench, Part, Setting, above, difference, edit_strips, strip_columns
from eval.ablations.editors import FrozenAttention
from eval.claims.turboedit import Comparison
from eval.editors.turboedit import TurboEdit
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.written_captions import write_captions

SAID_BRIEFLY = ("change_object", "add_object", "delete_object", "change_colour", "change_background")
"""Kinds of edits that a short caption says: it has an object's colour and shape, and the background."""

_SHOWN = (0, 1, 3, 4)
_SHOWN_INSTRUCTIONS = (0, 3, 4, 5, 7)


def ablate_prompts(bench: Bench) -> Part:
    """Edits with short and with detailed prompts, by the number of first steps whose attention is the source's."""
    edits, references = bench.of_kinds(SAID_BRIEFLY)
    found: dict[tuple[str, int], Setting] = {}
    for length, given in (("short", with_short_prompts(edits)), ("detailed", edits)):
        editor = FrozenAttention(bench.pipeline, name=f"{length} prompts")
        trial = bench.run(editor, given, references, editor.counts)
        for strength in editor.counts:
            steps = round(strength)
            name = f"{length}, {f'{steps} frozen' if steps else 'none frozen'}"
            found[length, steps] = bench.setting(name, trial, strength)
    return Part(
        name="prompts",
        title="Short and detailed prompts, and frozen attention",
        words=(
            f"Edits that a short caption can say ({', '.join(kind.replace('_', ' ') for kind in SAID_BRIEFLY)}), "
            "with the scene's short caption or its detailed one for both inversion and edit, and with the source's "
            "attention kept in the first steps (Prompt-to-Prompt). CLIP compares with the detailed caption throughout."
        ),
        measures=("changed", "kept", "psnr_outside", "psnr_inside", "clip", "structure"),
        settings=tuple(found.values()),
        edits=edits.edits,
        evidence=_evidence(found),
        columns=strip_columns(list(found.values())),
        strips=edit_strips(edits, _SHOWN, list(found.values())),
    )


def with_short_prompts(edits: EditSet) -> EditSet:
    """`edits` with short captions of source and target."""
    captions = [edit.captions(long=False) for edit in edits.edits]
    sources, targets = zip(*captions, strict=True)
    return replace(edits, source_prompts=sources, target_prompts=targets)


def _evidence(found: dict[tuple[str, int], Setting]) -> dict[str, list[Comparison]]:
    every = max(steps for _, steps in found)
    short, detailed = found["short", 0], found["detailed", 0]
    frozen = found["short", 1]
    return {
        "detailed_prompts": _preserved(detailed, short),
        "short_prompts_freeze": _preserved(frozen, short),
        "detailed_beat_freezing": _preserved(detailed, frozen),
        "freezing_restricts": [difference("changed", detailed, found["detailed", every])],
    }


def _preserved(better: Setting, worse: Setting) -> list[Comparison]:
    """That one setting keeps background and attributes better than another.

    The structure distance is not asked: it counts the change that is wanted as well.
    """
    return [difference(measure, better, worse) for measure in ("psnr_outside", "kept")]


def ablate_instructions(bench: Bench, maker: CaptionMaker) -> Part:
    """Edits with the scenes' own captions, and with captions that `maker` writes and rewrites."""
    edits = bench.edits
    written, captions = write_captions(edits, maker)
    found = []
    for name, given in (("true captions", edits), ("by instruction", written)):
        trial = bench.run(TurboEdit(bench.pipeline, name=name), given, bench.references)
        found.append(bench.setting(name, trial))
    source, target = (100 * captions[part]["right"]["mean"] for part in ("source", "target"))
    return Part(
        name="instructions",
        title="Instructions",
        words=(
            "The captioner describes the picture and rewrites its description by the instruction; edits are judged by "
            f"the scenes' own words. {source:.1f} % of the attributes in its descriptions are right, and {target:.1f} "
            "% of those in the rewritten ones."
        ),
        measures=("changed", "kept", "psnr_outside", "psnr_inside", "clip", "structure"),
        settings=tuple(found),
        edits=edits.edits,
        evidence={"instructions": [above("changed", found[1], 0.5)]},
        columns=strip_columns(found),
        strips=edit_strips(edits, _SHOWN_INSTRUCTIONS, found),
    )
