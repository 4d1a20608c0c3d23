"""StyleDiffusion, amortised: train one mapping network for all images and timesteps on a frozen Stable Diffusion."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from data.shards.dataset import ShardDataset
from data.shards.origins import check_image_tokens, check_pivots
from models.attention import checkpointed
from models.backbone import Backbone, dtype_of
from models.clip import ImageTokens
from models.ddim import Ddim, matching
from models.prompt_to_prompt import Trajectory, reconstruct
from models.stylediffusion import GuidedStep, amortised
from models.text import Prompt
from models.value_mapper import AmortisedMapper, Modulation
from train.heldout.figures import loss_of_each
from train.methods.stylediffusion.config import MapperConfig, StyleDiffusionConfig
from train.methods.stylediffusion.drift import measure_drift
from train.rng import SampleRandom, StepRandom
from train.run.weights import is_sharded
from train.task import Batch, StepLoss, Task

PHASES = ("noisy", "middle", "clean")


def build_mapper(config: MapperConfig, tokens: tuple[int, int], text: tuple[int, int]) -> AmortisedMapper:
    """The network for `tokens` (N, D) of a CLIP and `text` (L, D) of a backbone."""
    return AmortisedMapper(tokens, text, config.form, config.width, config.depth, config.heads)


class StyleDiffusionTask:
    """A random DDIM step of each sample's pivots: the mapped values must lead from one pivot to the next.

    Args:
        config: Config of the training.
        backbone: The frozen model.
        tokens: N and D of the image tokens.
    """

    fields: tuple[str, ...] = ("pivots", "clip", "caption")
    groups: tuple[str, ...] = PHASES
    tries_edits = False

    def __init__(self, config: StyleDiffusionConfig, backbone: Backbone, tokens: tuple[int, int]) -> None:
        self.backbone = backbone
        if backbone.text is not None and len(backbone.text.encoders) > 1:
            raise ValueError(
                f"{config.backbone.path} has two text encoders (SDXL); StyleDiffusion takes Stable Diffusion 1 and 2"
            )
        if config.backbone.gradient_checkpointing:
            self.backbone.unet.enable_gradient_checkpointing(checkpointed)
        self.ddim = Ddim(self.backbone.schedule, config.backbone.num_steps, config.backbone.steps_offset)
        self.step = GuidedStep(self.backbone, self.ddim, config.objective)
        self._null = self.backbone.encode_text([""])
        text = self._null.embeds.shape[1:]
        with torch.random.fork_rng():
            torch.manual_seed(config.run.seed)  # every rank and every start of the run begins with the same weights
            self.trainable: nn.Module = build_mapper(config.mapper, tokens, (text[0], text[1]))
        self.objective = config.objective
        self.backbone.assert_frozen()

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        """L_rec + weight L_attn (eq. 5 to 8) at one random step of each sample."""
        pivots: Tensor = batch["pivots"]
        device = pivots.device
        host_steps = rng.integers("step", len(self.ddim))
        steps, rows = host_steps.to(device, non_blocking=True), torch.arange(len(pivots), device=device)
        pivot, target = pivots[rows, steps], pivots[rows, steps + 1]
        prompt, null = self._prompts(batch)
        x = self.own_latents(model, batch, host_steps, prompt, null, rng) if self.objective.own_share else pivot
        reference = self.step.reference(x, pivot, steps, prompt, null)
        modulation = Modulation(*model(batch["clip"], self.step.timesteps(steps), prompt.embeds.float()))
        rec, attention = self.step.losses(x, target, steps, prompt, reference, modulation)
        return StepLoss(
            {"rec": rec.mean(), "attention": self.objective.attention_weight * attention.mean()},
            {"step_error": rec.detach()},
            (host_steps * len(PHASES) // len(self.ddim)).to(device, non_blocking=True),
        )

    @torch.no_grad()
    def own_latents(
        self, model: nn.Module, batch: Batch, steps: Tensor, prompt: Prompt, null: Prompt, rng: StepRandom
    ) -> Tensor:
        """The latents [B, 4, h, w] at steps [B] (CPU): pivots, and for `own_share` of the samples the mapper's own.

        Those are what guided sampling with the mapped values makes of a pivot 1 to `own_steps` steps before.
        """
        pivots: Tensor = batch["pivots"]
        counts = self._own_counts(steps, rng)
        starts = steps - counts
        x = pivots[torch.arange(len(pivots), device=pivots.device), starts.to(pivots.device, non_blocking=True)]
        taken = [torch.nonzero(counts > number).squeeze(1) for number in range(int(counts.max()))]
        moves = [(rows, starts[rows] + number) for number, rows in enumerate(taken)]
        if not moves and not is_sharded(model):
            return x
        # A process without a sample of its own still takes part where the mapper lies in pieces, for nothing.
        mapped = self._map_moves(model, batch, prompt, moves or [(steps.new_zeros(1), steps[:1])])
        for rows, at, modulation in mapped[: len(moves)]:
            x[rows] = self.step.advance(x[rows], at, prompt[rows], null[rows], modulation)
        return x

    def _own_counts(self, steps: Tensor, rng: StepRandom) -> Tensor:
        """Number of sampling steps [B] (CPU) that each sample's latent is away from its pivot; 0 is the pivot itself.

        One draw says both whether there are any and how many.
        """
        share = rng.uniform("own") / self.objective.own_share
        counts = (share * self.objective.own_steps).long() + 1
        return torch.where(share < 1, counts, 0).minimum(steps)

    def _map_moves(
        self, model: nn.Module, batch: Batch, prompt: Prompt, moves: Sequence[tuple[Tensor, Tensor]]
    ) -> list[tuple[Tensor, Tensor, Modulation]]:
        """Moves of rows at steps (CPU), on the device and with their modulations.

        The mapper does not see latents, so all are mapped in one call.
        """
        tokens: Tensor = batch["clip"]
        sizes = [len(rows) for rows, _ in moves]
        rows, at = (torch.cat(parts).to(tokens.device, non_blocking=True) for parts in zip(*moves, strict=True))
        scale, shift = model(tokens[rows], self.step.timesteps(at), prompt.embeds[rows].float())
        parts = (tensor.split(sizes) for tensor in (rows, at, scale, shift))
        return [(rows, at, Modulation(scale, shift)) for rows, at, scale, shift in zip(*parts, strict=True)]

    @torch.no_grad()
    def preview(self, model: nn.Module, batch: Batch, rng: StepRandom) -> dict[str, Tensor]:
        """The image where the shards hold it, the VAE's round trip, and guided sampling without and with the mapper."""
        pivots: Tensor = batch["pivots"].transpose(0, 1)
        prompt, null = self._prompts(batch)
        mapped = amortised(model, batch["clip"], self.ddim, prompt)
        columns = {"image": batch["image"]} if "image" in batch else {}
        columns["VAE round trip"] = self.backbone.decode(pivots[-1])
        for name, values in (("DDIM", None), ("mapped values", mapped)):
            trajectory = Trajectory(pivots[0], prompt, (null,) * len(self.ddim), values, self.step.objective.into)
            latents = reconstruct(self.backbone, self.ddim, trajectory, self.step.objective.guidance)
            columns[name] = self.backbone.decode(latents[-1])
        return columns

    @torch.no_grad()
    def validate(self, model: nn.Module, batch: Batch, rng: SampleRandom) -> dict[str, Tensor]:
        """The loss at a random step of each held-out sample, and whole inversions (train.methods.stylediffusion.drift).

        The one figure does not see the other: what a step leaves undone grows along the way.
        """
        count = len(batch["key"])
        loss = loss_of_each(self.loss(model, batch, rng), count, self.groups)
        return loss | measure_drift(self.step, model, batch).figures

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """Return the means unchanged."""
        return means

    def _prompts(self, batch: Batch) -> tuple[Prompt, Prompt]:
        prompt = self.backbone.encode_text(batch["caption"], self.backbone.size_of(batch["pivots"]))
        return prompt, matching(self._null, prompt)


def load(config: StyleDiffusionConfig, device: torch.device) -> tuple[Task, ShardDataset]:
    """The task on `device`, and its data: shards with pivots and image tokens (data.encode --pivots --clip).

    Raises:
        ValueError: another backbone, other steps or another CLIP made the shards.
    """
    dataset = ShardDataset(config.data.shards, StyleDiffusionTask.fields)
    wanted = config.backbone
    backbone = Backbone.load(wanted.path, device=device, dtype=dtype_of(wanted.dtype), variant=wanted.variant)
    image_tokens = ImageTokens.load(config.mapper.clip)
    task = StyleDiffusionTask(config, backbone, image_tokens.shape)
    check_pivots(dataset, backbone, task.ddim)
    check_image_tokens(dataset, image_tokens)
    return task, dataset
