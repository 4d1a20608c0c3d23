"""Reconstruction of captioned images by inversion, beside the VAE's ceiling, of few steps or of many.

    python -m eval.reconstruction --encoder TURBOEDIT_EXPORT --data SHARDS_OR_IMAGE_FOLDER --out DIR
    python -m eval.reconstruction --encoder STYLEDIFFUSION_EXPORT --data SHARDS_OR_IMAGE_FOLDER --out DIR
    python -m eval.reconstruction --backbone PIPELINE --data SHARDS_OR_IMAGE_FOLDER --out DIR [--editors '[npi, ddim]']

An export of TurboEdit is compared on its few-step generator in 1, 2 and 4 steps (TurboEdit's table 2), each number an
inversion of its own. An export of StyleDiffusion, or a Stable Diffusion pipeline, is inverted in many guided steps by
the editors of eval.many_step that reconstruct (StyleDiffusion's table 3). Leaves DIR/index.html, results.json and
reconstructions.csv (a row for each image, editor and number of steps, and for TurboEdit's most steps one after each).
The same command goes on where it was: finished batches lie in DIR/batches.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.jobs.command import existing, run
from eval.editors.options import NullTextSchedule
from eval.harness.options import Dtype, Shapes, folder_or_hub_id
from eval.harness.results import about, at_least_one, finish

logger = logging.getLogger(__name__)

_NULL_TEXT = NullTextSchedule()


def evaluate_reconstruction(
    data: Path,
    out: Path,
    encoder: str | None = None,
    backbone: str | None = None,
    num: int | None = None,
    shapes: Shapes = "square",
    steps: tuple[int, ...] | None = None,
    editors: tuple[str, ...] | None = None,
    num_steps: int | None = None,
    guidance: float | None = None,
    null_text: NullTextSchedule = _NULL_TEXT,
    clip: str | None = None,
    variant: str | None = None,
    lpips: Path | None = None,
    features: str | None = None,
    batch: int = 16,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> dict[str, Any]:
    """Measure how well an encoder and other inversions on its model reconstruct captioned images.

    Args:
        data: shards with images (made by data.caption), a folder of pictures with captions (.txt, metadata.jsonl), or
            PIE-Bench's
        out: folder of the report
        encoder: folder or hub id of an export of TurboEdit or of StyleDiffusion; null with --backbone
        backbone: folder or hub id of a Stable Diffusion pipeline, for many-step editors; null takes the one in the
            export of StyleDiffusion
        num: number of images; null for all
        shapes: square crops the pictures of a folder at the centre, buckets keeps their shapes as data.caption
            --shapes buckets does; shards are taken as they are
        steps: numbers of steps of TurboEdit, each an inversion of its own; null for those of 1, 2 and 4 that the
            encoder has
        editors: names; with an export of TurboEdit of turboedit, ddim, ddpm, ddpm_residual, all but ddpm by default;
            else stylediffusion_amortised, stylediffusion_refined, ddim, null_text, npi, direct, ddpm by default, and by
            name also stylediffusion (fitted to each image) with its ablations, and prox_npi
        num_steps: DDIM steps of many-step editors; null for those of the export, or 50
        guidance: guidance of many-step editors; null for that of the export, or 7.5
        null_text: the optimisations of null-text inversion
        clip: CLIP whose image tokens StyleDiffusion maps, where no export brings its own; folder or hub id, null leaves
            StyleDiffusion out
        variant: file variant of --backbone's weights, such as fp16
        lpips: torchvision's weights of AlexNet (.pth or .safetensors); null takes torch hub's copy
        features: network of FID and KID: Inception v3 as TorchScript (inception-2015-12-05.pt), folder or hub id of a
            CLIPModel; null leaves both out
        batch: images at a time
        dtype: type of UNets and text encoders; auto is what the export holds on a GPU, and on a CPU float32, but
            bfloat16 for one as large as SDXL
        device: auto, cpu, cuda ...
    """
    at_least_one(num=num, batch=batch, num_steps=num_steps)
    if encoder is None and backbone is None:
        raise ValueError("there is nothing to reconstruct with: give --encoder, an export, or --backbone, a pipeline")
    if encoder is not None:
        folder_or_hub_id(encoder, "--encoder")
    if backbone is not None:
        folder_or_hub_id(backbone, "--backbone", "folder of a Stable Diffusion pipeline")
    existing(data, "--data")
    if lpips is not None:
        existing(lpips, "--lpips", "file of weights")

    from data.jobs.device import choose_device
    from eval.case_edits.captioned import captioned_pictures
    from eval.metrics.distribution import load_features
    from eval.metrics.lpips import load_lpips
    from eval.metrics.pixels import Metric, ssim
    from eval.reconstructions.batches import BatchArchive
    from eval.reconstructions.bench import ReconstructionBench
    from eval.reconstructions.fidelity import pixel_mse
    from eval.reconstructions.figures import gather, reconstruction_results, reconstruction_summary
    from eval.reconstructions.page import write_reconstruction_page
    from eval.reconstructions.subjects import FewSteps, ManySteps, load_subject

    place = choose_device(device)
    few = FewSteps(steps, editors)
    many = ManySteps(backbone, editors, num_steps, guidance, null_text, clip, variant)
    subject = load_subject(encoder, few, many, place, dtype)
    metrics: dict[str, Metric] = {"mse": pixel_mse, "ssim": ssim}
    network, about_lpips = load_lpips("alex", lpips, place)
    if network is not None:
        metrics["lpips"] = network
    extractor, about_features = None, "FID and KID are left out: give --features"
    if features is not None:
        extractor, about_features = load_features(features, place)
    logger.info("%s\n%s", about_lpips, about_features)

    decided = {**subject.decided_by, "lpips": about_lpips, "features": about_features}
    bench = ReconstructionBench(subject.backbone, subject.lines, metrics, extractor, subject.every_step)
    samples = captioned_pictures(data, subject.backbone.image_size, num, shapes)
    record = gather(bench.batches(samples, batch, BatchArchive(out / "batches", decided), num), extractor)
    results = reconstruction_results(record, subject.lines, ("psnr", *metrics), subject.every_step)
    results["about"] = about(
        place,
        encoder=encoder,
        **subject.about,
        data=data,
        shapes=shapes,
        lpips=about_lpips,
        features=about_features,
        num=num,
        batch=batch,
        dtype=decided["dtype"],
    )
    finish(
        out,
        results,
        reconstruction_summary(results),
        {"reconstructions.csv": record.rows},
        lambda: write_reconstruction_page(out, results, record.pictures, record.captions),
    )
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.reconstruction", evaluate_reconstruction, argv)


if __name__ == "__main__":
    main()
