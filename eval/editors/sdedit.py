"""SDEdit (Meng et al. 2022): noise the image to a timestep, denoise it with the target's prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from eval.editors.editor import EditRequest, InvertedImages, Settings
from eval.editors.few_steps import decode_latents, full, networks_of
from eval.editors.randomness import image_keys, image_noise
from models.generator import FewStepGenerator


@dataclass(frozen=True)
class SdeditState:
    """Latents of the images and the keys of their noise."""

    latent: Tensor
    keys: tuple[int, ...]


class Sdedit:
    """SDEdit with the generator's own sampler; its strength is the timestep where it starts (by default the second)."""

    name = "sdedit"

    def __init__(self, generator: FewStepGenerator) -> None:
        self.generator = generator
        self.backbone = generator.backbone
        self.networks = networks_of(self.backbone)
        self.strengths = tuple(float(t) for t in reversed(generator.timesteps))

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {"timesteps": self.generator.timesteps}

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """The latents alone."""
        return InvertedImages(tuple(prompts), {}, SdeditState(self.backbone.encode_image(images), image_keys(images)))

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Sample from the timestep `strength` down, fresh noise at each step; 0 leaves the image as it is.

        Raises ValueError for a strength that is no timestep.
        """
        last = len(self.generator.schedule.alphas_cumprod) - 1
        start = self.generator.timesteps[1] if request.strength is None else int(request.strength)
        if not 0 <= start <= last:
            raise ValueError(f"SDEdit's strength is {start}; expected a timestep from 0 (no change) to {last}")
        x0 = inversion.state.latent
        prompt = self.backbone.encode_text(request.prompt, self.backbone.size_of(x0))
        for t in self._timesteps_from(start):
            noise = image_noise(inversion.state.keys, f"sdedit {t}", request.seed, x0)
            x_t = self.generator.schedule.add_noise(x0, noise, full(t, x0))
            x0 = self.generator.predict_x0(x_t, prompt, full(t, x0))
        return decode_latents(self.backbone, x0)

    def _timesteps_from(self, start: float) -> list[float]:
        """`start` and the generator's timesteps below it; none for 0."""
        return [start, *(t for t in self.generator.timesteps if t < start)] if start else []
