"""Stage captions -> shards of edits: an instruction, a picture before and a picture after it, all of them made.

    python -m data.edit_pairs CAPTIONS OUT --config configs/edit_pairs/sd15.yaml

CAPTIONS is a finished folder of data.caption, whose captions alone are read, or a .jsonl list. An engine proposes an
edit of each caption, a text-to-image model draws both captions many times (InstructPix2Pix, arXiv 2211.09800, section
3.1), and CLIP decides which pairs are kept. Run the same command again after a kill; `accelerate launch -m
data.edit_pairs ...` and `srun` divide the work over processes, each with its own GPU.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from data.captioning.engines import EngineConfig
from data.captioning.interface import Captioner
from data.captioning.local import choose_device
from data.captioning.tasks import CAPTION, DEFAULT_EDIT_PROMPT
from data.captioning.tokens import TokenLimits
from data.jobs.command import run
from data.jobs.errors import ShardError
from data.jobs.files import temporary_path
from data.jobs.sharing import kept_alive
from data.pairs.choice import DrawnPair, PairChoice, to_picture
from data.pairs.drawing import Candidate, PairSampler, SamplingConfig, draw_candidates
from data.pairs.proposals import Triplet, Written, make_triplets, read_captions
from data.pairs.scores import FilterConfig, score_pairs
from data.shards.shard import Drop, Origin
from data.shards.stage import Outcome, Unit, divide, library_versions, run_stage
from models.backbone import Backbone, dtype_of, fingerprint
from models.clip import ClipEmbeddings
from models.text import ClipText


@dataclass(frozen=True)
class EditPairsConfig(EngineConfig):
    """Options of the stage, beside those of the engine; "existing" takes edits that a list holds ("caption",
    "instruction", "target").

    Args:
        prompt: what the engine is asked; {caption} stands for the caption, and an answer has the lines
            "Instruction: ..." and "Result: ...".
        captions: how many captions are used, the first in the order of their names; by default all.
        backbone: diffusers folder or hub id of the Stable Diffusion that draws the pictures.
        variant: file variant on the hub, such as fp16.
        backbone_dtype: of its UNet and text encoder; its VAE runs in float32.
        device: where the engine (transformers), the backbone and the CLIP run; "auto" takes each process's own GPU if
            there is one.
        clip: folder or hub id of the CLIP that judges the pairs.
        sampling: how pairs are drawn.
        filter: which are kept.
        pairs_at_once: pairs in one forward pass, four rows of the UNet each; lower it when memory runs out.
        seed: decides all draws.
        max_damage: share of captions that cannot be read over which the stage stops.
        pictures: how they are stored: jpg (quality 95, no chroma subsampling) or png, which loses nothing.
        unit_size: captions a shard, and what a killed process loses at most; one takes minutes on a GPU.
    """

    temperature: float = 0.7
    prompt: str = DEFAULT_EDIT_PROMPT
    captions: int | None = None
    backbone: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    variant: str | None = None
    backbone_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    clip: str = "openai/clip-vit-large-patch14"
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    pairs_at_once: int = 8
    seed: int = 0
    max_damage: float = 0.05
    pictures: Literal["jpg", "png"] = "jpg"
    unit_size: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if CAPTION not in self.prompt:
            raise ValueError(f"--prompt does not hold {CAPTION}, where the caption goes")
        for name in ("captions", "pairs_at_once", "unit_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}, expected at least 1")
        if self.seed < 0:
            raise ValueError(f"--seed is {self.seed}, expected at least 0")


def make_edit_pairs(source: str | Path, out: str | Path, config: EditPairsConfig) -> dict[str, Any]:
    """Runs the stage; returns the manifest of `out`.

    Raises:
        ShardError: for an input that holds no captions, a backbone or CLIP that cannot be loaded, or no pair that is
            good enough; see also `data.stage.run_stage`.
        data.captioners.interface.CaptionerError: when the engine cannot go on.
    """
    out = Path(out)
    written = read_captions(source, with_edits=not config.writes, count=config.captions)
    limits = TokenLimits.load(config.backbone)
    workshop = _Workshop.load(config, limits)
    names = [one.name for one in written]
    contents = [hashlib.sha256(repr(one).encode("utf-8", "surrogateescape")).digest() for one in written]

    def process(unit: Unit) -> Iterator[Outcome]:
        # A caption may take longer than a claim lives.
        with kept_alive(temporary_path(out, f"{unit.name}.tar")):
            yield from workshop.outcomes(unit.items)

    units = divide(names, written, config.unit_size, contents)
    return run_stage(units, out, process, workshop.origin(), config.max_damage, counted="caption")


class _Workshop:
    """Everything that makes pairs, loaded; the engine when it is first needed."""

    def __init__(self, config: EditPairsConfig, limits: TokenLimits, backbone: Backbone, clip: ClipEmbeddings) -> None:
        self.config = config
        self.limits = limits
        self.backbone = backbone
        self.clip = clip
        self.sampler = PairSampler(backbone, config.sampling)
        self._captioner: Captioner | None = None

    @classmethod
    def load(cls, config: EditPairsConfig, limits: TokenLimits) -> "_Workshop":
        device = choose_device(config.device)
        try:
            backbone = Backbone.load(
                config.backbone, device=device, dtype=dtype_of(config.backbone_dtype), variant=config.variant
            )
        except (OSError, ValueError) as error:
            raise ShardError(f"--backbone {config.backbone} cannot be loaded: {error}") from error
        if not isinstance(backbone.text, ClipText):
            raise ShardError(
                f"--backbone {config.backbone} has two text encoders (SDXL); give a Stable Diffusion 1 or 2"
            )
        if backbone.unet.config.in_channels != backbone.vae.config.latent_channels:
            raise ShardError(f"--backbone {config.backbone} takes more than a latent; give a text-to-image model")
        try:
            clip = ClipEmbeddings(config.clip, device)
        except (OSError, ValueError) as error:
            raise ShardError(f"--clip {config.clip} cannot be loaded: {error}") from error
        try:
            return cls(config, limits, backbone, clip)
        except ValueError as error:
            raise ShardError(f"--sampling: {error}") from error

    def origin(self) -> Origin:
        """What decides the pairs."""
        config, backbone = self.config, self.backbone
        engine = {**config.identity(), **({"prompt": config.prompt} if config.writes else {})}
        size = backbone.image_size
        return Origin(
            stage="edit_pairs",
            config={
                **engine,
                "unet": fingerprint(backbone.unet, dict(backbone.unet.config)),
                "vae": backbone.vae_fingerprint,
                "text_encoders": backbone.text_fingerprint,
                "backbone_dtype": config.backbone_dtype,
                "clip": self.clip.fingerprint,
                **{f"sampling.{name}": value for name, value in asdict(config.sampling).items()},
                **{f"filter.{name}": value for name, value in asdict(config.filter).items()},
                "pairs_seed": config.seed,
                "pictures": config.pictures,
                "unit_size": config.unit_size,
            },
            versions=library_versions("torch", "diffusers", "transformers", "webdataset", *config.packages),
            properties={"resolution": size, "preprocessing": "drawn at this size"},
        )

    def outcomes(self, written: Sequence[Written]) -> Iterator[Outcome]:
        """For each caption its pairs, or why there are none."""
        if self.config.writes and self._captioner is None:
            self._captioner = self.config.load()
        found = make_triplets(written, self._captioner, self.config.prompt, self.limits)
        drawn = self._drawn([triplet for triplet in found if isinstance(triplet, Triplet)])
        for triplet in found:
            yield triplet if isinstance(triplet, Drop) else next(drawn)

    def _drawn(self, triplets: Sequence[Triplet]) -> Iterator[Outcome]:
        """The outcome of each triplet. Batches are filled across triplets."""
        config = self.config
        waiting = [c for triplet in triplets for c in draw_candidates(triplet, config.sampling, config.seed)]
        chosen = {triplet.key: PairChoice(triplet, config.filter) for triplet in triplets}
        for start in range(0, len(waiting), config.pairs_at_once):
            batch = waiting[start : start + config.pairs_at_once]
            before, after = self._sampled(batch)
            scores = score_pairs(self.clip, before, after, [candidate.triplet for candidate in batch])
            for row, candidate in enumerate(batch):
                choice = chosen[candidate.triplet.key]
                choice.add(DrawnPair(candidate, scores[row], *(to_picture(x[row]) for x in (before, after))))
                if choice.num_seen == config.sampling.candidates:
                    yield chosen.pop(candidate.triplet.key).outcome(config.pictures)

    def _sampled(self, batch: Sequence[Candidate]) -> tuple[Tensor, Tensor]:
        try:
            before, after = self.sampler(batch)
        except torch.cuda.OutOfMemoryError as error:
            raise ShardError(
                f"out of memory with {len(batch)} pairs at once; lower --pairs_at_once and run again (units that are "
                "done stay)"
            ) from error
        if not (before + after).isfinite().all():
            raise ShardError(
                f"--backbone {self.config.backbone} in {self.config.backbone_dtype} draws pictures that are not "
                "finite; take --backbone_dtype bfloat16 or float32"
            )
        return before, after


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("data.edit_pairs", make_edit_pairs, arguments, positional=True)


if __name__ == "__main__":
    main()
