"""Many-step editors on scenes: reconstruction under guidance, and edits against the truth, beside the references.

    python -m eval.many_step --config configs/stylediffusion/comparison_miniature.yaml
    python -m eval.many_step --backbone models/miniature/teacher --out DIR [--editors '[null_text, imagic]']

Leaves DIR/index.html, results.json, edits.csv, reconstructions.csv and DIR/trials: what is finished is read from there
when the command is started again.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from data.jobs.command import run
from eval.editors.catalogue import Command, ManyStepModel, Needs, available
from eval.editors.options import ImagicConfig, InjectionSchedule, NullTextSchedule
from eval.harness.exports import choose_device, load_mapper, load_scene_backbone
from eval.harness.results import write_results, write_table
from eval.metrics.pixels import Estimate
from eval.reconstructions.fidelity import Row, round_trip, vae_rows
from eval.scene_edits.archive import TrialArchive
from eval.scene_edits.contest import Contest
from eval.scene_edits.edit_set import sample_edit_set
from eval.scene_edits.figures import (
    Trials,
    choose_strengths,
    comparison_figures,
    edit_rows,
    noise_entries,
    paired_figures,
    reconstruction_figures,
    summary,
)
from eval.scene_edits.judge import load_judge
from eval.scene_edits.page import write_many_step_report
from models.backbone import Backbone, fingerprint
from models.clip import ImageTokens
from models.ddim import Ddim

logger = logging.getLogger(__name__)

MINIATURE_IMAGIC = ImagicConfig(embedding_steps=100, embedding_lr=3e-3, unet_steps=150, unet_lr=3e-5, draws=4)
"""Fits of the miniature, in half a minute an image (EXPERIMENTS.md)."""

STYLE_TAUS = InjectionSchedule()

MINIATURE_NULL_TEXT = NullTextSchedule(lr=3e-2)
"""The paper's 10 iterations are for 50 steps; with 20 each has more to correct (EXPERIMENTS.md)."""


