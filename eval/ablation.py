"""TurboEdit's ablations, and what becomes of each claim of its paper: on scenes with known truth, or on your pictures.

    python -m eval.ablation --encoder EXPORT --out DIR --lambda_encoders '{"0": EXPORT2, "1e-3": EXPORT3}' \
        --captioner MODEL --teacher.path PIPELINE
    python -m eval.ablation --encoder EXPORT --data PIE_BENCH --out DIR [--captioner MODEL]
    python -m eval.ablation --encoder EXPORT --data PHOTOGRAPHS --target "a dog on a sofa" --out DIR

Without --data the edits are scenes', whose truth is known. PIE-Bench's folder has prompts and masks of its own. Of a
folder of photographs each has its caption (.txt beside it, or metadata.jsonl), and --target, or the columns `target`,
`instruction`, `mask` and `kind` of its row in metadata.jsonl, .csv or .parquet, say what becomes of it. What needs the
truth is then left out, in words, and claims that rest on it are not testable.

Leaves DIR/index.html, results.json, edits.csv (a row for each part, setting and edit) and DIR/kept: what is finished is
read from there when the command is started again. StyleDiffusion's claims are eval.style_claims', its ablation is
eval.many_step with configs/stylediffusion/ablation_miniature.yaml.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.jobs.command import existing, run
from eval.harness.options import Dtype, folder_or_hub_id
from eval.harness.results import about, at_least_one, finish
from eval.harness.training import training_steps
from eval.metrics.config import MetricConfig

logger = logging.getLogger(__name__)

_METRICS = MetricConfig()

PARTS = (
    "steps",
    "lambda",
    "prompts",
    "strength",
    "mask",
    "composed",
    "instructions",
    "disentangled",
    "one_step",
    "renoise",
    "reweighting",
)


@dataclass(frozen=True)
class DistilledFrom:
    """The model from which the encoder's generator was distilled."""

    path: str | None = None
    """Folder or hub id, such as models/miniature/teacher; null compares the generator with none."""
    num_steps: int = 20
    """DDIM steps."""
    guidance: float = 3.0
    """Guidance; eval.caption_accuracy finds the one at which it obeys best."""


NO_TEACHER = DistilledFrom()


