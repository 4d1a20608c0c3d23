"""pix2pix-zero (Parmar et al. 2023): an edit direction in embeddings, cross attention guided to the image's."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from eval.editors.editor import EditRequest, InvertedImages, Settings
from eval.editors.few_steps import decode_latents, networks_of
from eval.editors.noise_regularisation import NoiseRegularisation
from eval.editors.randomness import image_keys, image_seed
from eval.editors.source_branch import unguided
from models.attention import controlled
from models.attention_maps import Record
from models.backbone import Backbone
from models.ddim import Ddim, predict_noise
from models.text import Prompt, concatenate, interpolate

Maps = dict[str, Tensor]
"""Cross-attention maps [b, heads, Q, L] by layer."""


@dataclass(frozen=True)
class Pix2PixZeroState:
    """Pivots [n + 1, B, 4, h, w] of the regularised inversion and the source's prompt [B]."""

    pivots: Tensor
    prompt: Prompt


class Pix2PixZero:
    """Guidance from the source's prompt to the edited one; before each step x moves so that its maps stay the image's.

    The direction is the difference of the two prompts' embeddings, as in PIE-Bench's runner (the paper takes means over
    many sentences of one word); strength is how far the edited prompt goes along it, 1 by default. As in the official
    code the source's prompt is also the negative one, so that the reference is sampled without guidance; the two rows
    of an edit, the source's prompt and the edited one, move apart from the same x, and the first goes on.

    Args:
        backbone: the text-to-image model.
        ddim: the steps.
        guidance: w.
        amount: rate of the one gradient step in the maps' squared distance; diffusers' documentation asks for a tenth
            of it where the model predicts velocities.
        regularisation: regularisation of the inversion's noise.
        held: set the reference to the pivots, as in direct inversion, and move the edit by the same offsets; the row
            is then called direct_pix2pix_zero.
        seed: seed of the regularisation's shifts.
    """

    strengths = (0.5, 1.0, 1.5, 2.0)

    def __init__(
        self,
        backbone: Backbone,
        ddim: Ddim,
        guidance: float = 7.5,
        amount: float = 0.1,
        regularisation: NoiseRegularisation | None = None,
        held: bool = False,
        seed: int = 0,
    ) -> None:
        self.backbone = backbone
        self.ddim = ddim
        self.guidance = guidance
        self.amount = amount
        self.regularisation = regularisation or NoiseRegularisation()
        self.held = held
        self.seed = seed
        self.name = "direct_pix2pix_zero" if held else "pix2pix_zero"
        self.networks = networks_of(backbone)

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {
            "timesteps": self.ddim.timesteps,
            "guidance": self.guidance,
            "amount": self.amount,
            "regularisation": asdict(self.regularisation),
            "held": self.held,
            "seed": self.seed,
        }

    @torch.no_grad()
    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """DDIM with the source's prompt at guidance 1, each prediction regularised."""
        latent = self.backbone.encode_image(images)
        prompt = self.backbone.encode_text(prompts, self.backbone.size_of(latent))
        generators = [
            torch.Generator().manual_seed(image_seed(key, "pix2pix_zero", self.seed)) for key in image_keys(images)
        ]

        def noise(x: Tensor, step: int) -> Tensor:
            found = predict_noise(self.backbone, x, self.ddim.timesteps[step], prompt)
            return self.regularisation(found, generators)

        pivots = self.ddim.invert(latent, noise)
        return InvertedImages(tuple(prompts), {self.ddim.timesteps[0]: pivots[0]}, Pix2PixZeroState(pivots, prompt))

    @torch.no_grad()
    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Reference and edit side by side, so that no maps are kept."""
        pivots, prompt = inversion.state.pivots, inversion.state.prompt
        strength = 1.0 if request.strength is None else request.strength
        edited = interpolate(prompt, [self.backbone.encode_text(request.prompt)], [strength])
        pair = concatenate([prompt, edited])
        source = x = pivots[0]
        for step in range(len(self.ddim)):
            noise, maps = self._maps(source, step, prompt)
            source = self.ddim.move(source, noise, step, step + 1)
            both = self._guided(torch.cat([x, x]), step, pair, maps)
            noises = predict_noise(self.backbone, both, self.ddim.timesteps[step], pair)
            unconditional, conditional = noises.chunk(2)
            noise = unconditional + self.guidance * (conditional - unconditional)
            x = self.ddim.move(both.chunk(2)[0], noise, step, step + 1)
            if self.held:
                x, source = x + pivots[step + 1] - source, pivots[step + 1]
        return decode_latents(self.backbone, x)

    @torch.no_grad()
    def reconstruct(self, inversion: InvertedImages) -> tuple[Tensor, ...]:
        """The latent at the end of the reference."""
        pivots, prompt = inversion.state.pivots, inversion.state.prompt
        return (pivots[-1] if self.held else unguided(self.backbone, self.ddim, pivots[0], prompt),)

    def _maps(self, x: Tensor, step: int, prompt: Prompt) -> tuple[Tensor, Maps]:
        """The noise in x [b, 4, h, w] and all cross-attention maps."""
        record = Record(None)
        with controlled(self.backbone.unet, [record]):
            return predict_noise(self.backbone, x, self.ddim.timesteps[step], prompt), record.found

    @torch.enable_grad()
    def _guided(self, x: Tensor, step: int, pair: Prompt, reference: Maps) -> Tensor:
        """Latents x [2 B, 4, h, w] after a gradient step towards the reference's maps [B, heads, Q, L].

        Squares are summed over places, words and layers, and averaged over the heads of both rows of an image.
        """
        if not self.amount:
            return x
        x = x.detach().requires_grad_()
        _, maps = self._maps(x, step, pair)
        distance = torch.stack(
            [
                (found - torch.cat([reference[name]] * 2)).float().square().sum() / (2 * found.shape[1])
                for name, found in maps.items()
            ]
        ).sum()
        (gradient,) = torch.autograd.grad(distance, x)
        return x.detach() - self.amount * gradient