def compare_many_step(
    backbone: Path,
    out: Path,
    editors: tuple[str, ...] | None = None,
    num_steps: int = 20,
    guidance: float = 3.0,
    num: int = 20,
    num_validation: int = 8,
    num_edits: dict[str, int] | None = None,
    num_reconstructions: int = 60,
    encoder: Path | None = None,
    taus: InjectionSchedule = STYLE_TAUS,
    null_text: NullTextSchedule = MINIATURE_NULL_TEXT,
    imagic: ImagicConfig = MINIATURE_IMAGIC,
    attributes: Path = Path("models/miniature/attributes"),
    clip: Path | None = Path("models/miniature/clip"),
    batch: int = 30,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure the editors of a guided, many-step backbone on edits of scenes.

    Strengths are chosen on validation, once for all edits; all that is reported comes from test scenes.

    Args:
        backbone: folder of a Stable Diffusion pipeline
        out: folder of the report; an evaluation with the same options goes on where it was interrupted
        editors: names of those that are compared, beside the references; null for all but StyleDiffusion's ablations
            (stylediffusion_no_p2plus, stylediffusion_keys, stylediffusion_both, stylediffusion_direct,
            stylediffusion_no_attention, stylediffusion_paper_form, stylediffusion_short) and what is compared on
            request (masactrl, plug_and_play, pix2pix_zero, each alone and as direct_..., leditspp)
        num_steps: of DDIM
        guidance: of all editors; eval.caption_accuracy finds the one at which the backbone obeys best
        num: test edits of each of the nine kinds
        num_validation: validation edits of each kind, for the choice of strengths
        num_edits: less of both for single editors that take long, such as --num_edits.imagic 2
        num_reconstructions: of how many test scenes the reconstructions are measured, to the next whole batch
        encoder: export of a train.stylediffusion run, for the amortised forms; null leaves them out
        taus: what StyleDiffusion's edits share with the source, beside their strength
        null_text: the optimisations of null-text inversion
        imagic: the fits of Imagic
        attributes: folder of the attribute reader
        clip: folder of a CLIPModel, for text similarity, structure distance and the image tokens of StyleDiffusion;
            null leaves out the first two, and without an encoder the third
        batch: images at a time
        seed: of the scenes
        device: auto, cpu, cuda ...
    """
    counts = {"num": num, "num_validation": num_validation, "num_reconstructions": num_reconstructions, "batch": batch}
    counts |= {f"num_edits.{name}": count for name, count in (num_edits or {}).items()}
    if wrong := [f"{name} is {value}" for name, value in counts.items() if value < 1]:
        raise ValueError(f"{', '.join(wrong)}; expected at least 1")
    place = choose_device(device)
    model = load_scene_backbone(backbone, place)
    settings = ManyStepModel(
        model, Ddim(model.schedule, num_steps), guidance, null_text, negative="", imagic=imagic, injection=taus
    )
    known = available(Command.MANY_STEP, _with_style_parts(settings, clip, encoder))
    for name, reason in known.left_out.items():
        logger.warning("%s is left out: %s", name, reason)
    compared = known.choose(editors, tuple(num_edits or ()))
    judge = load_judge(attributes, clip, place)
    shared = {
        "backbone": [fingerprint(model.unet, dict(model.unet.config)), model.vae_fingerprint, model.text_fingerprint],
        "judges": [fingerprint(judge.reader, {}), judge.clip and fingerprint(judge.clip.model, {})],
    }
    contest = Contest(
        compared,
        model,
        judge,
        batch,
        num_edits=num_edits,
        masked=[entry.name for entry, _ in known.editors if entry.needs & Needs.MASK],
        archive=TrialArchive(out / "trials", shared),
    )
    chosen = choose_strengths(contest.run(sample_edit_set("validation", num_validation, seed, place), "validation"))
    test = sample_edit_set("test", num, seed, place)
    trials = contest.run(test, "test", num_reconstructions)

    vae = _vae_rows(model, test.sources, trials)
    about = {
        "backbone": str(backbone),
        "num_steps": num_steps,
        "guidance": guidance,
        "encoder": None if encoder is None else str(encoder),
        "taus": asdict(taus),
        "null_text": asdict(null_text),
        "imagic": asdict(imagic),
        "device": place.type,
        "seed": seed,
    }
    results = {**_figures(vae, trials, chosen), "about": about}
    write_results(out / "results.json", results)
    write_table(out / "edits.csv", edit_rows(trials, test, "test"))
    reconstructed = [row for trial in trials.values() for row in trial.reconstruction_rows]
    write_table(out / "reconstructions.csv", [*vae, *reconstructed])
    page = write_many_step_report(out, results, test, trials)
    logger.info("%s", summary(results))
    logger.info("report: %s", page)
    return results


def _figures(vae: Sequence[Row], trials: Trials, chosen: Mapping[str, float]) -> dict[str, Any]:
    """All entries of results.json but `about`."""
    reconstruction = reconstruction_figures(vae, trials)
    for name, trial in trials.items():
        if trial.reconstruction_rows:
            reconstruction[name]["below_vae"] = below_vae(vae, trial.reconstruction_rows).to_dict()
    return {
        "reconstruction": reconstruction,
        "noise": noise_entries(trials),
        **comparison_figures(trials, {}, chosen),
        "paired": paired_figures(trials, chosen, next(iter(trials))),
    }


def _with_style_parts(model: ManyStepModel, clip: Path | None, encoder: Path | None) -> ManyStepModel:
    """`model` with what StyleDiffusion needs: the network and tokens of an export, or the tokens of a CLIP."""
    device = model.backbone.unet.device
    if encoder is not None:
        exported = load_mapper(encoder, device)
        exported.check(len(model.ddim), model.guidance)
        return replace(model, tokens=exported.tokens, mapper=exported.mapper, into=exported.into)
    return model if clip is None else replace(model, tokens=ImageTokens.load(str(clip), device))


def _vae_rows(backbone: Backbone, sources: Tensor, trials: Trials) -> list[Row]:
    """Rows of the round trip for every image that an editor has reconstructed."""
    keys = sorted({str(row["key"]) for trial in trials.values() for row in trial.reconstruction_rows})
    return vae_rows(round_trip(backbone, sources[: len(keys)]), {}, keys)


def below_vae(vae: Sequence[Row], rows: Sequence[Row]) -> Estimate:
    """How many dB the last reconstruction of each image is below the VAE's round trip, both against the image."""
    last = max(int(row["step"]) for row in rows)
    ceiling = {row["key"]: float(row["psnr"]) for row in vae}
    return Estimate.of(ceiling[row["key"]] - float(row["psnr"]) for row in rows if int(row["step"]) == last)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.many_step", compare_many_step, argv)


if __name__ == "__main__":
    main()
