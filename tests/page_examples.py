"""A small page of every kind: real scenes and the commands' own figures, of scores that are invented.

Names of folders are paths of a machine, as people give them to the commands.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data.inspect import main as inspect
from data.pages.charts import Series, line_chart
from data.world.edits import EDIT_KINDS
from eval.ablations.bench import Ablation, Setting, difference, edit_strips, strip_columns
from eval.ablations.page import write_ablation_page
from eval.claims.judging import judged
from eval.claims.turboedit import CLAIMS
from eval.compare import compare_evaluations
from eval.editors.editor import Cost
from eval.harness.results import write_results, write_table
from eval.metrics.pixels import Estimate
from eval.objectives.figures import TrainedObjective, objective_figures
from eval.objectives.page import write_objectives_page
from eval.pie.page import case_rows, write_pie_page
from eval.reconstructions.page import write_reconstruction_page
from eval.scene_edits.edit_set import sample_edit_set
from eval.scene_edits.figures import (
    below_vae,
    equal_success_figures,
    paired_figures,
    reconstruction_figures,
    standings,
)
from eval.scene_edits.instructions import judge_claim
from eval.scene_edits.instructive import OURS, choose_rival, claim_figures
from eval.scene_edits.judge import EditScores
from eval.scene_edits.page import write_instructive_page, write_many_step_page, write_scene_page
from eval.scene_edits.protocol import SceneComparison
from eval.scene_edits.result import EditorResult, pixels
from eval.studies.inversion_guidance import write_guidance_page
from eval.studies.null_text import write_null_text_page
from eval.studies.style_transfer import SceneLook, write_transfer_page
from tests.objective_records import record
from tests.pie_evaluation import make_cases, make_results, write_evaluation
from tests.tiny_training import write_latents
from train.reports.page import write_comparison, write_run_page
from train.reports.records import RunRecords

PLACE = "/home/someone/long path/runs/demo"
TRAINING = {"taken": 900, "planned": 9000, "run": "run", "began": "2026-11-30", "by_clock": True}
ABOUT = {
    "encoder": f"{PLACE}/export",
    "training": TRAINING,
    "backbone": f"{PLACE}/teacher",
    "data": f"{PLACE}/shards",
    "device": "cpu",
    "timesteps": [999, 749, 499, 249],
    "mask_threshold": 0.4,
    "num_steps": 1,
    "guidance": 3.0,
    "split": "test",
}
EDITS = sample_edit_set("test", 1)
SOURCES, TRUTHS = pixels(EDITS.sources), pixels(EDITS.truths)


def estimate(mean: float, count: int = 9) -> dict[str, Any]:
    return Estimate.of(mean + 0.01 * mean * np.sin(np.arange(count))).to_dict()


def editor_result(name: str, strengths: Sequence[float], quality: float, steps: int = 0) -> EditorResult:
    """Scores of the edits that get better with `quality`, and that change more and keep less with strength."""
    scores = {
        s: [
            EditScores(kind, float(i % 4 < 2 + 2 * s), 0.9, 1.0, 20 + quality, 97.25 + quality - s - 0.1 * i, 80 + s, 7)
            for i, kind in enumerate(EDITS.kinds)
        ]
        for s in strengths
    }
    rows = [
        {"editor": name, "step": n, "key": key, "psnr": 20.0 + n + quality, "psnr_to_vae": 21.0 + n, "latent_mse": 0.1}
        for n in range(1, steps + 1)
        for key in "ab"
    ]
    level = {measure: estimate(0.9) for measure in ("mean", "std", "kurtosis", "lag1", "over10")} | {"max": 4.0}
    return EditorResult(
        name,
        tuple(strengths),
        [Cost(9, 4, 0.1, None)],
        {s: [Cost(9, 4, 0.1, None)] for s in strengths},
        scores,
        dict.fromkeys(strengths, TRUTHS),
        {name: {"999": level}} if steps else {},
        rows,
        dict.fromkeys(range(1, steps + 1), SOURCES[:2]),
    )


def comparison(editors: Mapping[str, int]) -> SceneComparison:
    """Editors by their number of steps of reconstruction, beside the references."""
    found = {name: editor_result(name, (0.5, 1.0), 3.0 - n, steps) for n, (name, steps) in enumerate(editors.items())}
    found |= {name: editor_result(name, (1.0,), 1.0) for name in ("identity", "truth", "ceiling")}
    strengths = {name: result.strengths[-1] for name, result in found.items()}
    return SceneComparison(strengths, found, EDITS, found, {})


VAE_ROWS: list[dict[str, Any]] = [{"editor": "vae", "step": 0, "key": key, "psnr": 34.0} for key in "ab"]


def scenes(out: Path) -> Path:
    found = comparison({"turboedit": 4, "turboedit_paper": 0, "ddpm_residual": 4})
    figures = found.figures()
    types = figures["changed_types"]["types"]
    results = {
        **figures,
        "about": ABOUT,
        "reconstruction": reconstruction_figures(VAE_ROWS, found.test),
        "noise": found.test["turboedit"].noises,
        "equal_success": equal_success_figures(found.test, found.strengths, types),
        "standings": standings(found.test, found.strengths, types),
        "left_out": [{"row": "turboedit_mask_attention", "reason": "this generator has no such attention"}],
    }
    return write_scene_page(out, results, found)


def many_step(out: Path) -> Path:
    found = comparison({"stylediffusion": 1, "ddim": 1, "null_text": 1})
    reconstruction = reconstruction_figures(VAE_ROWS, found.test)
    for name, result in found.test.items():
        if result.reconstruction_rows:
            reconstruction[name]["below_vae"] = below_vae(VAE_ROWS, result.reconstruction_rows).to_dict()
    results = {
        **found.figures(),
        "about": ABOUT,
        "reconstruction": reconstruction,
        "noise": found.test["ddim"].noises,
        "paired": paired_figures(found.test, found.strengths, "stylediffusion"),
    }
    return write_many_step_page(out, results, found)


def instructive(out: Path) -> Path:
    rivals = {f"instruct_pix2pix_text_{scale}": scale for scale in (1.5,)}
    found = comparison({OURS: 0, **dict.fromkeys(rivals, 0)})
    by_name = {name: found.test[name] for name in rivals}
    chosen = choose_rival(found.validation, found.strengths)
    comparisons = judge_claim(found.test[OURS], 1.0, by_name, found.validation, EDIT_KINDS)
    right = {"right": estimate(0.9), "by_attribute": {"shape_1": estimate(0.8)}}
    captions = {"model": f"{PLACE}/llava", "seconds_caption": 0.1, "seconds_rewrite": 2.0, "rejected": 1}
    results = {
        **found.figures(),
        "about": ABOUT
        | {"instruct": f"{PLACE}/instruct", "instruct_training": None, "text_guidances": rivals, "num_steps": 20},
        "chosen": {OURS: 1.0, "instruct_pix2pix": chosen},
        "claim": claim_figures(comparisons),
        "captions": captions | dict.fromkeys(("source", "target", "rewritten"), right),
    }
    return write_instructive_page(out, results, found, comparisons)


def ablation(out: Path) -> Path:
    draw = np.random.default_rng(0)
    measures = ("covered", "changed", "kept", "psnr_outside", "psnr_inside")
    settings = [
        Setting(name, {measure: (draw.random(9) + n).tolist() for measure in measures}, TRUTHS)
        for n, name in enumerate(("no mask", "prediction and attention, union", "true mask"))
    ]
    part = Ablation(
        "mask",
        "Automatic masks",
        "What a mask keeps.",
        measures,
        tuple(settings),
        EDITS.edits,
        {"mask_keeps": [difference("psnr_outside", settings[1], settings[0])]},
        (difference("kept", settings[0], settings[1]),),
        (line_chart([Series("covered", "#0b5fa5", [(0.2, 97.25, "a"), (0.6, 98.5, "b")])], "threshold", "%"),),
        strip_columns(EDITS, [setting.name for setting in settings]),
        edit_strips(EDITS, (0, 1), settings),
        tuple(settings[1:2]),
    )
    about = {"num": 1, "changed_kinds": EDIT_KINDS, "lambda_training": {"0": TRAINING}, "minutes_of_last_start": 0.2}
    claims = judged(part.evidence, CLAIMS)
    return write_ablation_page(out, {"about": ABOUT | about, "lacking": [], "left_out": {}}, [part], claims)


def reconstruction(out: Path) -> Path:
    found = comparison({"turboedit": 2, "ddim": 2})
    row = {"mse": estimate(0.01), "ssim": estimate(0.9), "lpips": estimate(0.1), "psnr": estimate(34), "n": 1}
    lines = [
        row | {"editor": name, "steps": 2, "nfe": 4, "psnr_to_vae": estimate(30)} for name in ("turboedit", "ddim")
    ]
    results = {
        "about": ABOUT | {"lpips": f"LPIPS of {PLACE}/alexnet.pth", "features": "FID and KID are left out"},
        "table": [row | {"editor": "vae", "steps": None, "nfe": None}, *lines],
        "reconstruction": reconstruction_figures(VAE_ROWS, found.test),
        "noise": found.test["turboedit"].noises,
    }
    pictures = {
        name: [torch.from_numpy(image).permute(2, 0, 1) for image in SOURCES[:2]]
        for name in ("image", "vae", "turboedit-2", "ddim-2")
    }
    return write_reconstruction_page(out, results, pictures, EDITS.source_prompts[:2])


def pie(out: Path) -> Path:
    cases = make_cases(out, 4)
    results = make_results(cases)
    results["about"] |= {"encoder": ABOUT["encoder"], "training": TRAINING, "data": PLACE}
    results["about"]["metrics"]["clip"] = f"ViT-L/14 of {PLACE}/clip"
    write_results(out / "results.json", results)
    write_table(out / "cases.csv", case_rows(cases))
    return write_pie_page(out, results, cases)


def compare(out: Path) -> Path:
    for name, sharpness in (("a", 0.9), ("b", 0.6)):
        write_evaluation(out / name, 4, sharpness)
    compare_evaluations(out / "a", out / "b", out)
    return out / "index.html"


def null_text(out: Path) -> Path:
    points = [
        {
            "iterations": count,
            "updates": 20 * count,
            "psnr": estimate(30),
            "psnr_to_vae": estimate(97.25 + count),
            "seconds": estimate(1),
        }
        for count in (0, 10)
    ]
    variants = dict.fromkeys(("null_text", "null_text_global"), points)
    results = {"about": ABOUT | {"pictures": 1, "data": None}, "vae": {"psnr": estimate(34)}, "variants": variants}
    return write_null_text_page(out, results)


def inversion_guidance(out: Path) -> Path:
    entries = [{"guidance": w, "log_likelihood": estimate(-1.5), "psnr_to_vae": estimate(97.25 - w)} for w in (1, 3)]
    return write_guidance_page(out, {"about": ABOUT, "gaussian_log_likelihood": -1.419, "guidances": entries})


def style_transfer(out: Path) -> Path:
    measures = (*SceneLook.columns, "structure")
    shares = [{"share": share, **{name: estimate(0.5) for name in measures}} for share in (0.0, 0.5)]
    results = {"about": ABOUT | {"n": 1, "blocks": [1, 2], "data": None}, "shares": shares}
    return write_transfer_page(out, results, SceneLook, [SOURCES[:4]])


def objectives(out: Path) -> Path:
    rows = [
        TrainedObjective("baseline", {seed: record(seed) for seed in (0, 1)}),
        TrainedObjective("own_share_at_every_step", {0: {**record(1, 2.0), "minutes": 60.0}}),
    ]
    about = {
        "rows": "configs/turboedit/ablation",
        "seeds": [0, 1],
        "steps": [250],
        "samples": [2000, 24000],
        "planned": 4,
        "done": 3,
        "scenes": {"num": 1, "num_reconstructions": 1},
        "trainings": {"baseline": {0: TRAINING, 1: TRAINING}, "own_share_at_every_step": {0: None}},
    }
    texts = {"baseline": f"data:\n  shards: {PLACE}/shards\n"}
    return write_objectives_page(out, objective_figures(rows, "baseline") | {"about": about}, texts)


def inspection(out: Path) -> Path:
    write_latents(out / "shards")
    inspect([str(out / "shards"), "--out", str(out / "page")])
    return out / "page" / "index.html"


def run_records(folder: Path, lift: float) -> RunRecords:
    """Records of a run with a preview."""
    (folder / "samples").mkdir(parents=True)
    preview = folder / "samples" / "step-000010.png"
    Image.fromarray(np.concatenate(SOURCES[:3])).save(preview)
    config = {
        "method": "turboedit",
        "generator": {"path": f"{PLACE}/student"},
        "data": {"shards": f"{PLACE}/shards"},
        "run": {"steps": 10, "global_batch": 8, "folder": PLACE},
        "optim": {"lr": lift},
    }
    steps = (2, 6, 10)
    curves = {
        name: [(step, lift + 97.25 + step) for step in steps]
        for name in ("loss", "valid/psnr_1", "valid/psnr_2", "noise_std/t999", "samples_per_sec", "seconds")
    }
    return RunRecords(folder, config, [], curves, (), {10: preview})


def run(out: Path) -> Path:
    return write_run_page(run_records(out / "run", 0.0), out / "page")


def runs(out: Path) -> Path:
    return write_comparison([run_records(out / name / "run", lift) for name, lift in (("a", 0.0), ("b", 1.0))], out)


PAGES: Mapping[str, Callable[[Path], Path]] = {
    maker.__name__: maker
    for maker in (
        scenes,
        many_step,
        instructive,
        ablation,
        reconstruction,
        pie,
        compare,
        null_text,
        inversion_guidance,
        style_transfer,
        objectives,
        inspection,
        run,
        runs,
    )
}
"""Functions that write a page below a folder and return its path, by kind."""
