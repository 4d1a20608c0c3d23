"""The toy method's part of the export."""

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from eval.editors.instruct_pix2pix import WITHOUT_CHECKER
from tests.toy_method.pipeline import ToyPipeline
from train.method import ExportParts, TrainedWeights
from train.run.weights import load_trained

CARD = "# A toy on {{ base }}\n"
COMPONENTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")


def build_pipeline(trained: TrainedWeights) -> ToyPipeline:
    """The model with the trained convolution."""
    stock = DiffusionPipeline.from_pretrained(
        trained.config.denoiser.path, torch_dtype=torch.float32, **WITHOUT_CHECKER
    )
    stock.unet.requires_grad_(False).conv_out.requires_grad_(True)
    load_trained(stock.unet, trained.weights)
    return ToyPipeline(**{name: stock.components[name] for name in COMPONENTS}, **WITHOUT_CHECKER)


@torch.no_grad()
def outputs(pipeline: ToyPipeline) -> Tensor:
    """Latents of a picture in two steps."""
    draw = torch.Generator().manual_seed(0)
    return pipeline("a picture", num_inference_steps=2, generator=draw, output_type="latent").images


EXPORT = ExportParts(build=build_pipeline, outputs=outputs, card=CARD, figures=("loss",), tags=("toy",))
