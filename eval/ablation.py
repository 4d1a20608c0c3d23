"""TurboEdit's ablations on scenes with known truth, and what becomes of each claim of its paper.

    python -m eval.ablation --encoder EXPORT --out DIR --lambda_encoders '{"0": EXPORT2, "1e-3": EXPORT3}'

Leaves DIR/index.html, results.json and edits.csv (a row for each part, setting and edit). StyleDiffusion's ablation is
eval.many_step with configs/stylediffusion/ablation_miniature.yaml.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data.captioning.maker import CaptioningConfig, CaptionMaker
from data.jobs.command import run
from data.world.edits import EDIT_KINDS
from data.world.render import SIDE
from eval.ablations.bench import Bench, Part
from eval.ablations.composed import FIRST, WAYS, ablate_composed
from eval.ablations.kl_weight import ablate_lambda, load_lambda_encoders, read_lambda
from eval.ablations.mask import LOCAL, THRESHOLDS, ablate_mask
from eval.ablations.page import write_ablation_page
from eval.ablations.prompts import SAID_BRIEFLY, ablate_instructions, ablate_prompts
from eval.ablations.steps import ablate_steps
from eval.ablations.strength import STRENGTHS, ablate_strength
from eval.claims.turboedit import Comparison, Finding, judged
from eval.editors.few_steps import generator_of
from eval.editors.references import Ceiling
from eval.harness.exports import checked_steps, choose_device, load_encoder
from eval.harness.results import write_results, write_table
from eval.scene_edits.edit_set import EditSet, sample_edit_set
from eval.scene_edits.figures import changed_types
from eval.scene_edits.judge import Judge, References, load_judge
from eval.scene_edits.trial import try_editor
from models.turboedit_pipeline import TurboEditPipeline

logger = logging.getLogger(__name__)

PARTS = ("steps", "lambda", "prompts", "strength", "mask", "composed", "instructions")


def ablate(
    encoder: Path,
    out: Path,
    num: int = 20,
    steps: tuple[int, ...] | None = None,
    lambda_encoders: dict[str, Path] | None = None,
    kl_weight: float | None = None,
    captioner: str | None = None,
    parts: tuple[str, ...] = PARTS,
    attributes: Path = Path("models/miniature/attributes"),
    clip: Path | None = Path("models/miniature/clip"),
    batch: int = 30,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Take TurboEdit's parts away one by one, and say of each claim of its paper whether it holds here.

    A claim is confirmed if the 95 % interval of each of its comparisons, by bootstrap over the edits and paired where
    settings share them, lies on the claimed side.

    Args:
        encoder: folder of an exported encoder
        out: folder of the report
        num: test edits of each of the nine kinds
        steps: numbers of steps that are compared; null for those of 1, 2 and 4 that the encoder has
        lambda_encoders: exports of encoders that differ in the training's kl_weight alone, by that weight, as JSON
        kl_weight: that of the encoder itself; null reads it from the export's README.md
        captioner: folder or hub id of an image-and-text model such as models/miniature/llava, for edits by instruction
        parts: some of steps, lambda, prompts, strength, mask, composed, instructions
        attributes: folder of the attribute reader
        clip: folder of a CLIPModel; null leaves CLIP similarity out
        batch: images at a time
        seed: of the scenes
        device: auto, cpu, cuda ...
    """
    if num < 1 or batch < 1:
        raise ValueError(f"num is {num} and batch is {batch}; expected at least 1")
    if unknown := sorted(set(parts) - set(PARTS)):
        raise ValueError(f"parts {', '.join(unknown)} are unknown; expected some of {', '.join(PARTS)}")
    started = time.perf_counter()
    place = choose_device(device)
    pipeline = load_encoder(encoder, place)
    if pipeline.backbone.image_size != SIDE:
        size = pipeline.backbone.image_size
        raise ValueError(f"the generator of {encoder} makes {size} px images; scenes have {SIDE} px")
    counts = checked_steps(pipeline, steps)
    others = load_lambda_encoders(lambda_encoders or {}, pipeline, place)
    own = read_lambda(encoder) if kl_weight is None else kl_weight
    edits = sample_edit_set("test", num, seed, place)
    work = _work(parts, num, len(counts), len(others), len(pipeline.timesteps), captioner is not None)
    with tqdm(total=sum(work.values()) + len(edits), unit="edit", desc="ablation") as bar:
        bench = _bench(pipeline, load_judge(attributes, clip, place), edits, batch, bar)
        makers: dict[str, Callable[[], Part]] = {
            "steps": lambda: ablate_steps(bench, counts),
            "lambda": lambda: ablate_lambda(bench, own, others),
            "prompts": lambda: ablate_prompts(bench),
            "strength": lambda: ablate_strength(bench),
            "mask": lambda: ablate_mask(bench),
            "composed": lambda: ablate_composed(bench, num, seed),
            "instructions": lambda: ablate_instructions(bench, _caption_maker(str(captioner), encoder, device)),
        }
        made = [makers[name]() for name in PARTS if name in work]
    findings = judged(_evidence(made))
    results = _results(made, findings)
    results["about"] = {
        "encoder": str(encoder),
        "timesteps": pipeline.timesteps,
        "kl_weight": own,
        "lambda_encoders": {str(weight): str(folder) for weight, folder in (lambda_encoders or {}).items()},
        "captioner": captioner,
        "num": num,
        "changed_kinds": bench.kinds,
        "seed": seed,
        "device": place.type,
        "threads": torch.get_num_threads(),
        "minutes": (time.perf_counter() - started) / 60,
    }
    write_results(out / "results.json", results)
    write_table(out / "edits.csv", [row for part in made for row in part.rows()])
    page = write_ablation_page(out, results, made, findings)
    logger.info("%s", summary(findings))
    logger.info("report: %s", page)
    return results


