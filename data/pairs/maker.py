"""Edit pairs made of captions: proposed, drawn and chosen, a batch at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from data.captioning.interface import Captioner
from data.captioning.tokens import TokenLimits
from data.jobs.device import choose_device, use_tf32
from data.jobs.errors import ShardError
from data.pairs.choice import DrawnPair, PairChoice, to_picture
from data.pairs.config import EditPairsConfig
from data.pairs.drawing import Candidate, PairSampler, draw_candidates
from data.pairs.proposals import Triplet, Written, make_triplets
from data.pairs.scores import score_pairs
from data.shards.shard import Drop, Origin
from data.shards.stage import Outcome, library_versions
from models.backbone import Backbone, dtype_of
from models.clip import ClipEmbeddings
from models.fingerprints import clip_fingerprint, named, text_fingerprint, unet_fingerprint, vae_fingerprint
from models.text import ClipText


class PairMaker:
    """Makes edit pairs of captions, with its models loaded; the engine is loaded when it is first needed."""

    def __init__(self, config: EditPairsConfig, limits: TokenLimits, backbone: Backbone, clip: ClipEmbeddings) -> None:
        self.config = config
        self.limits = limits
        self.backbone = backbone
        self.clip = clip
        self.sampler = PairSampler(backbone, config.sampling)
        self._captioner: Captioner | None = None

    @classmethod
    def load(cls, config: EditPairsConfig, limits: TokenLimits) -> "PairMaker":
        """Load the models that `config` names.

        Raises:
            ShardError: one of them cannot be loaded, or draws no pictures of this kind.
        """
        device = choose_device(config.device)
        use_tf32(device)
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
        """All that decides the pairs."""
        config, backbone = self.config, self.backbone
        engine = {**config.identity(), **({"prompt": config.prompt} if config.writes else {})}
        size = backbone.image_size
        return Origin(
            stage="edit_pairs",
            config={
                **engine,
                "unet": named(unet_fingerprint(backbone)),
                "vae": named(vae_fingerprint(backbone)),
                "text_encoders": named(text_fingerprint(backbone)),
                "backbone_dtype": config.backbone_dtype,
                "clip": named(clip_fingerprint(self.clip)),
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
        """Yield the pairs of each caption, or why it has none."""
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
