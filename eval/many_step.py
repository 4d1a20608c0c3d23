"""Many-step editors on scenes: reconstruction under guidance, and edits against the truth, beside the references.

    python -m eval.many_step --config configs/stylediffusion/comparison_miniature.yaml
    python -m eval.many_step --backbone models/miniature/teacher --out DIR [--editors '[null_text, imagic]']

Leaves DIR/index.html, results.json, edits.csv, reconstructions.csv and DIR/kept: what is finished is read from there
when the command is started again.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.jobs.command import existing, run
from eval.editors.options import ImagicConfig, InjectionSchedule, NullTextSchedule, StyleTaus
from eval.harness.options import Dtype, folder_or_hub_id
from eval.harness.results import about, at_least_one

logger = logging.getLogger(__name__)

MINIATURE_IMAGIC = ImagicConfig(embedding_steps=100, embedding_lr=3e-3, unet_steps=150, unet_lr=3e-5, draws=4)
"""Fits of the miniature, in half a minute an image (EXPERIMENTS.md)."""

STYLE_TAUS = InjectionSchedule()

MINIATURE_NULL_TEXT = NullTextSchedule(lr=3e-2)
"""The paper's 10 iterations are for 50 steps; with 20 each has more to correct (EXPERIMENTS.md)."""


def compare_many_step(
    backbone: str,
    out: Path,
    editors: tuple[str, ...] | None = None,
    num_steps: int = 20,
    guidance: float = 3.0,
    num: int = 20,
    num_validation: int = 8,
    num_edits: dict[str, int] | None = None,
    num_reconstructions: int = 60,
    encoder: str | None = None,
    taus: InjectionSchedule = STYLE_TAUS,
    null_text: NullTextSchedule = MINIATURE_NULL_TEXT,
    imagic: ImagicConfig = MINIATURE_IMAGIC,
    attributes: Path = Path("models/miniature/attributes"),
    clip: Path | None = Path("models/miniature/clip"),
    batch: int = 30,
    seed: int = 0,
    dtype: Dtype = "auto",
    variant: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure the editors of a guided, many-step backbone on edits of scenes.

    Strengths are chosen on validation, once for all edits; all that is reported comes from test scenes.

    Args:
        backbone: Folder or hub id of a Stable Diffusion pipeline
        out: Folder of the report; an evaluation with the same options goes on where it was interrupted
        editors: Names of those that are compared, beside the references; null for all but StyleDiffusion's ablations
            (stylediffusion_no_p2plus, stylediffusion_words, stylediffusion_keys, stylediffusion_both,
            stylediffusion_direct, stylediffusion_no_attention, stylediffusion_paper_form, stylediffusion_short) and
            what is compared on request (masactrl, plug_and_play, pix2pix_zero, each alone and as direct_..., leditspp)
        num_steps: DDIM steps
        guidance: Guidance of all editors; eval.caption_accuracy finds the one at which the backbone obeys best
        num: Test edits of each of the nine kinds
        num_validation: Validation edits of each kind, for the choice of strengths
        num_edits: Fewer of both for single editors that take long, such as --num_edits.imagic 2
        num_reconstructions: Number of test scenes whose reconstructions are measured, to the next whole batch
        encoder: Export of a train.stylediffusion run, for the amortised forms; null leaves them out
        taus: Shares that StyleDiffusion's edits share with the source, beside their strength
        null_text: The optimisations of null-text inversion
        imagic: The fits of Imagic
        attributes: Folder of the attribute reader
        clip: Folder of a CLIPModel, for text similarity, structure distance and the image tokens of StyleDiffusion;
            null leaves out the first two, and without an encoder the third
        batch: Images at a time
        seed: Seed of the scenes
        dtype: Type of the UNet and the text encoders; auto is float32, but for an SDXL float16 on a GPU and
            bfloat16 on a CPU
        variant: File variant of the backbone's weights, such as fp16
        device: Device by name, such as cpu or cuda:1; auto takes a GPU where there is one
    """
    counts = {f"num_edits.{name}": count for name, count in (num_edits or {}).items()}
    counts |= {"num": num, "num_validation": num_validation, "num_reconstructions": num_reconstructions}
    at_least_one(**counts, batch=batch)
    folder_or_hub_id(backbone, "--backbone", "folder of a Stable Diffusion pipeline")
    if encoder is not None:
        folder_or_hub_id(encoder, "--encoder")
    existing(attributes, "--attributes", "folder of an attribute reader")

    from data.jobs.device import choose_device
    from eval.editors.catalogue import Command, available
    from eval.editors.models import ManyStepModel, Needs
    from eval.harness.exports import load_mapper, load_scene_backbone
    from eval.harness.precision import name_of
    from eval.scene_edits.edit_set import EditSet
    from eval.scene_edits.figures import below_vae, noise_entries, paired_figures, reconstruction_figures
    from eval.scene_edits.judge import load_judge
    from eval.scene_edits.page import write_many_step_page
    from eval.scene_edits.protocol import compare_edits, finish_comparison
    from eval.scene_edits.result import EditorResult
    from eval.scene_edits.run import RunSetup, kept_results, run_editors
    from models.clip import ImageTokens
    from models.ddim import Ddim

    place = choose_device(device)
    model = load_scene_backbone(backbone, place, dtype, variant)
    shares = StyleTaus(taus.v, taus.u)
    settings = ManyStepModel(
        model, Ddim(model.schedule, num_steps), guidance, null_text, negative="", imagic=imagic, injection=shares
    )
    if encoder is not None:
        exported = load_mapper(encoder, place)
        exported.check(num_steps, guidance)
        settings = replace(settings, tokens=exported.tokens, mapper=exported.mapper, into=exported.into)
    elif clip is not None:
        settings = replace(settings, tokens=ImageTokens.load(str(clip), place))
    known = available(Command.MANY_STEP, settings)
    for name, reason in known.left_out.items():
        logger.warning("%s is left out: %s", name, reason)
    compared = known.choose(editors, tuple(num_edits or ()))
    setup = RunSetup(
        model,
        load_judge(attributes, clip, place),
        batch,
        kept_results(out),
        num_edits=num_edits or {},
        masked=[entry.name for entry, _ in known.editors if entry.needs & Needs.MASK],
    )

    def run_split(
        edits: EditSet, split: str, num_reconstructions: int = 0, strengths: Mapping[str, float] | None = None
    ) -> dict[str, EditorResult]:
        return run_editors(compared, edits, setup, split, num_reconstructions=num_reconstructions, strengths=strengths)

    found = compare_edits(
        run_split,
        num=num,
        num_validation=num_validation,
        num_reconstructions=num_reconstructions,
        seed=seed,
        device=place,
    )
    vae = found.vae_rows(model)
    reconstruction = reconstruction_figures(vae, found.test)
    for name, result in found.test.items():
        if result.reconstruction_rows:
            reconstruction[name]["below_vae"] = below_vae(vae, result.reconstruction_rows).to_dict()
    results = {
        "reconstruction": reconstruction,
        "noise": noise_entries(found.test),
        **found.figures(),
        "paired": paired_figures(found.test, found.strengths, next(iter(found.test))),
        "about": about(
            place,
            backbone=backbone,
            dtype=name_of(model.unet.dtype),
            editors=editors,
            num_steps=num_steps,
            guidance=guidance,
            num=num,
            num_validation=num_validation,
            num_edits=num_edits,
            num_reconstructions=num_reconstructions,
            encoder=encoder,
            taus=taus,
            null_text=null_text,
            imagic=imagic,
            attributes=attributes,
            clip=clip,
            batch=batch,
            seed=seed,
        ),
    }
    finish_comparison(out, found, results, lambda: write_many_step_page(out, results, found), vae)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.many_step", compare_many_step, argv)


if __name__ == "__main__":
    main()
