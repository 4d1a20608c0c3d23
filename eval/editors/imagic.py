"""Imagic (Kawar et al. 2023): fit the target's embedding and then the model to the image, edit between embeddings."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from eval.editors.editor import EditRequest, InvertedImages, Settings
from eval.editors.few_steps import decode_latents, networks_of
from eval.editors.finetuning import descend, finetune, finetune_adapter, wearing
from eval.editors.options import ImagicConfig
from eval.editors.randomness import image_keys, image_noise, image_seed
from models.backbone import Backbone
from models.ddim import Ddim, guided_noise
from models.text import Prompt, interpolate


@dataclass(frozen=True)
class FittedImage:
    """Imagic's fits of one image and one target: prompts [1], and by name the weights that are not the UNet's."""

    optimised: Prompt
    target: Prompt
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class ImagicState:
    """Latents [B, C, h, w] with the keys of their noise, and what is fitted by now, by row and target's prompt."""

    latents: Tensor
    keys: tuple[int, ...]
    fitted: dict[tuple[int, str], FittedImage] = field(default_factory=dict)


def denoising_loss(backbone: Backbone, x0: Tensor, prompt: Prompt, t: Tensor, noise: Tensor) -> Tensor:
    """The diffusion loss of one latent x0 [1, C, h, w] and its prompt [1], at t [n] and noise [n, C, h, w].

    The UNet's output is compared with what it should give by its prediction type, noise or velocity.
    """
    clean = x0.expand_as(noise)
    output = backbone.predict(backbone.schedule.add_noise(clean, noise, t), prompt[[0] * len(noise)], t)
    return (output - backbone.schedule.training_target(clean, noise, t)).square().mean()


class Imagic:
    """Imagic: (A) an embedding near the target's that describes the image, (B) the UNet fitted with it, (C) their mix.

    Strength is eta of eta target + (1 - eta) optimised: 0 gives the image back. Both fits depend on the target, so they
    are done for each (and cost an edit), image by image; an inversion keeps them for the edits of other strengths. In
    full each keeps all of the UNet's weights.

    Args:
        backbone: a model with its UNet in float32; it is the same after every call.
        ddim: steps of the sampling from random noise.
        guidance: guidance of the sampling.
        seed: seed of the draws of both fits.
    """

    name = "imagic"
    strengths = (0.5, 0.7, 0.9, 1.1)

    def __init__(
        self, backbone: Backbone, ddim: Ddim, guidance: float, config: ImagicConfig | None = None, seed: int = 0
    ) -> None:
        if backbone.unet.dtype != torch.float32:
            raise ValueError(f"Imagic trains the UNet, which is {backbone.unet.dtype}; load the backbone in float32")
        self.backbone = backbone
        self.ddim = ddim
        self.guidance = guidance
        self.config = config or ImagicConfig()
        self.seed = seed
        self.networks = networks_of(backbone)

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {
            "timesteps": self.ddim.timesteps,
            "guidance": self.guidance,
            "config": asdict(self.config),
            "seed": self.seed,
        }

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """The latents; all else depends on the target."""
        # Each alone: what a batch rounds differently, the fits would make larger.
        latents = torch.cat([self.backbone.encode_image(image) for image in images.split(1)])
        state = ImagicState(latents, image_keys(images))
        return InvertedImages(tuple(prompts), {}, state)

    def fit_target(self, inversion: InvertedImages, request: EditRequest) -> None:
        """Steps A and B for each image and its target, where they are not done yet."""
        state = inversion.state
        for row, target in enumerate(request.prompt):
            if (row, target) not in state.fitted:
                state.fitted[row, target] = self._fit(state.latents[row : row + 1], state.keys[row], target)

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Sampled between the embeddings; eta is 0.7 by default."""
        self.fit_target(inversion, request)
        eta = 0.7 if request.strength is None else request.strength
        return decode_latents(self.backbone, self._sample(inversion.state, request.prompt, eta, request.seed))

    def reconstruct(self, inversion: InvertedImages) -> tuple[Tensor, ...]:
        """The latents at eta 0, with what was fitted first; without any edit so far, to the image's own prompt."""
        state = inversion.state
        if not state.fitted:
            self.fit_target(inversion, EditRequest(inversion.prompts))
        targets = [next(target for row, target in state.fitted if row == i) for i in range(len(state.latents))]
        return (self._sample(state, targets, eta=0.0, seed=0),)

    def _fit(self, x0: Tensor, key: int, text: str) -> FittedImage:
        """Steps A and B for one latent [1, C, h, w]."""
        config, unet = self.config, self.backbone.unet
        target = self.backbone.encode_text([text], self.backbone.size_of(x0))
        embeds = target.embeds.clone().requires_grad_()
        loss = self._loss(x0, Prompt(embeds, target.pooled, target.time_ids), image_seed(key, "embedding", self.seed))
        descend([embeds], loss, config.embedding_steps, config.embedding_lr)
        optimised = Prompt(embeds.detach(), target.pooled, target.time_ids)
        seed = image_seed(key, "weights", self.seed)
        loss = self._loss(x0, optimised, seed)
        if config.lora_rank is None:
            weights = finetune(unet, loss, config.unet_steps, config.unet_lr)
        else:
            weights = finetune_adapter(unet, loss, config.unet_steps, config.unet_lr, config.lora_rank, seed)
        return FittedImage(optimised, target, weights)

    def _loss(self, x0: Tensor, prompt: Prompt, seed: int) -> Callable[[], Tensor]:
        """The diffusion loss with new timesteps and noises at every call, all of them from `seed`."""
        generator = torch.Generator().manual_seed(seed)
        count, levels = self.config.draws, len(self.backbone.schedule.alphas_cumprod)

        def loss() -> Tensor:
            t = torch.randint(levels, (count,), generator=generator).to(x0.device)
            noise = torch.randn((count, *x0.shape[1:]), generator=generator).to(x0)
            return denoising_loss(self.backbone, x0, prompt, t, noise)

        return loss

    def _sample(self, state: ImagicState, targets: Sequence[str], eta: float, seed: int) -> Tensor:
        """Step C: latents [B, C, h, w] from random noise, each by its own weights."""
        null = self.backbone.encode_text([""], self.backbone.size_of(state.latents))
        starts = image_noise(state.keys, "imagic", seed, state.latents)
        rows = []
        for row, (start, target) in enumerate(zip(starts.split(1), targets, strict=True)):
            fitted = state.fitted[row, target]
            prompt = interpolate(fitted.optimised, [fitted.target], [eta])
            with wearing(self.backbone.unet, fitted.weights):
                rows.append(self._denoise(start, prompt, null))
        return torch.cat(rows)

    def _denoise(self, start: Tensor, prompt: Prompt, null: Prompt) -> Tensor:
        """A latent [1, C, h, w] by guided DDIM."""

        def noise(x: Tensor, step: int) -> Tensor:
            return guided_noise(self.backbone, x, self.ddim.timesteps[step], prompt, null, self.guidance)

        return self.ddim.denoise(start, noise)[-1]
