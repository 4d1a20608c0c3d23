"""StyleDiffusion as in the paper: networks of its own for every image and timestep, fitted image by image.

python -m train.stylediffusion_fit --config configs/stylediffusion/fit_miniature.yaml --out runs/fits
accelerate launch -m train.stylediffusion_fit ... (or srun) divides the images over processes; the same command goes on
where a killed one was.

OUT gets FIT.safetensors (the modulations `KEY.scale` and `KEY.shift` [steps, L, D] of its images) and FIT.json (losses,
iterations, seconds, PSNR) for every piece of `batch` images, and summary.json over all of them. `read_fit` gives back
what the exported pipeline's `invert(..., values=...)` takes.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from data.jobs.command import parse
from data.jobs.files import whole, write_json
from data.jobs.sharing import Ranks, finished_pieces, pieces_to_make, remove_leftovers
from data.shards.dataset import ShardDataset, UnreadableSample
from data.shards.encodings import check_pivots
from eval.metrics.pixels import Estimate, psnr
from models.attention import checkpointed
from models.backbone import Backbone, dtype_of
from models.ddim import Ddim, matching
from models.options import FitSchedule, StyleObjective
from models.stylediffusion import Fitted, GuidedStep, fit
from models.value_mapper import Modulation
from train.methods.stylediffusion.config import PivotModelConfig

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class ImageFitsConfig:
    """Fits of the images in a folder of shards.

    Args:
        shards: Folder with pivots and image tokens (data.encode --pivots true --clip CLIP).
        out: Folder of the fits.
        num: How many images, from the first; all by default.
        batch: Images that are fitted side by side, each on its own; also what a killed process loses at most.
        seed: Of the networks' first weights.
        backbone: The frozen model.
        objective: The loss of a step.
        schedule: Iterations and learning rates.
    """

    shards: str
    out: str
    num: int | None = None
    batch: int = 1
    seed: int = 0
    backbone: PivotModelConfig = field(default_factory=PivotModelConfig)
    objective: StyleObjective = field(default_factory=StyleObjective)
    schedule: FitSchedule = field(default_factory=FitSchedule)

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            ValueError: a value is out of its range.
        """
        if self.batch < 1 or (self.num is not None and self.num < 1):
            raise ValueError(f"batch is {self.batch} and num is {self.num}, expected at least 1")


def fit_images(config: ImageFitsConfig, ranks: Ranks | None = None) -> dict[str, Any]:
    """Fit all images, together with the other ranks; returns the summary.

    Raises:
        ValueError: OUT holds fits of another config, or the shards lack pivots or image tokens.
    """
    ranks = ranks or Ranks.of_launch()
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    _claim_folder(out, config)
    remove_leftovers(out)
    dataset = ShardDataset(config.shards, ("pivots", "clip", "caption"))
    count = min(len(dataset), config.num or len(dataset))
    ranges = [range(start, min(start + config.batch, count)) for start in range(0, count, config.batch)]
    pieces = {f"fit-{rows.start:06d}-{rows.stop:06d}": rows for rows in ranges}
    work = _Fits(config, dataset)
    sizes = {name: len(rows) for name, rows in pieces.items()}
    with tqdm(total=count, unit="image", desc="fits", disable=ranks.rank != 0) as bar:

        def finished() -> set[str]:
            names = finished_pieces(out, "fit-")
            bar.update(sum(sizes.get(name, 0) for name in names) - bar.n)
            return names

        for name in pieces_to_make(out, list(pieces), SUFFIX, finished, ranks):
            work.make(out, name, pieces[name])
    return _summary(out, list(pieces))


