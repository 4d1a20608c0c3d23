"""Ablation: the number of steps, beside DDIM inversion with as many."""

from data.world.edits import changed_attributes
from eval.ablations.bench import (
    OF_EDITS,
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
from eval.ablations.editors import WatchedNoise
from eval.claims.judging import Comparison
from eval.editors.ddim import DdimInversion
from eval.editors.editor import ReconstructingEditor, settings_of
from eval.editors.few_steps import generator_of
from eval.editors.turboedit import in_papers_form
from eval.harness.exports import with_steps
from eval.metrics.pixels import psnr
from eval.reconstructions.fidelity import round_trip
from eval.scene_edits.edit_set import EditSet

PUBLISHED_GAPS = {1: 3.7, 2: 6.9, 4: 7.5}
"""By how many dB TurboEdit's PSNR is above DDIM inversion's in table 2 of its paper, by the number of steps."""

NEAR_PERFECT = 3.0
"""dB below the VAE's round trip that we call almost perfect; the paper gives no number."""

_SHOWN = (0, 3, 5, 7)
_NOISE = ("noisiest_std", "noisiest_lag1")
_COSTS = ("nfe_invert", "nfe_edit", "seconds_invert", "seconds_edit")


def ablate_steps(bench: Bench, steps: tuple[int, ...]) -> Ablation:
    """Reconstructions and edits of the encoder and of DDIM inversion with each of `steps`."""
    edits = bench.edits
    works: dict[tuple[str, int], Work] = {}
    for count in steps:
        pipeline = with_steps(bench.pipeline, count)
        for title, plain in (("TurboEdit", in_papers_form(pipeline)), ("DDIM", DdimInversion(generator_of(pipeline)))):
            works[plain.name, count] = _work(bench, plain, f"{title}, {count} step{'s' if count > 1 else ''}", count)
    measured = bench.measured("number of steps", list(works.values()))
    found = {key: setting for key, (setting,) in zip(works, measured, strict=True)}
    ceiling = [
        value
        for part in edits.batches(bench.setup.batch)
        for trip in [round_trip(bench.pipeline.backbone, part.sources)]
        for value in psnr(trip.decoded, trip.images).tolist()
    ]
    truth = ", edits with the truth" if edits.scenes else ""
    return Ablation(
        name="steps",
        title="Number of steps",
        words=(
            "Each number of steps is an inversion of its own, on that many timesteps, evenly spread from the noisiest. "
            f"Reconstructions are compared with the picture and with the VAE's round trip of it{truth}."
        ),
        measures=("psnr", *OF_EDITS, *_NOISE, *_COSTS),
        settings=(*found.values(), Setting("VAE round trip", {"psnr": ceiling})),
        edits=edits.edits,
        evidence=_evidence(bench, found, steps, ceiling),
        columns=strip_columns(edits, [setting.name for setting in found.values()]),
        strips=edit_strips(edits, _SHOWN, list(found.values())),
    )


def _work(bench: Bench, plain: ReconstructingEditor, name: str, count: int) -> Work:
    """One editor on one number of steps."""

    def measure() -> list[Setting]:
        editor = WatchedNoise(plain, name)
        result = bench.run(editor, bench.edits, bench.references, reconstructed=True)
        further = {**last_reconstructions(result), **editor.health, **edit_costs(result)}
        return [bench.setting(name, result, further=further)]

    decided_by = [bench.edits.digest, settings_of(plain)]
    return Work(f"steps-{plain.name}-{count}", decided_by, len(bench.edits), measure)


def _moves(setting: Setting, edits: EditSet) -> Comparison:
    """Test that objects of scenes which should move do not."""
    moves = [edit.kind == "change_pose" and "layout" in changed_attributes(edit) for edit in edits.scenes]
    return Comparison(
        f"50 %, less the moves that happen: {setting.name}",
        "%",
        [100 * (0.5 - happened) for happened, move in zip(setting.values["happened"], moves, strict=True) if move],
    )


def _evidence(
    bench: Bench, found: dict[tuple[str, int], Setting], steps: tuple[int, ...], ceiling: list[float]
) -> dict[str, list[Comparison]]:
    ours = {count: found["turboedit", count] for count in steps}
    ddim = {count: found["ddim", count] for count in steps}
    pairs = list(zip(steps[1:], steps, strict=False))
    first, last = steps[0], steps[-1]
    evidence = {
        "steps_reconstruct": [difference("psnr", ours[more], ours[less]) for more, less in pairs],
        "near_perfect": [
            Comparison(
                f"{NEAR_PERFECT:g} dB, less what {ours[last].name} lacks of the VAE's PSNR",
                "dB",
                [NEAR_PERFECT - (a - b) for a, b in zip(ceiling, ours[last].values["psnr"], strict=True)],
            )
        ],
        "beats_ddim": [difference("psnr", ours[count], ddim[count]) for count in steps],
        "beats_ddim_by_gap": [
            difference("psnr", ours[count], ddim[count], PUBLISHED_GAPS[count])
            for count in steps
            if count in PUBLISHED_GAPS
        ],
        "ddim_noise": [
            Comparison(
                f"distance of the deviation from 1: {ddim[last].name}, less {ours[last].name}",
                "",
                [abs(a - 1) - abs(b - 1) for a, b in zip(*(of[last].values["noisiest_std"] for of in (ddim, ours)))],
            ),
            difference("noisiest_lag1", ddim[last], ours[last]),
        ],
        "beats_ddim_edits": [difference(measure, ours[last], ddim[last]) for measure in ("psnr_outside", "clip")],
    }
    if bench.edits.scenes:
        evidence["pose_fails"] = [_moves(ours[last], bench.edits)]
    if first == 1:
        evidence["single_step_edits"] = [
            above("changed", ours[1], 0.5),
            difference("psnr_outside", ours[1], ddim[1]),
        ]
        if last > 1:
            near_truth = [difference(measure, ours[last], ours[1]) for measure in ("psnr_outside", "psnr_inside")]
            evidence["four_steps_edit"] = (
                near_truth if bench.edits.has_truths else bench.keeps_more(ours[last], ours[1])
            )
    if last == 4:
        evidence["evaluations"] = [
            Comparison(f"how many fewer than {bound} {words} takes", "", [bound - n for n in ours[4].values[name]])
            for bound, name, words in ((9, "nfe_invert", "an inversion"), (5, "nfe_edit", "an edit"))
        ]
    return evidence
