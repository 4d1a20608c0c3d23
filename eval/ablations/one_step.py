"""Ablation: what inverts in a single step, and what that leaves in the picture; and ReNoise, which asks more often."""

from collections.abc import Callable

from eval.ablations.bench import (
    Ablation,
    Bench,
    Setting,
    Work,
    above,
    difference,
    edit_costs,
    edit_strips,
    last_reconstructions,
    strip_columns,
)
from eval.ablations.editors import FrozenAttention
from eval.claims.judging import Comparison
from eval.editors.ddpm import Ddpm
from eval.editors.editor import Editor, ReconstructingEditor, settings_of
from eval.editors.few_steps import generator_of
from eval.editors.renoise import Renoise
from eval.editors.turboedit import in_papers_form
from eval.harness.exports import with_steps
from eval.metrics.pixels import lone_pixels
from eval.scene_edits.result import EditorResult
from models.pictures import from_pictures

RENOISE_SAVES = 28
"""By how many evaluations ReNoise's inversion is the longer one in TurboEdit's paper: 36 for 8 (section 4.3)."""

_SHOWN = (0, 3, 5, 7)
_MEASURES = ("changed", "kept", "psnr_outside", "psnr_inside", "clip")


def ablate_one_step(bench: Bench) -> Ablation:
    """Edits after one step of the encoder, of DDPM inversion and with frozen attention, beside all of the steps."""
    pipeline = with_steps(bench.pipeline, 1)
    generator, every = generator_of(pipeline), len(bench.pipeline.timesteps)
    works = {
        "all": _work(bench, in_papers_form(bench.pipeline), f"TurboEdit, {every} steps"),
        "ddpm": _work(bench, Ddpm(generator), "DDPM, 1 step"),
        "residual": _work(bench, Ddpm(generator, residual=True), "DDPM and its residual, 1 step"),
        "frozen": _frozen_work(bench, FrozenAttention(pipeline, "1 step")),
    }
    measured = dict(zip(works, bench.measured("one step", list(works.values())), strict=True))
    one, frozen = measured.pop("frozen")
    found = {name: setting for name, (setting,) in measured.items()} | {"one": one, "frozen": frozen}
    truths = Setting("VAE round trip of the true edit", {"lone_pixels": lone_pixels(bench.references.truths).tolist()})
    settings = tuple(found[name] for name in ("one", "frozen", "ddpm", "residual", "all"))
    return Ablation(
        name="one_step",
        title="A single step",
        words=(
            "One step of DDPM inversion is one noise of its own; with its residual what the step misses of the picture "
            "is added back. Frozen attention is the source's in the only step there is. A lone pixel is brighter or "
            "darker than all of its eight neighbours by a twentieth of the range: salt and pepper."
        ),
        measures=("psnr", *_MEASURES, "lone_pixels"),
        settings=(*settings, truths),
        edits=bench.edits.edits,
        evidence=one_step_evidence(found, truths),
        columns=strip_columns(bench.edits, [setting.name for setting in settings]),
        strips=edit_strips(bench.edits, _SHOWN, settings),
    )


def one_step_evidence(found: dict[str, Setting], truths: Setting) -> dict[str, list[Comparison]]:
    """The comparisons of each claim, of the settings `one`, `frozen`, `ddpm`, `residual` and `all`."""
    one = found["one"]
    return {
        "ddpm_resembles": [above("changed", found["ddpm"], 0.5), difference("psnr_outside", one, found["ddpm"])],
        "ddpm_overfits": [
            difference("psnr", found["residual"], one),
            *(difference(measure, one, found["residual"]) for measure in ("changed", "psnr_inside")),
        ],
        "freezing_one_step": [difference("changed", one, found["frozen"])],
        "salt_and_pepper": [difference("lone_pixels", one, other) for other in (found["all"], truths)],
    }


def ablate_renoise(bench: Bench) -> Ablation:
    """Edits after ReNoise's inversion, by its official settings, beside the encoder's."""
    works = [
        _work(bench, in_papers_form(bench.pipeline), "TurboEdit"),
        _work(bench, Renoise(generator_of(bench.pipeline)), "ReNoise"),
    ]
    settings = tuple(setting for (setting,) in bench.measured("ReNoise", works))
    ours, theirs = settings
    return Ablation(
        name="renoise",
        title="ReNoise",
        words=(
            "ReNoise (Garibi et al. 2024) searches each step's noise by asking the generator again and again, with its "
            "official settings, which the paper counts as 36 evaluations; the gradient steps that correct the noise "
            "ask no network. Captions are the same detailed ones."
        ),
        measures=("psnr", *_MEASURES, "nfe_invert", "seconds_invert"),
        settings=settings,
        edits=bench.edits.edits,
        evidence=renoise_evidence(ours, theirs),
        columns=strip_columns(bench.edits, [setting.name for setting in settings]),
        strips=edit_strips(bench.edits, _SHOWN, settings),
    )


def renoise_evidence(ours: Setting, theirs: Setting) -> dict[str, list[Comparison]]:
    """The comparisons of both claims."""
    return {
        "renoise_evaluations": [difference("nfe_invert", theirs, ours, RENOISE_SAVES)],
        "beats_renoise": [difference(measure, ours, theirs) for measure in ("psnr_outside", "kept", "psnr_inside")],
    }


def _work(bench: Bench, editor: ReconstructingEditor, name: str) -> Work:
    """One editor at strength 1."""

    def measure() -> list[Setting]:
        result = bench.run(editor, bench.edits, bench.references, reconstructed=True)
        further = {**last_reconstructions(result), **edit_costs(result), **_lone(result, 1.0)}
        return [bench.setting(name, result, further=further)]

    return _kept_work(bench, editor, name, 1, measure)


def _frozen_work(bench: Bench, editor: FrozenAttention) -> Work:
    """One inversion in one step, edited freely and with the source's attention."""
    names = ("TurboEdit, 1 step", "TurboEdit, 1 step, attention frozen")

    def measure() -> list[Setting]:
        result = bench.run(editor, bench.edits, bench.references, editor.counts, reconstructed=True)
        return [
            bench.setting(name, result, count, {**last_reconstructions(result), **_lone(result, count)})
            for count, name in zip(editor.counts, names, strict=True)
        ]

    return _kept_work(bench, editor, "TurboEdit, 1 step", len(names), measure)


def _kept_work(bench: Bench, editor: Editor, name: str, settings: int, measure: Callable[[], list[Setting]]) -> Work:
    decided_by = [bench.edits.digest, name, settings_of(editor)]
    return Work(f"one-step-{editor.name}", decided_by, settings * len(bench.edits), measure)


def _lone(result: EditorResult, strength: float) -> dict[str, list[float]]:
    return {"lone_pixels": lone_pixels(from_pictures(result.images[strength])).tolist()}
