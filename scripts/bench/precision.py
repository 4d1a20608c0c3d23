"""Figures of scripts.measure_precision: errors of x0 by the generator's dtype, and encoders trained on each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor

from data.jobs.command import parse
from data.world.captions import long_caption
from data.world.render import render
from data.world.splits import sample_scene
from eval.harness.results import estimate_words
from eval.metrics.pixels import Estimate, psnr
from models.backbone import Backbone, dtype_of
from models.generator import FewStepGenerator
from models.options import Quantization
from models.pictures import from_pictures
from models.quantized import quantize
from models.turboedit_pipeline import TurboEditPipeline
from train.exports.weights import trained_weights
from train.method import Storage
from train.methods.training import train
from train.methods.turboedit import METHOD

CONFIG = "configs/turboedit/miniature.yaml"
_BATCH = 32


def as_options(dtype: str) -> tuple[str, Quantization | None]:
    """Values of generator.dtype and generator.quantize; 8 bits compute in float16."""
    return ("float16", cast(Quantization, dtype)) if dtype in get_args(Quantization) else (dtype, None)


def test_scenes(number: int) -> tuple[Tensor, list[str]]:
    """Images [n, 3, 64, 64] of the first test scenes and their captions."""
    scenes = [sample_scene("test", 0, index) for index in range(number)]
    return from_pictures([render(scene) for scene in scenes]), [long_caption(scene) for scene in scenes]


@torch.no_grad()
def errors_of_x0(
    backbones: Sequence[str], dtypes: Sequence[str], number: int, variant: str | None = None
) -> dict[str, Any]:
    """Root mean squared error of x0 to float32's, by backbone, dtype and timestep, on scenes noised to the timestep.

    The latent's own deviation is about one.
    """
    images, captions = test_scenes(number)
    found: dict[str, Any] = {}
    for path in backbones:
        exact = _estimates(path, "float32", images, captions, variant)
        print(f"\n{path}: error of x0 (root mean square) to float32's\n")
        print(f"| dtype | {' | '.join(f't = {t}' for t in exact)} |\n|---|{'---|' * len(exact)}")
        for dtype in dtypes:
            mine = _estimates(path, dtype, images, captions, variant)
            errors = {t: (mine[t] - exact[t]).square().mean().sqrt().item() for t in exact}
            found.setdefault(path, {})[dtype] = errors
            print(f"| {dtype} | {' | '.join(f'{error:.2g}' for error in errors.values())} |")
    return found


def _estimates(
    path: str, dtype: str, images: Tensor, captions: Sequence[str], variant: str | None
) -> dict[float, Tensor]:
    """x0 [n, 4, h, w] by timestep, of latents that float32 has made; at the noisiest they are noise alone."""
    computing, quantization = as_options(dtype)
    backbone = Backbone.load(path, dtype=dtype_of(computing), variant=variant)
    if quantization:
        quantize(backbone.unet, quantization)
    generator, estimates = FewStepGenerator(backbone), {}
    x0 = torch.cat([backbone.encode_image(part) for part in images.split(_BATCH)])
    draw = torch.Generator().manual_seed(0)
    for number, t in enumerate(generator.timesteps):
        noise, steps = torch.randn(x0.shape, generator=draw), torch.full((len(x0),), t)
        x_t = backbone.schedule.add_noise(x0 if number else torch.zeros_like(x0), noise, steps)
        parts = range(0, len(x0), _BATCH)
        estimates[t] = torch.cat(
            [
                generator.predict_x0(
                    x_t[i : i + _BATCH], backbone.encode_text(captions[i : i + _BATCH]), steps[i : i + _BATCH]
                )
                for i in parts
            ]
        )
    return estimates


def reconstructions(
    backbones: Sequence[str],
    dtypes: Sequence[str],
    number: int,
    shards: Path,
    steps: int,
    out: Path,
    variant: str | None = None,
) -> dict[str, Any]:
    """PSNR in dB to the VAE's round trip after the first and the last step, of encoders trained on each dtype.

    Each inverts with the generator in the dtype in which it computed in training, as an export does: in float16 after
    a training in 8 bits.
    """
    images, captions = test_scenes(number)
    found: dict[str, Any] = {}
    for path in backbones:
        print(f"\n{path}: PSNR to the VAE's round trip, dB, after {steps} training steps\n")
        print("| dtype | 1 step | all steps |\n|---|---|---|")
        for dtype in dtypes:
            pipeline = _trained(path, dtype, shards, steps, out / Path(path).name / dtype, variant)
            after = _psnr_by_step(pipeline, images, captions)
            figures = {"first": Estimate.of(after[0]).to_dict(), "last": Estimate.of(after[-1]).to_dict()}
            found.setdefault(path, {})[dtype] = figures
            words = [estimate_words(figure, digits=2) for figure in figures.values()]
            print(f"| {dtype} | {' | '.join(words)} |")
    return found


def _trained(path: str, dtype: str, shards: Path, steps: int, folder: Path, variant: str | None) -> TurboEditPipeline:
    """The pipeline of an encoder that is trained on a generator of this dtype, or was."""
    computing, quantization = as_options(dtype)
    config = parse(
        METHOD.config,
        [
            f"--config={CONFIG}",
            *(f"--run.folder={folder}", f"--run.steps={steps}", "--run.time_limit_min=null", f"--data.shards={shards}"),
            *(f"--generator.path={path}", f"--generator.dtype={computing}", "--log.preview_every=0"),
            *(f"--generator.quantize={quantization or 'null'}", f"--generator.variant={variant or 'null'}"),
        ],
    )
    train(METHOD, config)
    pipeline: TurboEditPipeline = METHOD.export().build(trained_weights(folder, config), Storage("float32"))  # type: ignore[assignment]
    pipeline.set_progress_bar_config(disable=True)
    for name in ("unet", "text_encoder", "text_encoder_2"):
        getattr(pipeline, name).to(dtype_of(computing))
    return pipeline


def _psnr_by_step(pipeline: TurboEditPipeline, images: Tensor, captions: Sequence[str]) -> list[list[float]]:
    """PSNR of each scene after each step of its inversion."""
    found: list[list[float]] = [[] for _ in pipeline.timesteps]
    backbone = pipeline.backbone
    for start in range(0, len(images), _BATCH):
        part = images[start : start + _BATCH]
        inversion = pipeline.invert(part, captions[start : start + _BATCH])
        ceiling = backbone.decode(backbone.encode_image(part)).clamp(-1, 1)
        for values, latent in zip(found, inversion.reconstructions, strict=True):
            values += psnr(backbone.decode(latent).clamp(-1, 1), ceiling).tolist()
    return found
