"""Many-step editors on scenes against the truth, or on your pictures by what needs none: edits and reconstructions.

    python -m eval.many_step --config configs/stylediffusion/comparison_miniature.yaml
    python -m eval.many_step --backbone models/miniature/teacher --out DIR [--editors '[null_text, imagic]']
    python -m eval.many_step --backbone SD --data PIE_BENCH_OR_PHOTOGRAPHS --num_steps 50 --guidance 7.5 --out DIR

Without --data the edits are scenes', with strengths chosen on validation. PIE-Bench's cases and photographs, which
`python -m eval.ablation --help` describes, are measured at all strengths. Leaves DIR/index.html, results.json,
edits.csv, reconstructions.csv and DIR/kept: what is finished is read from there when the command is started again.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.jobs.command import existing, run
from eval.editors.options import NEGATIVE, ImagicConfig, InjectionSchedule, NullTextSchedule, StyleTaus
from eval.harness.options import Dtype, folder_or_hub_id
from eval.harness.results import about, at_least_one
from eval.harness.training import training_steps
from eval.metrics.config import MetricConfig

if TYPE_CHECKING:
    import torch

    from eval.editors.editor import Editor
    from eval.editors.models import ManyStepModel
    from eval.scene_edits.judge import Judge
    from eval.scene_edits.run import RunSetup

logger = logging.getLogger(__name__)

MINIATURE_IMAGIC = ImagicConfig(embedding_steps=100, embedding_lr=3e-3, unet_steps=150, unet_lr=3e-5, draws=4)
"""Fits of the miniature, in half a minute an image (EXPERIMENTS.md)."""

STYLE_TAUS = InjectionSchedule()

_METRICS = MetricConfig()

MINIATURE_CLIP = "models/miniature/clip"

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
    data: Path | None = None,
    target: tuple[str, ...] = (),
    instruction: tuple[str, ...] = (),
    captioner: str | None = None,
    taus: InjectionSchedule = STYLE_TAUS,
    null_text: NullTextSchedule = MINIATURE_NULL_TEXT,
    imagic: ImagicConfig = MINIATURE_IMAGIC,
    attributes: Path = Path("models/miniature/attributes"),
    clip: str | None = MINIATURE_CLIP,
    metrics: MetricConfig = _METRICS,
    batch: int = 30,
    seed: int = 0,
    dtype: Dtype = "auto",
    variant: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure the editors of a guided, many-step backbone on edits of scenes, of PIE-Bench or of photographs.

    Of scenes strengths are chosen on validation, once for all edits; all that is reported comes from test scenes. The
    usual steps, guidance, fits and batch are those of the miniature.

    Args:
        backbone: Folder or hub id of a Stable Diffusion pipeline
        out: Folder of the report; an evaluation with the same options goes on where it was interrupted
        editors: Names of those that are compared, beside the references; null for all but StyleDiffusion's ablations
            (stylediffusion_no_p2plus, stylediffusion_words, stylediffusion_keys, stylediffusion_both,
            stylediffusion_direct, stylediffusion_no_attention, stylediffusion_paper_form, stylediffusion_short) and
            what is compared on request (masactrl, plug_and_play, pix2pix_zero, each alone and as direct_..., leditspp)
        num_steps: DDIM steps
        guidance: Guidance of all editors; eval.caption_accuracy finds the one at which the backbone obeys best
        num: Test edits of each kind: scenes have nine kinds, PIE-Bench ten, photographs those of their rows or one
        num_validation: Validation edits of each kind, for the choice of strengths
        num_edits: Fewer of both for single editors that take long, such as --num_edits.imagic 2
        num_reconstructions: Number of test scenes whose reconstructions are measured, to the next whole batch
        encoder: Export of a train.stylediffusion run, for the amortised forms; null leaves them out
        data: Folder of PIE-Bench, or of captioned photographs; null takes scenes
        target: Descriptions of edited photographs, for those whose row has no edit of its own
        instruction: Orders such as "make the cat black", likewise; --captioner makes targets of them
        captioner: Folder or hub id of an image-and-text model, which changes descriptions by instructions
        taus: Shares that StyleDiffusion's edits share with the source, beside their strength
        null_text: The optimisations of null-text inversion
        imagic: The fits of Imagic
        attributes: Folder of the reader of scenes' attributes
        clip: Folder or hub id of a CLIPModel, for the image tokens of StyleDiffusion where no encoder brings its own,
            and of scenes for text similarity and structure distance; null leaves these out
        metrics: The networks that measure edits of --data, those of PIE-Bench's tables by default
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
    if data is None:
        existing(attributes, "--attributes", "folder of an attribute reader")
        if target or instruction or captioner:
            raise ValueError("--target, --instruction and --captioner are for pictures of your own: give --data")
    else:
        existing(data, "--data", "folder of PIE-Bench or of captioned photographs")

    from data.jobs.device import choose_device
    from eval.editors.catalogue import Command, available
    from eval.editors.models import Needs
    from eval.harness.exports import export_folder
    from eval.harness.precision import name_of
    from eval.scene_edits.run import RunSetup as Setup
    from eval.scene_edits.run import kept_results

    place, kept = choose_device(device), kept_results(out)
    settings = _load_model(backbone, encoder, clip, num_steps, guidance, place, dtype, variant, scenes=data is None)
    settings = replace(
        settings,
        null_text=null_text,
        imagic=imagic,
        injection=StyleTaus(taus.v, taus.u),
        negative="" if data is None else NEGATIVE,
    )
    known = available(Command.MANY_STEP, settings)
    for name, reason in known.left_out.items():
        logger.warning("%s is left out: %s", name, reason)
    compared = known.choose(editors, tuple(num_edits or ()))
    conditions = about(
        place,
        backbone=backbone,
        dtype=name_of(settings.backbone.unet.dtype),
        editors=editors,
        num_steps=num_steps,
        guidance=guidance,
        num=num,
        num_edits=num_edits,
        num_reconstructions=num_reconstructions,
        encoder=encoder,
        training=None if encoder is None else training_steps(export_folder(encoder)),
        taus=taus,
        null_text=null_text,
        imagic=imagic,
        clip=clip,
        batch=batch,
    )

    def setup_of(judge: "Judge", pictured: int | None) -> Setup:
        masked = [entry.name for entry, _ in known.editors if entry.needs & Needs.MASK]
        edits = num_edits or {}
        return Setup(settings.backbone, judge, batch, kept, edits, masked=masked, pictured=pictured)

    if data is None:
        return _on_scenes(
            out, compared, setup_of, conditions, attributes, clip, num, num_validation, num_reconstructions, seed, place
        )
    from eval.case_edits.comparison import report_cases
    from eval.case_edits.judge import CaseJudge
    from eval.case_edits.wanted import Wanted, captioner_of
    from eval.metrics.networks import load_metric_models

    judge = CaseJudge(load_metric_models(metrics, place), batch)
    maker = captioner_of(captioner, backbone, device)
    wanted = Wanted(data, settings.backbone.image_size, num, target, instruction, maker, kept)
    return report_cases(out, wanted, compared, setup_of, judge, conditions, known.left_out, num_reconstructions, place)


def _load_model(
    backbone: str,
    encoder: str | None,
    clip: str | None,
    num_steps: int,
    guidance: float,
    device: "torch.device",
    dtype: Dtype,
    variant: str | None,
    scenes: bool,
) -> "ManyStepModel":
    """The guided model, with StyleDiffusion's parts where they are named; of scenes it has to have their size."""
    from data.world.render import SIDE
    from eval.editors.models import ManyStepModel
    from eval.harness.exports import load_mapper, load_scene_backbone
    from eval.harness.precision import guided_dtype
    from models.backbone import Backbone
    from models.clip import ImageTokens
    from models.ddim import Ddim

    if scenes:
        model = load_scene_backbone(backbone, device, dtype, variant)
    else:
        model = Backbone.load(backbone, device=device, dtype=guided_dtype(dtype, backbone, device), variant=variant)
    settings = ManyStepModel(model, Ddim(model.schedule, num_steps), guidance)
    if encoder is not None:
        exported = load_mapper(encoder, device)
        exported.check(num_steps, guidance)
        return replace(settings, tokens=exported.tokens, mapper=exported.mapper, into=exported.into)
    if clip == MINIATURE_CLIP and model.image_size != SIDE:
        logger.warning(
            "StyleDiffusion is left out: --clip is the miniature's, which knows scenes alone; its own is "
            "openai/clip-vit-base-patch16"
        )
        clip = None
    return settings if clip is None else replace(settings, tokens=ImageTokens.load(str(clip), device))


