"""Reconstruction of captioned images in 1, 2 and 4 steps, beside the VAE's ceiling (TurboEdit's table 2).

    python -m eval.reconstruction --encoder EXPORT --data SHARDS_OR_IMAGE_FOLDER --out DIR

Each number of steps is an inversion of its own. Leaves DIR/index.html, results.json and reconstructions.csv (a row for
each image, editor and number of steps, and for the most steps one after each). The same command goes on where it was:
finished batches lie in DIR/batches.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.jobs.command import existing, run
from eval.harness.options import Dtype, Shapes, folder_or_hub_id
from eval.harness.results import about, at_least_one, finish
from eval.harness.training import training_steps

logger = logging.getLogger(__name__)


def evaluate_reconstruction(
    encoder: str,
    data: Path,
    out: Path,
    num: int | None = None,
    shapes: Shapes = "square",
    steps: tuple[int, ...] | None = None,
    editors: tuple[str, ...] = ("turboedit", "ddim", "ddpm_residual"),
    lpips: Path | None = None,
    features: str | None = None,
    batch: int = 16,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> dict[str, Any]:
    """Measure how well an encoder and other inversions on its generator reconstruct captioned images.

    Args:
        encoder: folder or hub id of an exported encoder
        data: shards with images (made by data.caption), or a folder of pictures with captions (.txt, metadata.jsonl)
        out: folder of the report
        num: number of images; null for all
        shapes: square crops the pictures of a folder at the centre, buckets keeps their shapes as data.caption
            --shapes buckets does; shards are taken as they are
        steps: numbers of steps, each an inversion of its own; null for those of 1, 2 and 4 that the encoder has
        editors: among turboedit, ddim, ddpm, ddpm_residual
        lpips: torchvision's weights of AlexNet (.pth or .safetensors); null takes torch hub's copy
        features: network of FID and KID: Inception v3 as TorchScript (inception-2015-12-05.pt), folder or hub id of a
            CLIPModel; null leaves both out
        batch: images at a time
        dtype: type of UNets and text encoders; auto is what the export holds on a GPU, and on a CPU float32, but
            bfloat16 for one as large as SDXL
        device: auto, cpu, cuda ...
    """
    at_least_one(num=num, batch=batch)
    folder_or_hub_id(encoder, "--encoder")
    existing(data, "--data")
    if lpips is not None:
        existing(lpips, "--lpips", "file of weights")

    from data.jobs.device import choose_device
    from eval.harness.captioned import each_captioned_image
    from eval.harness.exports import checked_steps, export_folder, load_encoder
    from eval.harness.fingerprints import backbone_settings
    from eval.harness.precision import name_of
    from eval.metrics.distribution import load_features
    from eval.metrics.lpips import load_lpips
    from eval.metrics.pixels import Metric, ssim
    from eval.reconstructions.batches import BatchArchive
    from eval.reconstructions.bench import ReconstructionBench, chosen_lines
    from eval.reconstructions.fidelity import pixel_mse
    from eval.reconstructions.figures import gather, reconstruction_results, reconstruction_summary
    from eval.reconstructions.page import write_reconstruction_page
    from models.fingerprints import weights_digest

    place = choose_device(device)
    pipeline = load_encoder(encoder, place, dtype)
    lines = chosen_lines(pipeline, checked_steps(pipeline, steps), editors)
    metrics: dict[str, Metric] = {"mse": pixel_mse, "ssim": ssim}
    network, about_lpips = load_lpips("alex", lpips, place)
    if network is not None:
        metrics["lpips"] = network
    extractor, about_features = None, "FID and KID are left out: give --features"
    if features is not None:
        extractor, about_features = load_features(features, place)
    logger.info("%s\n%s", about_lpips, about_features)

    decided = {
        "encoder": weights_digest(pipeline.encoder),
        "generator": backbone_settings(pipeline.backbone),
        "dtype": name_of(pipeline.encoder.dtype),
        "lines": [line.title for line in lines],
        "lpips": about_lpips,
        "features": about_features,
    }
    bench = ReconstructionBench(pipeline.backbone, lines, metrics, extractor)
    samples = each_captioned_image(data, pipeline.backbone.image_size, num, shapes)
    record = gather(bench.batches(samples, batch, BatchArchive(out / "batches", decided), num), extractor)
    results = reconstruction_results(record, lines, ("psnr", *metrics))
    results["about"] = about(
        place,
        encoder=encoder,
        training=training_steps(export_folder(encoder)),
        timesteps=pipeline.timesteps,
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
