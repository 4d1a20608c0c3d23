"""Ablation: the strength of an edit, from the other way to beyond the target."""

from collections.abc import Sequence

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray

from data.pages.charts import Series, line_chart
from eval.ablations.bench import Ablation, Bench, Setting, Work, difference, edit_strips, strip_columns
from eval.claims.judging import Comparison
from eval.editors.turboedit import in_papers_form
from eval.metrics.pixels import mse
from eval.scene_edits.edit_set import EditSet
from eval.scene_edits.result import EditorResult
from models.pictures import from_pictures

STRENGTHS = tuple(float(strength) for strength in np.arange(-0.5, 1.75, 0.25))
_BLUE, _ORANGE = "#0b5fa5", "#e07b1f"
_SHOWN = (0, 3, 5, 7, 8)


def ablate_strength(bench: Bench) -> Ablation:
    """Edits at strengths from -0.5 to 1.5."""
    edits = bench.edits

    def measure() -> list[Setting]:
        result = bench.run(in_papers_form(bench.pipeline, "strengths"), edits, bench.references, STRENGTHS)
        towards = directions(bench, edits, result) if edits.scenes else None
        return [
            bench.setting(
                f"strength {strength:g}",
                result,
                strength,
                {
                    "moved": distances(result.images[strength], result.images[0.0]),
                    **({} if towards is None else {"direction": towards[strength]}),
                },
            )
            for strength in STRENGTHS
        ]

    work = Work("strength", [edits.digest, STRENGTHS], len(STRENGTHS) * len(edits), measure)
    (settings,) = bench.measured("strength", [work])
    found = dict(zip(STRENGTHS, settings, strict=True))
    with_clip = bench.setup.judge.clip is not None
    return Ablation(
        name="strength",
        title="Strength",
        words=(
            "Prompt embeddings are interpolated between the source's (0) and the target's (1), and beyond. CLIP's "
            "similarity to the target's caption less that to the source's says how far the picture has gone; the "
            "distance from strength 0 (root mean square over the picture) says how much of it has changed."
        ),
        measures=("direction", "moved", "changed", "kept", "psnr_outside", "lpips_outside", "psnr_whole", "clip"),
        settings=settings,
        edits=edits.edits,
        evidence=_evidence(found) if with_clip else {},
        charts=_charts(found, with_clip),
        columns=strip_columns(edits, [f"{strength:g}" for strength in STRENGTHS]),
        strips=edit_strips(edits, _SHOWN, settings),
    )


@torch.no_grad()
def directions(bench: Bench, edits: EditSet, result: EditorResult) -> dict[float, list[float]] | None:
    """CLIP similarity to the target's caption less that to the source's, by strength; None without a CLIP."""
    clip = bench.setup.judge.clip
    if clip is None:
        return None
    targets, sources = clip.embed(edits.target_prompts), clip.embed(edits.source_prompts)
    found = {}
    for strength in result.strengths:
        images = from_pictures(result.images[strength]).to(targets.device)
        found[strength] = (clip.compare(images, targets) - clip.compare(images, sources)).tolist()
    return found


def distances(pictures: Sequence[NDArray[np.uint8]], others: Sequence[NDArray[np.uint8]]) -> list[float]:
    """Root mean square difference of each pair, as a share of the range."""
    # The range is 1 here; from_uint8's is 2, and half a distance between such images has other last digits.
    a, b = (torch.from_numpy(np.stack(found)) / 255 for found in (pictures, others))
    return mse(a, b).sqrt().tolist()


def _evidence(found: dict[float, Setting]) -> dict[str, list[Comparison]]:
    between = [strength for strength in STRENGTHS if 0 <= strength <= 1]
    rows = {m: np.array([found[strength].values[m] for strength in between]) for m in ("direction", "moved")}
    words = {"direction": "CLIP, target minus source", "moved": "distance from strength 0"}
    return {
        "strength_controls": [
            Comparison(f"rank correlation of strength and {words[m]}, less 0.5", "", list(rising(values) - 0.5))
            for m, values in rows.items()
        ],
        "strength_extrapolates": [
            difference("direction", found[1.5], found[1.0]),
            difference("direction", found[0.0], found[-0.5]),
        ],
    }


def rising(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman's rank correlation of each column of [S, N] with its row's number; 0 where a column is constant."""
    # Average ranks less the middle one: a half of (how many values are below, less how many are above).
    ranks = np.sign(values[:, None] - values[None]).sum(1) / 2
    order = np.arange(len(values)) - (len(values) - 1) / 2
    spread = np.sqrt((ranks**2).sum(0) * (order**2).sum())
    return np.divide((ranks * order[:, None]).sum(0), spread, out=np.zeros_like(spread), where=spread > 0)


def _charts(found: dict[float, Setting], with_clip: bool) -> tuple[Markup, ...]:
    drawings = [("moved", "distance from strength 0 (% of the range)", _ORANGE, 100.0)]
    if found[1.0].measures("changed"):
        drawings = [("changed", "edits that happened (%)", _ORANGE, 100.0)]
    if with_clip:
        drawings.insert(0, ("direction", "CLIP: target minus source", _BLUE, 1.0))
    charts = []
    for measure, label, colour, scale in drawings:
        points = [
            (
                strength,
                scale * setting.estimate(measure).mean,
                f"strength {strength:g}, {scale * setting.estimate(measure).mean:.2f}",
            )
            for strength, setting in found.items()
        ]
        charts.append(line_chart([Series(label, colour, points)], "strength", label))
    return tuple(charts)
