"""References that editors are read against: nothing changed, the true edit, the generator without an image."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from eval.editors.editor import EditRequest, InvertedImages, Settings
from eval.editors.few_steps import decode_latents, networks_of
from eval.editors.randomness import image_keys, image_noise
from models.backbone import Backbone
from models.ddim import Ddim, guided_noise, matching
from models.generator import FewStepGenerator


class Identity:
    """The VAE's round trip of the source: keeps everything, changes nothing."""

    name = "identity"
    strengths = (1.0,)

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.networks = networks_of(backbone)

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {}

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """The latents."""
        return InvertedImages(tuple(prompts), {}, self.backbone.encode_image(images))

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """The latents decoded."""
        return decode_latents(self.backbone, inversion.state)


class Truth:
    """The VAE's round trip of the true edit: what a perfect editor on these latents would give."""

    name = "truth"
    strengths = (1.0,)

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.networks = networks_of(backbone)

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {}

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """The prompts alone."""
        return InvertedImages(tuple(prompts), {}, None)

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Raises ValueError if the request does not hold the true edit."""
        if request.truth is None:
            raise ValueError("the reference `truth` needs EditRequest.truth, the true edits [B, 3, H, W]")
        return decode_latents(self.backbone, self.backbone.encode_image(request.truth))


class Ceiling:
    """The generator's picture of the target's caption from fresh noise: no edit can be expected to obey better."""

    name = "ceiling"
    strengths = (1.0,)

    def __init__(self, generator: FewStepGenerator) -> None:
        self.generator = generator
        self.backbone = generator.backbone
        self.networks = networks_of(self.backbone)

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {"timesteps": self.generator.timesteps}

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """The keys of the noise; the latents only for their shape."""
        return InvertedImages(tuple(prompts), {}, (image_keys(images), self.backbone.encode_image(images)))

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Sample all of the generator's steps."""
        keys, like = inversion.state
        noises = [image_noise(keys, f"ceiling {t}", request.seed, like) for t in self.generator.timesteps]
        prompt = self.backbone.encode_text(request.prompt, self.backbone.size_of(like))
        return decode_latents(self.backbone, self.generator.sample(noises, prompt)[-1])


class GuidedCeiling:
    """Sampling from fresh noise: no edit can be expected to obey better."""

    name = "ceiling"
    strengths = (1.0,)

    def __init__(self, backbone: Backbone, ddim: Ddim, guidance: float = 7.5) -> None:
        self.backbone = backbone
        self.ddim = ddim
        self.guidance = guidance
        self.networks = networks_of(backbone)

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {"timesteps": self.ddim.timesteps, "guidance": self.guidance}

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """The keys of the noise; the latents only for their shape."""
        return InvertedImages(tuple(prompts), {}, (image_keys(images), self.backbone.encode_image(images)))

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Sample all steps."""
        keys, like = inversion.state
        prompt = self.backbone.encode_text(request.prompt, self.backbone.size_of(like))
        null = matching(self.backbone.encode_text([""]), prompt)

        def noise(x: Tensor, step: int) -> Tensor:
            return guided_noise(self.backbone, x, self.ddim.timesteps[step], prompt, null, self.guidance)

        start = image_noise(keys, "ceiling", request.seed, like)
        return decode_latents(self.backbone, self.ddim.denoise(start, noise)[-1])


class PictureReference:
    """Shared parts of the references: no network, no strength, an inversion that remembers the pictures."""

    name: str
    strengths: ClassVar[tuple[float, ...]] = (1.0,)
    networks: ClassVar[tuple[nn.Module, ...]] = ()
    settings: ClassVar[Settings] = {}

    def invert(self, images: Tensor, prompts: Sequence[str]) -> InvertedImages:
        """The pictures."""
        return InvertedImages(tuple(prompts), {}, images)


class UnchangedPicture(PictureReference):
    """The source itself: keeps everything, changes nothing."""

    name = "identity"

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """The source."""
        return inversion.state


class TruePicture(PictureReference):
    """The true edit itself."""

    name = "truth"

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Raises ValueError if the request does not hold the true edit."""
        if request.truth is None:
            raise ValueError("the true edit of this picture is not known")
        return request.truth


class NoisePicture(PictureReference):
    """Uniform random pixels: keeps nothing."""

    name = "noise"

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Noise that follows from the picture and the request's seed."""
        normal = image_noise(image_keys(inversion.state), self.name, request.seed, inversion.state)
        return torch.special.ndtr(normal) * 2 - 1
