"""InstructPix2Pix: train a Stable Diffusion to follow orders on a picture that it sees, from pairs of pictures."""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from data.shards.dataset import ShardDataset
from data.shards.origins import check_latents
from models.backbone import Backbone, dtype_of
from models.ddim import Ddim
from models.instruct_pix2pix import edit_by_instruction, predict_output
from models.text import Prompt
from models.unet_family import UNetBackbone
from train.methods.instruct_pix2pix.config import InstructPix2PixConfig, UNetConfig
from train.methods.lora import add_lora, check_shared_dtype
from train.methods.memory_options import apply_memory_options
from train.rng import StepRandom
from train.task import Batch, StepLoss, Task

PHASES = ("noisy", "middle", "clean")
PREVIEW_STEPS = 20


def load_backbone(config: InstructPix2PixConfig, device: torch.device | str) -> Backbone:
    """The backbone on `device`, frozen; its UNet in float32 where all of it will be trained."""
    wanted = config.backbone
    network_dtype = None if config.unet.lora.rank else torch.float32
    return Backbone.load(
        wanted.path, device=device, dtype=dtype_of(wanted.dtype), network_dtype=network_dtype, variant=wanted.variant
    )


def build_unet(base: UNet2DConditionModel, config: UNetConfig, seed: int) -> UNet2DConditionModel:
    """The UNet as its training starts: with weights of its own, or with adapters over those of `base`."""
    unet = UNetBackbone.widened(base, shared=config.lora.rank > 0)
    if config.lora.rank:
        add_lora(unet, config.lora, seed)
    return unet


class InstructPix2PixTask:
    """The noise in an edited picture's latent, seen beside the source picture and the order (section 3.2).

    Args:
        config: Config of the training.
        device: Device of the backbone.
        backbone: The backbone itself, if it is there already; of a full fine-tune its UNet loses its weights, which the
            trained one has taken over.

    Raises:
        ValueError: a backbone with two text encoders, or one that is no text-to-image model.
    """

    fields: tuple[str, ...] = ("latent", "source", "caption")
    groups: tuple[str, ...] = PHASES

    def __init__(
        self, config: InstructPix2PixConfig, device: torch.device | str, backbone: Backbone | None = None
    ) -> None:
        self.backbone = backbone or load_backbone(config, device)
        _check(self.backbone, config.backbone.path)
        self.schedule = self.backbone.schedule
        self.trainable: nn.Module = build_unet(self.backbone.unet, config.unet, config.run.seed)
        if not config.unet.lora.rank:
            self.backbone.unet.to("meta")  # it lies in memory once; of this one the config is still needed
        apply_memory_options(self.trainable, config.unet)
        self.dropout = config.objective.dropout
        self.backbone.assert_frozen()

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        """One random timestep a sample; the report is per sample."""
        x0: Tensor = batch["latent"]
        source, prompt = self.conditions(batch, rng.uniform("dropout"))
        num_timesteps = len(self.schedule.alphas_cumprod)
        host_t = rng.integers("timestep", num_timesteps)
        t = host_t.to(x0.device, non_blocking=True)

        # eq. 2: L = E ||eps - eps_theta(z_t, t, E(c_I), c_T)||^2, with v in the place of eps where the backbone says so
        noise = rng.normal("noise", x0.shape[1:])
        output = predict_output(model, self.schedule.add_noise(x0, noise, t), source, prompt, t)
        target = self.schedule.training_target(x0, noise, t)
        error = (output - target).square().flatten(1).mean(1)

        phase = (num_timesteps - 1 - host_t) * len(PHASES) // num_timesteps
        report = {"prediction_error": error.detach()}
        return StepLoss({"mse": error.mean()}, report, phase.to(x0.device, non_blocking=True))

    def conditions(self, batch: Batch, draw: Tensor) -> tuple[Tensor, Prompt]:
        """Conditions of each sample for the UNet: the source's latent [B, 4, h, w], unscaled, and the order.

        Args:
            draw: Uniform numbers [B] in [0, 1) on the CPU: the order is left out below 2p, the picture from p to 3p.
        """
        p, source = self.dropout, self.backbone.unscale(batch["source"])
        hidden = ((draw >= p) & (draw < 3 * p)).to(source.device, non_blocking=True)
        source = torch.where(hidden[:, None, None, None], 0.0, source)
        silent = (draw < 2 * p).tolist()
        orders = ["" if left_out else order for left_out, order in zip(silent, batch["caption"], strict=True)]
        return source, self.backbone.encode_text(orders, self.backbone.size_of(source))

    @torch.no_grad()
    def preview(self, model: nn.Module, batch: Batch, rng: StepRandom) -> dict[str, Tensor]:
        """The two pictures of the pairs, and what the UNet makes of the first with the paper's guidance."""
        source, prompt = self.conditions(batch, torch.ones(len(batch["caption"])))
        null = self.backbone.encode_text([""])
        noise = rng.normal("noise", source.shape[1:])
        edited = edit_by_instruction(model, Ddim(self.schedule, PREVIEW_STEPS), source, prompt, null, noise)
        latents = {"source": batch["source"], "target": batch["latent"], "edit": edited}
        return {name: self.backbone.decode(latent) for name, latent in latents.items()}

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """Return the means unchanged."""
        return means


def _check(backbone: Backbone, path: str) -> None:
    """Raises ValueError if `backbone` is not Stable Diffusion 1 or 2 for text to image."""
    if backbone.text is not None and len(backbone.text.encoders) > 1:
        raise ValueError(
            f"{path} has two text encoders (SDXL); InstructPix2Pix takes Stable Diffusion 1 and 2: set backbone.path"
        )
    channels, expected = backbone.unet.config.in_channels, backbone.vae.config.latent_channels
    if channels != expected:
        raise ValueError(
            f"the UNet of {path} has {channels} input channels, expected {expected} for a latent alone: set "
            "backbone.path to a text-to-image model"
        )


def load(config: InstructPix2PixConfig, device: torch.device) -> tuple[Task, ShardDataset]:
    """The task on `device` and its data.

    Raises:
        ValueError: another VAE made the shards' latents, they lack what the task reads, or the UNet shares weights that
            a CPU's autocast cannot take.
    """
    if config.unet.lora.rank:
        check_shared_dtype(config.backbone.dtype, config.run.mixed_precision, device, "backbone.dtype")
    dataset = ShardDataset(config.data.shards, InstructPix2PixTask.fields)
    task = InstructPix2PixTask(config, device)
    check_latents(dataset, task.backbone)
    return task, dataset