def _work(
    parts: Sequence[str], num: int, num_counts: int, num_others: int, num_timesteps: int, with_captioner: bool
) -> dict[str, int]:
    """How many pictures each part makes, in the order of PARTS; without instructions where nobody rewrites them."""
    everything = num * len(EDIT_KINDS)
    work = {
        "steps": 2 * num_counts * everything,
        "lambda": (1 + num_others) * everything,
        "prompts": 2 * (num_timesteps + 1) * num * len(SAID_BRIEFLY),
        "strength": len(STRENGTHS) * everything,
        "mask": (len(THRESHOLDS) + 2) * num * len(LOCAL),
        "composed": len(WAYS) * num * len(FIRST),
        "instructions": 2 * everything if with_captioner else 0,
    }
    return {name: work[name] for name in PARTS if name in parts and work[name]}


def _bench(pipeline: TurboEditPipeline, judge: Judge, edits: EditSet, batch: int, bar: tqdm) -> Bench:
    """The bench; `changed` counts the kinds of edits that the generator itself can make."""

    def progress(count: int, name: str) -> None:
        bar.set_postfix_str(name, refresh=False)
        bar.update(count)

    references: References = judge.references(edits, pipeline.backbone)
    ceiling = try_editor(
        Ceiling(generator_of(pipeline)),
        edits,
        references,
        judge,
        (1.0,),
        batch,
        pipeline.backbone,
        progress=lambda count: progress(count, "what the generator can do"),
    )
    return Bench(pipeline, judge, edits, references, changed_types(ceiling), batch, progress)


def _caption_maker(captioner: str, encoder: Path, device: str) -> CaptionMaker:
    return CaptionMaker(CaptioningConfig("transformers", model=captioner, backbone=str(encoder), device=device))


def _evidence(parts: Sequence[Part]) -> dict[str, Sequence[Comparison]]:
    return {claim: comparisons for part in parts for claim, comparisons in part.evidence.items()}


def _results(parts: Sequence[Part], findings: Sequence[Finding]) -> dict[str, Any]:
    """Everything for results.json but `about`; estimates as dicts of mean, se, n."""
    return {
        "claims": [finding.to_dict() for finding in findings],
        "parts": {
            part.name: {
                "title": part.title,
                "n": len(part.edits),
                "settings": [setting.to_dict() for setting in part.settings],
            }
            for part in parts
        },
    }


def summary(findings: Sequence[Finding]) -> str:
    """The claims and what became of them as text."""
    lines = []
    for finding in findings:
        lines.append(
            f"{finding.outcome + (', contradicted' if finding.contradicted else ''):28}{finding.claim.sentence}"
        )
        lines += [f"{'':30}{words}: {found.words(unit)}, n = {found.n}" for words, unit, found in finding.tests]
        lines += [f"{'':30}{finding.reason}"] if finding.reason else []
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.ablation", ablate, argv)


if __name__ == "__main__":
    main()