def _on_scenes(
    out: Path,
    compared: Sequence["Editor"],
    setup_of: Callable[["Judge", int | None], "RunSetup"],
    conditions: dict[str, Any],
    attributes: Path,
    clip: str | None,
    num: int,
    num_validation: int,
    num_reconstructions: int,
    seed: int,
    device: "torch.device",
) -> dict[str, Any]:
    """Compare and report on scenes."""
    from eval.scene_edits.edit_set import EditSet
    from eval.scene_edits.figures import below_vae, noise_entries, paired_figures, reconstruction_figures
    from eval.scene_edits.judge import load_judge
    from eval.scene_edits.page import write_many_step_page
    from eval.scene_edits.protocol import compare_edits, finish_comparison
    from eval.scene_edits.result import EditorResult
    from eval.scene_edits.run import run_editors

    setup = setup_of(load_judge(attributes, None if clip is None else Path(clip), device), None)

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
        device=device,
    )
    vae = found.vae_rows(setup.backbone)
    reconstruction = reconstruction_figures(vae, found.test)
    for name, result in found.test.items():
        if result.reconstruction_rows:
            reconstruction[name]["below_vae"] = below_vae(vae, result.reconstruction_rows).to_dict()
    results = {
        "reconstruction": reconstruction,
        "noise": noise_entries(found.test),
        **found.figures(),
        "paired": paired_figures(found.test, found.strengths, next(iter(found.test))),
        "about": conditions | {"num_validation": num_validation, "attributes": str(attributes), "seed": seed},
    }
    finish_comparison(out, found, results, lambda: write_many_step_page(out, results, found), vae)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.many_step", compare_many_step, argv)


if __name__ == "__main__":
    main()