class _Fits:
    """Makes pieces of work."""

    def __init__(self, config: ImageFitsConfig, dataset: ShardDataset) -> None:
        self.config = config
        self.dataset = dataset
        wanted = config.backbone
        local = Ranks.local_rank() % max(1, torch.cuda.device_count())
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
        self.backbone = Backbone.load(wanted.path, device=device, dtype=dtype_of(wanted.dtype), variant=wanted.variant)
        self.device = device
        if wanted.gradient_checkpointing:
            self.backbone.unet.enable_gradient_checkpointing(checkpointed)
        self.ddim = Ddim(self.backbone.schedule, wanted.num_steps, wanted.steps_offset)
        check_pivots(dataset, self.backbone, self.ddim)

    def make(self, out: Path, name: str, rows: range) -> None:
        """Fit the images `rows` and write the piece, its JSON last."""
        samples, unreadable = self._read(rows)
        if not samples:
            write_json(out / f"{name}.json", {"unreadable": unreadable, "keys": []})
            return
        keys = [sample["key"] for sample in samples]
        pivots = torch.stack([sample["pivots"] for sample in samples], dim=1).to(self.device)
        tokens = torch.stack([sample["clip"] for sample in samples]).to(self.device)
        step = GuidedStep(self.backbone, self.ddim, self.config.objective)
        prompt = self.backbone.encode_text([sample["caption"] for sample in samples])
        null = matching(self.backbone.encode_text([""]), prompt)
        started = time.perf_counter()
        torch.manual_seed(self.config.seed)
        fitted = fit(step, tokens, pivots, prompt, null, self.config.schedule)
        seconds = (time.perf_counter() - started) / len(keys)
        tensors: dict[str, torch.Tensor] = {}
        for row, key in enumerate(keys):
            for part in ("scale", "shift"):
                steps = [getattr(modulation, part)[row] for modulation in fitted.modulations]
                tensors[f"{key}.{part}"] = torch.stack(steps).half().cpu().contiguous()
        with whole(out / (name + SUFFIX)) as temporary:
            save_file(tensors, temporary)
        write_json(out / f"{name}.json", {"unreadable": unreadable, **self._figures(keys, pivots, fitted, seconds)})

    def _read(self, rows: range) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """The samples that can be read, and for the keys of the others the reason."""
        samples, unreadable = [], {}
        for row in rows:
            try:
                samples.append(self.dataset[row])
            except UnreadableSample as error:
                unreadable[self.dataset.key(row)] = str(error)
                logger.warning("%s cannot be read and is left out: %s", self.dataset.key(row), error)
        return samples, unreadable

    @torch.no_grad()
    def _figures(self, keys: Sequence[str], pivots: torch.Tensor, fitted: Fitted, seconds: float) -> dict[str, Any]:
        ceiling, found = (self.backbone.decode(latent).clamp(-1, 1) for latent in (pivots[-1], fitted.latents[-1]))
        return {
            "keys": list(keys),
            "psnr_to_vae": psnr(found, ceiling).tolist(),
            "losses": fitted.losses.T.tolist(),
            "iterations": fitted.iterations.T.tolist(),
            "seconds": seconds,
        }


def _claim_folder(out: Path, config: ImageFitsConfig) -> None:
    """The folder's own config, or ValueError with what differs."""
    now = {key: value for key, value in asdict(config).items() if key not in ("out", "num")}
    now = json.loads(json.dumps(now))
    path = out / "config.json"
    if not path.exists():
        write_json(path, now)
    before = json.loads(path.read_text())
    if before != now:
        changed = [f"{key}: {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
        raise ValueError(f"{out} holds fits of another config ({'; '.join(changed)}); give another --out")


def _summary(out: Path, names: Sequence[str]) -> dict[str, Any]:
    """Means over all images with their standard errors, written as summary.json."""
    every = [json.loads((out / f"{name}.json").read_text()) for name in names]
    pieces = [piece for piece in every if piece["keys"]]
    figures = {
        "psnr_to_vae": [value for piece in pieces for value in piece["psnr_to_vae"]],
        "iterations": [sum(counts) for piece in pieces for counts in piece["iterations"]],
        "seconds": [piece["seconds"] for piece in pieces for _ in piece["keys"]],
    }
    summary: dict[str, Any] = {name: Estimate.of(values).to_dict() for name, values in figures.items()}
    summary["unreadable"] = {key: reason for piece in every for key, reason in piece["unreadable"].items()}
    write_json(out / "summary.json", summary)
    return summary


def read_fit(out: str | Path, key: str) -> tuple[Modulation, ...]:
    """The modulations of every step that were found for the image `key`, [1, L, D] each.

    Raises:
        ValueError: no finished fit of that image lies in `out`.
    """
    for path in sorted(Path(out).glob("fit-*.safetensors")):
        with safe_open(path, "pt") as file:
            if f"{key}.scale" in file.keys():  # noqa: SIM118  a safetensors file is no mapping
                scale, shift = (file.get_tensor(f"{key}.{part}").float()[:, None] for part in ("scale", "shift"))
                return tuple(Modulation(a, b) for a, b in zip(scale, shift, strict=True))
    raise ValueError(f"{out} holds no fit of {key!r}")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = parse(ImageFitsConfig, argv, description=__doc__)
    try:
        summary = fit_images(config)
    except ValueError as error:
        raise SystemExit(f"train.stylediffusion_fit: {error}") from error
    unreadable = summary.pop("unreadable")
    for name, figures in summary.items():
        if figures["n"]:
            logger.info("%s: %.2f +- %.2f (n %d)", name, figures["mean"], figures["se"] or 0, figures["n"])
    if unreadable:
        logger.warning("%d images could not be read: %s", len(unreadable), ", ".join(unreadable))


if __name__ == "__main__":
    main()
