"""Null-text inversion against its variants: how well guided sampling gives back a picture, by the number of updates.

    python -m eval.null_text_ablation --backbone models/miniature/teacher --out runs/null_text_ablation

The ablation of Mokady et al. 2023 (section 4, fig. 4) on test scenes. Leaves DIR/index.html, results.json,
reconstructions.csv (a row for each scene, variant and number of iterations) and DIR/kept: what is finished is read from
there when the command is started again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from data.jobs.command import run
from eval.harness.options import Dtype, folder_or_hub_id
from eval.harness.results import about, at_least_one, finish

VARIANT_NAMES = (
    "null_text",
    "null_text_random_caption",
    "textual_inversion_pivot",
    "null_text_random_pivot",
    "null_text_global",
    "textual_inversion",
    "null_text_without_pivot",
)
_NUM_CAPTIONS = 64


def ablate_null_text(
    out: Path,
    backbone: str = "models/miniature/teacher",
    num: int = 8,
    iterations: tuple[int, ...] = (0, 1, 2, 5, 10, 20),
    variants: tuple[str, ...] = VARIANT_NAMES,
    num_steps: int = 20,
    guidance: float = 3.0,
    lr: float = 1e-2,
    split: Literal["validation", "test"] = "test",
    batch: int = 8,
    seed: int = 0,
    dtype: Dtype = "auto",
    variant: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure the reconstructions of null-text inversion and of its variants after more and more iterations.

    Nothing stops early here, so that all variants have taken the same number of updates.

    Args:
        out: Folder of the report; an evaluation with the same options goes on where it was interrupted
        backbone: Folder or hub id of a Stable Diffusion pipeline that makes scenes
        num: Number of scenes
        iterations: Iterations of each timestep; 0 is DDIM inversion
        variants: Some of null_text, null_text_random_caption, textual_inversion_pivot, null_text_random_pivot,
            null_text_global, textual_inversion, null_text_without_pivot
        num_steps: DDIM steps
        guidance: Guidance of the sampling
        lr: Learning rate of the first timestep
        split: Scenes that are taken; validation for the choice of lr and iterations
        batch: Images at a time
        seed: Seed of the scenes
        dtype: Type of the UNet and the text encoders; auto is float32, but for an SDXL float16 on a GPU and
            bfloat16 on a CPU
        variant: File variant of the backbone's weights, such as fp16
        device: Device by name, such as cpu or cuda:1; auto takes a GPU where there is one
    """
    at_least_one(num=num, batch=batch)
    if not iterations or min(iterations) < 0:
        raise ValueError(f"iterations are {list(iterations)}; expected numbers from 0 on")
    if unknown := sorted(set(variants) - set(VARIANT_NAMES)):
        raise ValueError(f"variants {', '.join(unknown)} are unknown; expected some of {', '.join(VARIANT_NAMES)}")
    folder_or_hub_id(backbone, "--backbone", "folder of a Stable Diffusion pipeline")

    from data.jobs.device import choose_device
    from data.jobs.kept import digest
    from data.world.captions import long_caption
    from data.world.edits import EDIT_KINDS
    from data.world.splits import sample_edits, sample_scene
    from eval.editors.editor import settings_of
    from eval.editors.null_text_variants import random_captions
    from eval.editors.options import NEVER, NullTextSchedule
    from eval.harness.exports import load_scene_backbone
    from eval.harness.fingerprints import backbone_settings
    from eval.harness.precision import beside_float32, name_of
    from eval.metrics.pixels import Estimate, psnr
    from eval.reconstructions.fidelity import Row, round_trip
    from eval.scene_edits.edit_set import edit_set
    from eval.scene_edits.run import kept_results
    from eval.studies.null_text import (
        RANDOM_CAPTION,
        VARIANTS,
        reconstruction_rows_of,
        variant_figures,
        variants_words,
        write_null_text_page,
    )
    from models.ddim import Ddim

    place = choose_device(device)
    model = load_scene_backbone(backbone, place, dtype, variant)
    ddim = Ddim(model.schedule, num_steps)
    scenes = edit_set([sample_edits(split, seed, i, EDIT_KINDS[i % len(EDIT_KINDS)]) for i in range(num)], place)
    captions = [long_caption(sample_scene("validation", seed, index)) for index in range(_NUM_CAPTIONS)]
    shared = [backbone_settings(model), scenes.digest, captions, batch, place.type, *beside_float32(model.unet.dtype)]
    pieces = {}
    for name in variants:
        for count in iterations:
            schedule = NullTextSchedule(count, lr=lr, stop=NEVER, stop_growth=0.0)
            editor = VARIANTS[name](model, ddim, guidance, schedule=schedule)
            pieces[f"{name}-{count}-{digest(shared, settings_of(editor))}"] = (name, count, editor)
    kept = kept_results(out)
    rounds = {piece: (count + 1) * num for piece, (_, count, _) in pieces.items()}
    for piece in kept.missing(rounds, "null-text ablation", "round"):
        name, count, editor = pieces[piece]
        found: list[Row] = []
        for part in scenes.batches(batch):
            prompts = part.source_prompts
            if name == RANDOM_CAPTION:
                prompts = tuple(random_captions(part.sources, prompts, captions))
            found += reconstruction_rows_of(name, count, editor, part, prompts)
            kept.tick((count + 1) * len(part))
        kept.keep(piece, found)
    rows = [row for piece in pieces for row in kept.read(piece)]
    trip = round_trip(model, scenes.sources)
    figures = variant_figures(rows, variants, iterations, num_steps)
    results = {
        "variants": figures,
        "vae": {"psnr": Estimate.of_measure("psnr", psnr(trip.decoded, trip.images).tolist()).to_dict()},
        "about": about(
            place,
            backbone=backbone,
            dtype=name_of(model.unet.dtype),
            scenes=num,
            iterations=iterations,
            num_steps=num_steps,
            guidance=guidance,
            lr=lr,
            split=split,
            batch=batch,
            seed=seed,
        ),
    }
    finish(
        out, results, variants_words(figures), {"reconstructions.csv": rows}, lambda: write_null_text_page(out, results)
    )
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.null_text_ablation", ablate_null_text, argv)


if __name__ == "__main__":
    main()
