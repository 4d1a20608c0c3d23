"""Ablation: short against detailed prompts, with attention frozen in none to all of the steps."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from eval.ablations.bench import OF_EDITS, Ablation, Bench, Setting, Work, above, edit_strips, strip_columns
from eval.ablations.editors import FrozenAttention
from eval.claims.judging import Comparison
from eval.editors.turboedit import in_papers_form
from eval.scene_edits.edit_set import EditSet

SAID_BRIEFLY = ("change_object", "add_object", "delete_object", "change_colour", "change_background")
"""Kinds of edits that a scene's short caption says: it has an object's colour and shape, and the background."""

GIVEN = "given"
"""Length of prompts where there are no others to compare them with."""

_NEVER_FROZEN = " This generator is a transformer, whose attention cannot be frozen."

_SHOWN = (0, 1, 3, 4)
_SHOWN_INSTRUCTIONS = (0, 3, 4, 5, 7)


def ablate_prompts(bench: Bench) -> Ablation:
    """Edits with short and with detailed prompts, by the number of first steps whose attention is the source's."""
    edits = bench.lengths.get("detailed", next(iter(bench.lengths.values())))
    references = bench.setup.judge.references(edits, bench.pipeline.backbone)
    counts = range(len(bench.pipeline.timesteps) + 1 if bench.has_attention else 1)

    def work(length: str, given: EditSet) -> Work:
        def measure() -> list[Setting]:
            editor = FrozenAttention(bench.pipeline, name=f"{length} prompts")
            result = bench.run(editor, given, references, [float(steps) for steps in counts])
            names = (f"{length}, {f'{steps} frozen' if steps else 'none frozen'}" for steps in counts)
            return [bench.setting(name, result, float(steps)) for steps, name in zip(counts, names, strict=True)]

        return Work(f"prompts-{length}", [given.digest, edits.digest], len(counts) * len(edits), measure)

    measured = bench.measured("prompts", [work(length, given) for length, given in bench.lengths.items()])
    found = {
        (length, steps): setting
        for length, settings in zip(bench.lengths, measured, strict=True)
        for steps, setting in zip(counts, settings, strict=True)
    }
    return Ablation(
        name="prompts",
        title="Short and detailed prompts, and frozen attention",
        words=_words(bench),
        measures=OF_EDITS,
        settings=tuple(found.values()),
        edits=edits.edits,
        evidence=_evidence(bench, found),
        columns=strip_columns(edits, [setting.name for setting in found.values()]),
        strips=edit_strips(edits, _SHOWN, list(found.values())),
        left_out=tuple(_left_out(bench)),
    )


def _words(bench: Bench) -> str:
    kinds = ", ".join(kind.replace("_", " ") for kind in SAID_BRIEFLY)
    begin = (
        f"Edits that a short caption can say ({kinds}), with the scene's" if bench.edits.scenes else "Edits with the"
    )
    lengths = {
        GIVEN: "Edits with the picture's description",
        "short": f"{begin} short caption or its detailed one",
    }[next(iter(bench.lengths))]
    compared = "" if GIVEN in bench.lengths else " CLIP compares with the detailed caption throughout."
    return (
        f"{lengths} for both inversion and edit, and with the source's attention kept in the first steps "
        f"(Prompt-to-Prompt).{compared}"
    )


def _left_out(bench: Bench) -> Iterator[str]:
    if not bench.has_attention:
        yield "Frozen attention needs a UNet's attention, which this generator does not have."
    if GIVEN in bench.lengths:
        yield "Short and detailed prompts are not compared, as the pictures do not have both."


def with_short_prompts(edits: EditSet) -> EditSet:
    """`edits` of scenes with short captions of source and target."""
    captions = [edit.captions(long=False) for edit in edits.scenes]
    sources, targets = zip(*captions, strict=True)
    return replace(edits, source_prompts=sources, target_prompts=targets)


def _evidence(bench: Bench, found: dict[tuple[str, int], Setting]) -> dict[str, list[Comparison]]:
    """What is kept is asked of background and attributes: the structure distance counts the wanted change as well."""
    every = max(steps for _, steps in found)
    detailed = found["detailed" if "detailed" in bench.lengths else GIVEN, 0]
    evidence: dict[str, list[Comparison]] = {}
    if every:
        held = found["detailed" if "detailed" in bench.lengths else GIVEN, every]
        evidence["freezing_restricts"] = bench.goes_further(detailed, held)[:1]
    if "short" in bench.lengths:
        evidence["detailed_prompts"] = bench.keeps_more(detailed, found["short", 0])
    if "short" in bench.lengths and every:
        evidence["short_prompts_freeze"] = bench.keeps_more(found["short", 1], found["short", 0])
        evidence["detailed_beat_freezing"] = bench.keeps_more(detailed, found["short", 1])
    return evidence


def scene_lengths(edits: EditSet) -> dict[str, EditSet]:
    """The edits of scenes that a short caption says, with short and with detailed captions."""
    said = edits.chosen([row for row, kind in enumerate(edits.kinds) if kind in SAID_BRIEFLY])
    return {"short": with_short_prompts(said), "detailed": said}


def ablate_instructions(bench: Bench, written: EditSet, captions: Mapping[str, Any]) -> Ablation:
    """Edits with the pictures' own captions, and with captions that a captioner writes and rewrites.

    Args:
        written: The bench's edits with the captioner's prompts.
        captions: Figures of its captions.
    """
    edits = bench.edits

    def work(name: str, given: EditSet) -> Work:
        def measure() -> list[Setting]:
            result = bench.run(in_papers_form(bench.pipeline, name), given, bench.references)
            return [bench.setting(name, result)]

        return Work("instructions", [name, given.digest, edits.digest], len(edits), measure)

    works = [work("true captions" if edits.scenes else "given prompts", edits), work("by instruction", written)]
    found = [setting for (setting,) in bench.measured("instructions", works)]
    right = ""
    if edits.scenes:
        source, target = (100 * captions[part]["right"]["mean"] for part in ("source", "target"))
        right = f" {source:.1f} % of the attributes in its descriptions are right, and {target:.1f} % of those in the "
        right += "rewritten ones."
    own = "scenes' own words" if edits.scenes else "given prompts"
    return Ablation(
        name="instructions",
        title="Instructions",
        words=(
            "The captioner describes the picture and rewrites its description by the instruction; edits are judged by "
            f"the {own}.{right}"
        ),
        measures=OF_EDITS,
        settings=tuple(found),
        edits=edits.edits,
        evidence={
            "instructions": [above("changed", found[1], 0.5)],
            "captioner_limits": bench.goes_further(found[0], found[1])[:1] + bench.keeps_more(found[0], found[1]),
        },
        columns=strip_columns(edits, [setting.name for setting in found]),
        strips=edit_strips(edits, _SHOWN_INSTRUCTIONS, found),
    )
