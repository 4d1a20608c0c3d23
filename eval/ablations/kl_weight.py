"""Ablation: lambda, the weight of the KL term, against what the noise looks like and what edits do."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from eval.ablations.bench import (
    Ablation,
    Bench,
    Setting,
    Work,
    above,
    difference,
    edit_strips,
    last_reconstructions,
    strip_columns,
)
from eval.ablations.editors import WatchedNoise
from eval.claims.judging import Comparison
from eval.editors.editor import settings_of
from eval.editors.turboedit import in_papers_form
from eval.harness.exports import load_encoder
from eval.harness.options import Dtype, folder_or_hub_id
from eval.metrics.noise import OUTLIER
from models.turboedit_pipeline import TurboEditPipeline

NEXT_TO_NOTHING = 0.01
"""A lambda that is at most this share of the encoder's own counts as none."""

_SHOWN = (0, 3, 5, 7)


def read_lambda(encoder: Path) -> float | None:
    """kl_weight of the training that an export's card records, or None if it says nothing of it."""
    card = encoder / "README.md"
    found = re.search(r"^\s*kl_weight: (\S+)\s*$", card.read_text(encoding="utf-8"), re.M) if card.is_file() else None
    return float(found.group(1)) if found else None


def load_lambda_encoders(
    exports: Mapping[str, str], main: TurboEditPipeline, device: torch.device, dtype: Dtype
) -> dict[float, TurboEditPipeline]:
    """The encoders by their lambdas, of folders or hub ids.

    Raises ValueError for a lambda that is no number, a folder that is no export, or an encoder of other timesteps.
    """
    found = {}
    for text, name in exports.items():
        try:
            weight = float(text)
        except ValueError as error:
            raise ValueError(
                f"lambda_encoders names a lambda {text!r}; expected kl_weight of the training, such as 1e-6"
            ) from error
        pipeline = load_encoder(folder_or_hub_id(name, "--lambda_encoders"), device, dtype)
        if pipeline.timesteps != main.timesteps:
            raise ValueError(
                f"the encoder of lambda {text} works at {pipeline.timesteps}; expected --encoder's {main.timesteps}"
            )
        found[weight] = pipeline
    return found


def ablate_lambda(bench: Bench, own: float | None, others: Mapping[float, TurboEditPipeline]) -> Ablation:
    """Noises, reconstructions and edits of the bench's encoder, of lambda `own` (None: unknown), and of `others`."""
    encoders: dict[float | None, TurboEditPipeline] = {own: bench.pipeline}
    encoders |= {weight: pipeline for weight, pipeline in others.items() if weight != own}
    weights = sorted(encoders, key=lambda weight: -1.0 if weight is None else weight)
    measured = bench.measured("lambda", [_work(bench, weight, encoders[weight]) for weight in weights])
    found = {weight: setting for weight, (setting,) in zip(weights, measured, strict=True)}
    settings = tuple(found.values())
    return Ablation(
        name="lambda",
        title="Lambda",
        words=(
            "Encoders that differ in kl_weight alone. Noises are drawn from the encoder's Gaussians, as in training, "
            "and measured picture by picture over all timesteps; inversion and edits take the means. The KL is a sum "
            "over the latent's values, so a lambda counts in proportion to their number: 1e-6 for 16,384 of them is "
            "1.6e-5 for 1,024."
        ),
        measures=(
            *("largest", "std", "kurtosis", "lag1", "psnr", "psnr_to_vae"),
            *("changed", "kept", "psnr_outside", "lpips_outside", "psnr_whole", "clip", "direction"),
        ),
        settings=settings,
        edits=bench.edits.edits,
        evidence=_evidence(bench, found, own),
        columns=strip_columns(bench.edits, [setting.name for setting in settings]),
        strips=edit_strips(bench.edits, _SHOWN, settings),
    )


def _work(bench: Bench, weight: float | None, pipeline: TurboEditPipeline) -> Work:
    """The encoder of one lambda."""
    name = "this encoder" if weight is None else f"lambda {weight:g}"
    editor = in_papers_form(pipeline)

    def measure() -> list[Setting]:
        watched = WatchedNoise(editor, name)
        result = bench.run(watched, bench.edits, bench.references, reconstructed=True)
        return [bench.setting(name, result, further={**last_reconstructions(result), **watched.health})]

    return Work("lambda", [bench.edits.digest, name, settings_of(editor)], len(bench.edits), measure)


def _evidence(bench: Bench, found: Mapping[float | None, Setting], own: float | None) -> dict[str, list[Comparison]]:
    """Against the least lambda if it is next to nothing, and the largest if it is larger than our own."""
    if own is None:
        return {}
    weights = [weight for weight in found if weight is not None]
    least, most = min(weights), max(weights)
    evidence: dict[str, list[Comparison]] = {}
    if least < own and least <= NEXT_TO_NOTHING * own:
        evidence |= {
            "kl_values": [above("largest", found[least], OUTLIER)],
            "kl_structure": [difference("lag1", found[least], found[own])],
            "kl_prompts": bench.goes_further(found[own], found[least]),
        }
    if most > own:
        evidence["lambda_reconstruction"] = [difference("psnr", found[own], found[most])]
    return evidence
