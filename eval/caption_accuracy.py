"""At which guidance a backbone obeys its captions best: attributes that samples show as their captions say.

    python -m eval.caption_accuracy --backbone models/miniature/teacher --out DIR

Leaves DIR/caption_accuracy.json and prints the table. A comparison of editors takes its guidance from here, so that it
is fixed before any edit is seen.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from data.jobs.command import run
from data.world.captions import long_caption
from data.world.description import Scene, attribute_targets
from data.world.splits import sample_scene
from eval.editors.editor import EditRequest
from eval.editors.references import GuidedCeiling
from eval.harness.exports import choose_device, load_scene_backbone
from eval.harness.results import write_results
from eval.metrics.attributes import attribute_type, matches, stack_targets
from eval.metrics.pixels import Estimate
from eval.scene_edits.edit_set import rendered
from eval.scene_edits.judge import load_reader
from models.ddim import Ddim

logger = logging.getLogger(__name__)

GUIDANCES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5)


def caption_accuracy(
    backbone: Path,
    out: Path,
    guidances: tuple[float, ...] = GUIDANCES,
    num_steps: int = 20,
    num: int = 200,
    attributes: Path = Path("models/miniature/attributes"),
    batch: int = 40,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Sample from captions of validation scenes at several guidances and read the pictures.

    Args:
        backbone: folder of a Stable Diffusion pipeline
        out: folder of caption_accuracy.json
        guidances: that are tried, on the same captions and noises
        num_steps: of DDIM
        num: number of captions
        attributes: folder of the attribute reader
        batch: pictures at a time
        seed: of the scenes
        device: auto, cpu, cuda ...
    """
    least = {"num": num, "batch": batch, "number of guidances": len(guidances)}
    if wrong := [f"{name} is {value}" for name, value in least.items() if value < 1]:
        raise ValueError(f"{', '.join(wrong)}; expected at least 1")
    place = choose_device(device)
    model = load_scene_backbone(backbone, place)
    reader = load_reader(attributes, place)
    ddim = Ddim(model.schedule, num_steps)
    scenes = [sample_scene("validation", seed, index) for index in range(num)]
    found: dict[float, dict[str, Tensor]] = {}
    with tqdm(total=num * len(guidances), unit="picture") as bar:
        for guidance in guidances:
            bar.set_postfix_str(f"guidance {guidance:g}")
            sampler = GuidedCeiling(model, ddim, guidance)
            parts = []
            for start in range(0, num, batch):
                part = scenes[start : start + batch]
                read = reader.read(sampled(sampler, part, place))
                targets = stack_targets(map(attribute_targets, part))
                parts.append(matches({name: values.cpu() for name, values in read.items()}, targets))
                bar.update(len(part))
            found[guidance] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    figures = {f"{guidance:g}": accuracy_figures(right) for guidance, right in found.items()}
    results = {
        "guidances": figures,
        "best": best_guidance(figures),
        "about": {"backbone": str(backbone), "num_steps": num_steps, "num": num, "seed": seed},
    }
    write_results(out / "caption_accuracy.json", results)
    logger.info("%s", table(results))
    return results


@torch.no_grad()
def sampled(sampler: GuidedCeiling, scenes: Sequence[Scene], device: torch.device) -> Tensor:
    """Pictures [B, 3, 64, 64] from the captions of scenes, by noise that belongs to each scene."""
    captions = tuple(long_caption(scene) for scene in scenes)
    inversion = sampler.invert(rendered(scenes).to(device), captions)
    return sampler.edit(inversion, EditRequest(captions))


def accuracy_figures(right: Mapping[str, Tensor]) -> dict[str, Any]:
    """Estimates over pictures of `right` [N] by attribute (1, 0, nan where there is none), as dicts.

    Returns:
        right: share of a picture's attributes that are right; all_right: share of pictures where all are; by_type: the
        share for each type of attribute.
    """
    types: dict[str, list[Tensor]] = {}
    for name, column in right.items():
        types.setdefault(attribute_type(name), []).append(column)
    share = torch.stack(list(right.values())).nanmean(0)
    return {
        "right": Estimate.of(share.tolist()).to_dict(),
        "all_right": Estimate.of((share == 1).float().tolist()).to_dict(),
        "by_type": {
            name: Estimate.of(torch.stack(columns).nanmean(0).tolist()).to_dict() for name, columns in types.items()
        },
    }


def best_guidance(figures: Mapping[str, Mapping[str, Any]]) -> float:
    """The guidance with the highest share of right attributes; of equals the lowest."""
    return float(max(figures, key=lambda name: (figures[name]["right"]["mean"], -float(name))))


def table(results: Mapping[str, Any]) -> str:
    """The figures in percent with their standard errors, as text."""

    def cell(estimate: Mapping[str, Any], width: int) -> str:
        error = "" if estimate["se"] is None else f" ±{100 * estimate['se']:.1f}"
        return f"{100 * estimate['mean']:.1f}{error}".rjust(width)

    first = next(iter(results["guidances"].values()))
    lines = ["guidance" + "right".rjust(13) + "all right".rjust(13) + "".join(n.rjust(12) for n in first["by_type"])]
    for name, found in results["guidances"].items():
        cells = [cell(found[measure], 13) for measure in ("right", "all_right")]
        lines.append(name.rjust(8) + "".join([*cells, *(cell(of_type, 12) for of_type in found["by_type"].values())]))
    return "\n".join([*lines, f"best: guidance {results['best']:g}, n = {first['right']['n']}"])


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.caption_accuracy", caption_accuracy, argv)


if __name__ == "__main__":
    main()