def ablate(
    encoder: str,
    out: Path,
    data: Path | None = None,
    target: tuple[str, ...] = (),
    instruction: tuple[str, ...] = (),
    second: str = "at night",
    num: int = 20,
    split: str = "test",
    steps: tuple[int, ...] | None = None,
    lambda_encoders: dict[str, str] | None = None,
    kl_weight: float | None = None,
    captioner: str | None = None,
    teacher: DistilledFrom = NO_TEACHER,
    parts: tuple[str, ...] = PARTS,
    attributes: Path = Path("models/miniature/attributes"),
    clip: Path | None = Path("models/miniature/clip"),
    metrics: MetricConfig = _METRICS,
    batch: int = 30,
    seed: int = 0,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> dict[str, Any]:
    """Take TurboEdit's parts away one by one, and say of each claim of its paper whether it holds here.

    A claim is confirmed if the 95 % interval of each of its comparisons, by bootstrap over the edits and paired where
    settings share them, lies on the claimed side.

    Args:
        encoder: Folder or hub id of an exported encoder
        out: Folder of the report; an evaluation with the same options goes on where it was interrupted
        data: Folder of PIE-Bench, or of captioned photographs; null takes scenes
        target: Descriptions of edited photographs, for those whose row has no edit of its own
        instruction: Orders such as "make the cat black", likewise; --captioner makes targets of them
        second: Words of the second change of the part composed, put behind the descriptions of PIE-Bench's cases and
            photographs
        num: Edits of each kind: scenes have nine kinds, PIE-Bench ten, photographs those of their rows or one
        split: Scenes of the edits: test, or validation to settle settings on
        steps: Numbers of steps that are compared; null for those of 1, 2 and 4 that the encoder has
        lambda_encoders: Exports of encoders that differ in the training's kl_weight alone, by that weight, as JSON
        kl_weight: Weight of the KL term in the encoder's own training; null reads it from the export's README.md
        captioner: Folder or hub id of an image-and-text model such as models/miniature/llava, for edits by instruction
            and for the detailed prompts of PIE-Bench
        teacher: What the generator was distilled from, for the same noise under edited captions
        parts: Some of steps, lambda, prompts, strength, mask, composed, instructions, disentangled, one_step, renoise,
            reweighting
        attributes: Folder of the reader of scenes' attributes
        clip: Folder of a CLIPModel for scenes; null leaves CLIP similarity out
        metrics: The networks that measure edits of --data, those of PIE-Bench's tables by default
        batch: Images at a time
        seed: Seed of the scenes
        dtype: Type of UNets and text encoders; auto is what the export holds on a GPU, and on a CPU float32, but
            bfloat16 for one as large as SDXL
        device: Device by name, such as cpu or cuda:1; auto takes a GPU where there is one
    """
    at_least_one(num=num, batch=batch)
    if unknown := sorted(set(parts) - set(PARTS)):
        raise ValueError(f"parts {', '.join(unknown)} are unknown; expected some of {', '.join(PARTS)}")
    folder_or_hub_id(encoder, "--encoder")
    if data is None:
        existing(attributes, "--attributes", "folder of an attribute reader")
        if target or instruction:
            raise ValueError("--target and --instruction are for photographs: give their folder with --data")
    else:
        existing(data, "--data", "folder of PIE-Bench or of captioned photographs")

    from data.jobs.device import choose_device
    from eval.ablations.bench import Ablation
    from eval.ablations.composed import ablate_composed
    from eval.ablations.disentangled import ablate_disentangled, load_teacher
    from eval.ablations.kl_weight import ablate_lambda, load_lambda_encoders, read_lambda
    from eval.ablations.mask import ablate_mask
    from eval.ablations.one_step import ablate_one_step, ablate_renoise
    from eval.ablations.page import claims_words, write_ablation_page
    from eval.ablations.prompts import ablate_instructions, ablate_prompts
    from eval.ablations.reweighting import ablate_reweighting
    from eval.ablations.steps import ablate_steps
    from eval.ablations.strength import ablate_strength
    from eval.ablations.subjects import scene_subjects, without_network
    from eval.case_edits.judge import CaseJudge
    from eval.case_edits.subjects import case_subjects
    from eval.case_edits.wanted import Wanted, captioner_of
    from eval.claims.judging import judged
    from eval.claims.turboedit import CLAIMS
    from eval.harness.exports import checked_steps, export_folder, generator_place, load_encoder, load_scene_encoder
    from eval.harness.precision import name_of
    from eval.metrics.networks import load_metric_models
    from eval.scene_edits.judge import load_judge
    from eval.scene_edits.run import kept_results
    from eval.scene_edits.written_captions import kept_captions

    started = time.perf_counter()
    place, kept = choose_device(device), kept_results(out)
    pipeline = (load_scene_encoder if data is None else load_encoder)(encoder, place, dtype)
    counts = checked_steps(pipeline, steps)
    others = load_lambda_encoders(lambda_encoders or {}, pipeline, place, dtype)
    own = read_lambda(export_folder(encoder)) if kl_weight is None else kl_weight
    maker = captioner_of(captioner, generator_place(encoder), device)
    if data is None:
        judges = {"attributes": attributes, "clip": clip}
        judge = load_judge(attributes, clip, place)
        subjects = scene_subjects(split, num, seed, judge, captioner, judges, place)
    else:
        networks = CaseJudge(load_metric_models(metrics, place), batch)
        side = pipeline.backbone.image_size
        cases = Wanted(data, side, num, target, instruction, maker, kept)
        subjects = case_subjects(cases, second, networks, place)
        for sentence in subjects.lacking:
            logger.warning("%s", sentence)
    bench = subjects.bench(pipeline, batch, kept)

    def instructions() -> Ablation:
        assert maker is not None, "without a captioner the part is left out"
        return ablate_instructions(bench, *kept_captions(bench.edits, maker, kept, "instructions"))

    def disentangled() -> Ablation:
        loaded = None
        if teacher.path is not None:
            loaded = load_teacher(teacher.path, pipeline.backbone, teacher.num_steps, teacher.guidance, place, dtype)
        return ablate_disentangled(bench, loaded, seed)

    makers = {
        "steps": lambda: ablate_steps(bench, counts),
        "lambda": lambda: ablate_lambda(bench, own, others),
        "prompts": lambda: ablate_prompts(bench),
        "strength": lambda: ablate_strength(bench),
        "mask": lambda: ablate_mask(bench),
        "composed": lambda: ablate_composed(bench, subjects.composed),
        "instructions": instructions,
        "disentangled": disentangled,
        "one_step": lambda: ablate_one_step(bench),
        "renoise": lambda: ablate_renoise(bench),
        "reweighting": lambda: ablate_reweighting(bench),
    }
    reasons = {**without_network(pipeline), **subjects.left_out}
    left_out = {name: reason for name, reason in reasons.items() if name in parts}
    for name, reason in left_out.items():
        logger.warning("the part %s is left out: %s", name, reason)
    wanted = [name for name in PARTS if name in parts and name not in left_out]
    made = [makers[name]() for name in wanted]
    for sentence in (sentence for part in made for sentence in part.left_out):
        logger.warning("%s", sentence)
    judged_claims = judged({claim: tests for part in made for claim, tests in part.evidence.items()}, CLAIMS)
    results = {
        "claims": [result.to_dict() for result in judged_claims],
        "parts": {part.name: part.to_dict() for part in made},
        "left_out": left_out,
        "lacking": subjects.lacking,
        "about": about(
            place,
            encoder=encoder,
            training=training_steps(export_folder(encoder)),
            dtype=name_of(pipeline.encoder.dtype),
            timesteps=pipeline.timesteps,
            steps=counts,
            kl_weight=own,
            lambda_encoders=lambda_encoders or {},
            lambda_training={w: training_steps(export_folder(name)) for w, name in (lambda_encoders or {}).items()},
            captioner=captioner,
            teacher=teacher,
            **subjects.about,
            num=num,
            batch=batch,
            changed_kinds=bench.kinds,
            minutes_of_last_start=(time.perf_counter() - started) / 60,
        ),
    }
    tables = {"edits.csv": [row for part in made for row in part.rows()]}
    finish(
        out,
        results,
        claims_words(judged_claims),
        tables,
        lambda: write_ablation_page(out, results, made, judged_claims),
    )
    if subjects.most_missing:
        raise ValueError(f"the report is written, but most is missing: {subjects.most_missing}; the page says why")
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.ablation", ablate, argv)


if __name__ == "__main__":
    main()
