"""A pipeline with code of its own, which an export has to carry."""

from diffusers import StableDiffusionPipeline

from .words import greeting


class ToyPipeline(StableDiffusionPipeline):
    """Stable Diffusion that greets."""

    def greet(self) -> str:
        """Return a greeting."""
        return greeting()
