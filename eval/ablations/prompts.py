"""Ablation: short against detailed prompts, with attention frozen in none to all of the steps."""

from dataclasses import replace

from data.captioning.maker import CaptionMaker
from eval.ablations.bench import Ablation, Bench, Setting, Work, above, difference, edit_strips, strip_columns
from eval.ablations.editors import FrozenAttention, frozen_counts
from eval.claims.judging import Comparison
from eval.editors.turboedit import in_papers_form
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.written_captions import kept_captions

SAID_BRIEFLY = ("change_object", "add_object", "delete_object", "change_colour", "change_background")
"""Kinds of edits that a short caption says: it has an object's colour and shape, and the background."""

_NEVER_FROZEN = " This generator is a transformer, whose attention cannot be frozen."

_SHOWN = (0, 1, 3, 4)
_SHOWN_INSTRUCTIONS = (0, 3, 4, 5, 7)


def ablate_prompts(bench: Bench) -> Ablation:
    """Edits with short and with detailed prompts, by the number of first steps whose attention is the source's.

    On a transformer, whose attention cannot be frozen, that number is 0.
    """
    edits, references = bench.of_kinds(SAID_BRIEFLY)
    counts = frozen_counts(bench.pipeline)

    def work(length: str, given: EditSet) -> Work:
        def measure() -> list[Setting]:
            editor = FrozenAttention(bench.pipeline, name=f"{length} prompts")
            result = bench.run(editor, given, references, editor.counts)
            names = (f"{length}, {f'{steps} frozen' if steps else 'none frozen'}" for steps in counts)
            return [bench.setting(name, result, float(steps)) for steps, name in zip(counts, names, strict=True)]

        return Work(f"prompts-{length}", [given.digest, edits.digest], len(counts) * len(edits), measure)

    lengths = {"short": with_short_prompts(edits), "detailed": edits}
    measured = bench.measured("prompts", [work(length, given) for length, given in lengths.items()])
    found = {
        (length, steps): setting
        for length, settings in zip(lengths, measured, strict=True)
        for steps, setting in zip(counts, settings, strict=True)
    }
    return Ablation(
        name="prompts",
        title="Short and detailed prompts, and frozen attention",
        words=(
            f"Edits that a short caption can say ({', '.join(kind.replace('_', ' ') for kind in SAID_BRIEFLY)}), "
            "with the scene's short caption or its detailed one for both inversion and edit, and with the source's "
            "attention kept in the first steps (Prompt-to-Prompt). CLIP compares with the detailed caption throughout."
            f"{'' if len(counts) > 1 else _NEVER_FROZEN}"
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
    if not every:
        return {"detailed_prompts": _preserved(detailed, short)}
    frozen = found["short", 1]
    return {
        "detailed_prompts": _preserved(detailed, short),
        "short_prompts_freeze": _preserved(frozen, short),
        "detailed_beat_freezing": _preserved(detailed, frozen),
        "freezing_restricts": [difference("changed", detailed, found["detailed", every])],
    }


def _preserved(better: Setting, worse: Setting) -> list[Comparison]:
    """Test that one setting keeps background and attributes better than another.

    The structure distance is not asked: it counts the change that is wanted as well.
    """
    return [difference(measure, better, worse) for measure in ("psnr_outside", "kept")]


def ablate_instructions(bench: Bench, maker: CaptionMaker) -> Ablation:
    """Edits with the scenes' own captions, and with captions that `maker` writes and rewrites."""
    edits = bench.edits
    written, captions = kept_captions(edits, maker, bench.setup.kept, "instructions")

    def work(name: str, given: EditSet) -> Work:
        def measure() -> list[Setting]:
            result = bench.run(in_papers_form(bench.pipeline, name), given, bench.references)
            return [bench.setting(name, result)]

        return Work("instructions", [name, given.digest, edits.digest], len(edits), measure)

    works = [work("true captions", edits), work("by instruction", written)]
    found = [setting for (setting,) in bench.measured("instructions", works)]
    source, target = (100 * captions[part]["right"]["mean"] for part in ("source", "target"))
    return Ablation(
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
        evidence={
            "instructions": [above("changed", found[1], 0.5)],
            "captioner_limits": [
                difference(measure, found[0], found[1]) for measure in ("changed", "kept", "psnr_outside")
            ],
        },
        columns=strip_columns(found),
        strips=edit_strips(edits, _SHOWN_INSTRUCTIONS, found),
    )
