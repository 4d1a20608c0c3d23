"""The toy method's part of the export."""

import torch

from eval.editors.instruct_pix2pix import WITHOUT_CHECKER
from models.components import load_components
from tests.toy_method.pipeline import ToyPipeline
from train.method import Example, ExportParts, Storage, TrainedWeights, Trial
from train.run.weights import load_trained

CARD = "# A toy on {{ base }}\n"
COMPONENTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")


def build_pipeline(trained: TrainedWeights, storage: Storage) -> ToyPipeline:
    """The model with the trained convolution."""
    parts = load_components(trained.config.denoiser.path, storage.dtype, **WITHOUT_CHECKER)
    parts["unet"].requires_grad_(False).conv_out.requires_grad_(True)
    load_trained(parts["unet"], dict(trained.weights))
    return ToyPipeline(**{name: parts[name] for name in COMPONENTS}, **WITHOUT_CHECKER)


@torch.no_grad()
def trial(pipeline: ToyPipeline, example: Example) -> Trial:
    """Latents of a picture in two steps; it edits nothing."""
    draw = torch.Generator().manual_seed(0)
    made = pipeline(example.caption, num_inference_steps=2, generator=draw, output_type="latent").images
    return Trial(made, dict)


EXPORT = ExportParts(
    build=build_pipeline, trial=trial, evaluations=lambda pipeline: 4, card=CARD, figures=("loss",), tags=("toy",)
)
