"""Figures of results.json from batches of reconstructions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from eval.harness.results import Columns, decibel_words, mean_words
from eval.metrics.distribution import Distances, PictureFeatures
from eval.metrics.pixels import Estimate
from eval.reconstructions.batches import InversionLine, MeasuredBatch
from eval.reconstructions.fidelity import Row, by_step
from eval.reconstructions.noise import Noises, noise_figures

REAL = "image"
VAE = "vae"


@dataclass
class Reconstructions:
    """Batches together, each field as in `MeasuredBatch`; `extractor` has made the features."""

    captions: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    evaluations: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, list[Tensor]] = field(default_factory=dict)
    noises: Noises = field(default_factory=dict)
    features: dict[str, list[Tensor]] = field(default_factory=dict)
    extractor: PictureFeatures | None = None


def gather(batches: Iterable[MeasuredBatch], extractor: PictureFeatures | None) -> Reconstructions:
    """Put batches together, in order."""
    record = Reconstructions(extractor=extractor)
    for batch in batches:
        record.captions += batch.captions
        record.rows += batch.rows
        record.evaluations = batch.evaluations
        for name, pictures in batch.pictures.items():
            record.pictures.setdefault(name, []).extend(pictures)
        for name, levels in batch.noises.items():
            for t, found in levels.items():
                record.noises.setdefault(name, {}).setdefault(t, []).extend(found)
        for name, features in batch.features.items():
            record.features.setdefault(name, []).append(features)
    return record


def reconstruction_results(
    record: Reconstructions, lines: Sequence[InversionLine], measures: Sequence[str]
) -> dict[str, Any]:
    """Everything for results.json but `about`; estimates as dicts of mean, se, n.

    Args:
        measures: against the image, which the VAE's round trip has too.

    Returns:
        table: a row of the VAE's round trip and one of each line. reconstruction: the longest inversions after every
        step. noise: theirs.
    """
    table = [{"editor": VAE, "steps": None, "nfe": None, **_figures(record, VAE, 0, measures)}]
    for line in lines:
        nfe = record.evaluations[line.title]
        figures = _figures(record, line.name, line.steps, (*measures, "psnr_to_vae"))
        table.append({"editor": line.name, "steps": line.steps, "nfe": nfe, **figures})
    most = max(line.steps for line in lines)
    longest = [row for row in record.rows if row["steps"] in (0, most)]
    vae = {measure: Estimate.of_measure(measure, by_step(longest, VAE, measure)[0]).to_dict() for measure in measures}
    by_steps = {
        line.name: {
            f"{measure}_by_step": [
                Estimate.of_measure(measure, found).to_dict() for found in by_step(longest, line.name, measure)
            ]
            for measure in (*measures, "psnr_to_vae", "latent_mse")
        }
        for line in lines
        if line.steps == most
    }
    return {"table": table, "reconstruction": {VAE: vae, **by_steps}, "noise": noise_figures(record.noises)}


def _figures(record: Reconstructions, name: str, steps: int, measures: Sequence[str]) -> dict[str, Any]:
    """A row's measures after its last step, with FID and KID if there are features."""
    rows = [row for row in record.rows if row["editor"] == name and row["steps"] == steps and row["step"] == steps]
    figures: dict[str, Any] = {
        measure: Estimate.of_measure(measure, (float(row[measure]) for row in rows)).to_dict() for measure in measures
    }
    if record.extractor is not None:
        distances = Distances(record.extractor)
        for features in record.features[REAL]:
            distances.add(features, real=True)
        for features in record.features[VAE if name == VAE else f"{name}-{steps}"]:
            distances.add(features, real=False)
        found = distances.compute()
        figures |= {"fid": found.fid, "kid": found.kid, "remark": found.remark}
    return {**figures, "n": len(rows)}


def reconstruction_summary(results: Mapping[str, Any]) -> str:
    """Write the table as text, in the units of TurboEdit's table 2."""
    table = Columns("", "steps", "MSE e-3", "PSNR", "to VAE", "SSIM", "LPIPS", "FID", "KID e-4", "NFE", "n")
    for row in results["table"]:
        table.add(
            row["editor"],
            _cell(row["steps"], 0),
            mean_words(row["mse"], 1e3, 2),
            decibel_words(row["psnr"], 2),
            decibel_words(row.get("psnr_to_vae"), 2),
            mean_words(row["ssim"], digits=3),
            mean_words(row.get("lpips"), digits=3),
            _cell(row.get("fid"), 2),
            _cell(row.get("kid"), 2, 1e4),
            _cell(row["nfe"], 0),
            _cell(row["n"], 0),
        )
    return str(table)


def _cell(value: float | None, digits: int, scale: float = 1.0) -> str:
    return "-" if value is None else f"{scale * value:.{digits}f}"
