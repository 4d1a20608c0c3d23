"""Fidelity of an inversion after each step: in pixels, beside the VAE's round trip; in latents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.editors.editor import InvertedImages, ReconstructingEditor
from eval.editors.few_steps import decode_latents
from eval.metrics.pixels import DATA_RANGE, Metric, mse, psnr
from models.backbone import Backbone

Row = dict[str, str | float]


def pixel_mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error [B] of images [B, 3, H, W] in [-1, 1], compared in [0, 1]; "L2" of TurboEdit's table 2.

    The paper does not define it; its figures fit this one beside its PSNR.
    """
    return mse(a, b) / DATA_RANGE**2


@dataclass(frozen=True)
class RoundTrip:
    """Images [B, 3, H, W], their latents [B, C, h, w] and what the VAE makes of those, which nobody can better."""

    images: Tensor
    latents: Tensor
    decoded: Tensor


@torch.no_grad()
def round_trip(backbone: Backbone, images: Tensor) -> RoundTrip:
    """`images` through the VAE and back."""
    latents = backbone.encode_image(images)
    return RoundTrip(images, latents, decode_latents(backbone, latents))


@torch.no_grad()
def vae_rows(trip: RoundTrip, metrics: Mapping[str, Metric], keys: Sequence[str]) -> list[Row]:
    """PSNR and further metrics of the round trip itself for each image, as the rows of the editor "vae", step 0."""
    columns = {"psnr": psnr(trip.decoded, trip.images)}
    columns |= {name: metric(trip.decoded, trip.images) for name, metric in metrics.items()}
    return _rows("vae", 0, keys, columns)


@torch.no_grad()
def reconstruction_rows(
    backbone: Backbone,
    editor: ReconstructingEditor,
    inversion: InvertedImages,
    trip: RoundTrip,
    metrics: Mapping[str, Metric],
    keys: Sequence[str],
    last_only: bool = False,
) -> tuple[list[Row], list[Tensor]]:
    """A row for each image and step, and the reconstructions [B, 3, H, W] after each step, or after the last alone.

    psnr is against the image, psnr_to_vae against the VAE's round trip, latent_mse against the latent; `metrics`
    (functions of two batches to [B]) are against the image.
    """
    rows: list[Row] = []
    pictures = []
    for step, latent in list(enumerate(editor.reconstruct(inversion), start=1))[-1 if last_only else 0 :]:
        picture = decode_latents(backbone, latent)
        columns = {"psnr": psnr(picture, trip.images), "psnr_to_vae": psnr(picture, trip.decoded)}
        columns["latent_mse"] = mse(latent, trip.latents)
        columns |= {name: metric(picture, trip.images) for name, metric in metrics.items()}
        rows += _rows(editor.name, step, keys, columns)
        pictures.append(picture)
    return rows, pictures


def _rows(editor: str, step: int, keys: Sequence[str], columns: Mapping[str, Tensor]) -> list[Row]:
    values = {name: column.tolist() for name, column in columns.items()}
    return [
        {"editor": editor, "step": step, "key": key, **{name: column[i] for name, column in values.items()}}
        for i, key in enumerate(keys)
    ]


def by_step(rows: Sequence[Row], editor: str, measure: str) -> list[list[float]]:
    """Values of one measure of an editor, one list a step."""
    chosen = [row for row in rows if row["editor"] == editor]
    steps = sorted({int(row["step"]) for row in chosen})
    return [[float(row[measure]) for row in chosen if int(row["step"]) == step] for step in steps]
