"""StyleDiffusion, amortised: train one mapping network for all images and timesteps on a frozen Stable Diffusion."""

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
from models.text import ClipText, Prompt
from models.value_mapper import AmortisedMapper, Modulation
from train.methods.stylediffusion.config import MapperConfig, StyleDiffusionConfig
from train.rng import StepRandom
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

    def __init__(self, config: StyleDiffusionConfig, backbone: Backbone, tokens: tuple[int, int]) -> None:
        self.backbone = backbone
        if not isinstance(self.backbone.text, ClipText):
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
        self.attention_weight = config.objective.attention_weight
        self.backbone.assert_frozen()

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        """L_rec + weight L_attn (eq. 5 to 8) at one random step of each sample."""
        pivots: Tensor = batch["pivots"]
        device = pivots.device
        host_steps = rng.integers("step", len(self.ddim))
        steps, rows = host_steps.to(device, non_blocking=True), torch.arange(len(pivots), device=device)
        x, target = pivots[rows, steps], pivots[rows, steps + 1]
        prompt, null = self._prompts(batch)
        reference = self.step.reference(x, x, steps, prompt, null)
        modulation = Modulation(*model(batch["clip"], self.step.timesteps(steps), prompt.embeds.float()))
        rec, attention = self.step.losses(x, target, steps, prompt, reference, modulation)
        return StepLoss(
            {"rec": rec.mean(), "attention": self.attention_weight * attention.mean()},
            {"step_error": rec.detach()},
            (host_steps * len(PHASES) // len(self.ddim)).to(device, non_blocking=True),
        )

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
