"""The guidance at which a backbone obeys its captions best: attributes that samples show as their captions say.

    python -m eval.caption_accuracy --backbone models/miniature/teacher --out DIR

Leaves DIR/caption_accuracy.json, prints the table, and keeps what is finished in DIR/kept for when the command is
started again. A comparison of editors takes its guidance from here, so that it is fixed before any edit is seen.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.jobs.command import existing, run
from eval.harness.results import about, at_least_one, finish

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
        backbone: Folder of a Stable Diffusion pipeline
        out: Folder of caption_accuracy.json; the same options go on where they were interrupted
        guidances: Guidances that are tried, on the same captions and noises
        num_steps: DDIM steps
        num: Number of captions
        attributes: Folder of the attribute reader
        batch: Pictures at a time
        seed: Seed of the scenes
        device: Device by name, such as cpu or cuda:1; auto takes a GPU where there is one
    """
    at_least_one(num=num, batch=batch, **{"number of guidances": len(guidances)})
    existing(backbone, "--backbone", "folder of a Stable Diffusion pipeline")
    existing(attributes, "--attributes", "folder of an attribute reader")

    import torch

    from data.jobs.kept import KeptFolder, digest
    from data.world.description import attribute_targets
    from data.world.splits import sample_scene
    from eval.editors.references import GuidedCeiling
    from eval.harness.exports import choose_device, load_scene_backbone
    from eval.harness.fingerprints import backbone_settings, network_fingerprint
    from eval.metrics.attributes import matches, stack_targets
    from eval.scene_edits.judge import load_reader
    from eval.studies.caption_accuracy import accuracy_figures, accuracy_words, best_guidance, sampled
    from models.ddim import Ddim

    place = choose_device(device)
    model = load_scene_backbone(backbone, place)
    reader = load_reader(attributes, place)
    ddim = Ddim(model.schedule, num_steps)
    scenes = [sample_scene("validation", seed, index) for index in range(num)]
    shared = [backbone_settings(model), network_fingerprint(reader), ddim.timesteps, num, seed]
    pieces = {f"guidance-{guidance:g}-{digest(shared, guidance)}": guidance for guidance in guidances}
    kept = KeptFolder(out / "kept")
    for piece in kept.missing(dict.fromkeys(pieces, num), "caption accuracy", "picture"):
        sampler = GuidedCeiling(model, ddim, pieces[piece])
        right: dict[str, list[float]] = {}
        for start in range(0, num, batch):
            part = scenes[start : start + batch]
            read = {name: values.cpu() for name, values in reader.read(sampled(sampler, part, place)).items()}
            for name, found in matches(read, stack_targets(map(attribute_targets, part))).items():
                right.setdefault(name, []).extend(found.tolist())
            kept.tick(len(part))
        kept.keep(piece, right)
    figures = {}
    for piece, guidance in pieces.items():
        columns = {name: torch.tensor(found) for name, found in kept.read(piece).items()}
        figures[f"{guidance:g}"] = accuracy_figures(columns)
    results = {
        "guidances": figures,
        "best": best_guidance(figures),
        "about": about(place, backbone=backbone, num_steps=num_steps, num=num, batch=batch, seed=seed),
    }
    finish(out, results, accuracy_words(results), name="caption_accuracy.json")
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("eval.caption_accuracy", caption_accuracy, argv)


if __name__ == "__main__":
    main()
