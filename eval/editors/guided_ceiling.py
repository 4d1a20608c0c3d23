"""Not an editor: what the guided backbone makes of the target's prompt without any image."""

from collections.abc import Sequence

from torch import Tensor

from eval.editors.editor import EditRequest, Inversion
from eval.editors.few_steps import decode, networks_of
from eval.editors.randomness import image_keys, image_noise
from models.backbone import Backbone
from models.ddim import Ddim, guided_noise, matching


class GuidedCeiling:
    """Sampling from fresh noise: no edit can be expected to obey better."""

    name = "ceiling"
    strengths = (1.0,)

    def __init__(self, backbone: Backbone, ddim: Ddim, guidance: float = 7.5) -> None:
        self.backbone = backbone
        self.ddim = ddim
        self.guidance = guidance
        self.networks = networks_of(backbone)

    def invert(self, images: Tensor, prompts: Sequence[str]) -> Inversion:
        """The keys of the noise; the latents only for their shape."""
        return Inversion(tuple(prompts), {}, (image_keys(images), self.backbone.encode_image(images)))

    def edit(self, inversion: Inversion, request: EditRequest) -> Tensor:
        """All steps."""
        keys, like = inversion.state
        prompt = self.backbone.encode_text(request.prompt)
        null = matching(self.backbone.encode_text([""]), prompt)

        def noise(x: Tensor, step: int) -> Tensor:
            return guided_noise(self.backbone, x, self.ddim.timesteps[step], prompt, null, self.guidance)

        start = image_noise(keys, "ceiling", request.seed, like)
        return decode(self.backbone, self.ddim.denoise(start, noise)[-1])
