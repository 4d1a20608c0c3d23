"""InstructPix2Pix's part of the export: diffusers' own pipeline, which needs no code of ours."""

import torch
from diffusers import (
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from torch import Tensor

from eval.editors.instruct_pix2pix import WITHOUT_CHECKER
from models.backbone import dtype_of, freeze
from models.instruct_pix2pix import IMAGE_GUIDANCE, TEXT_GUIDANCE
from models.widening import widened
from train.method import ExportParts, TrainedWeights
from train.methods.instruct_pix2pix.config import InstructPix2PixConfig
from train.methods.instruct_pix2pix.task import build_unet
from train.methods.lora import merged, rounded
from train.run.weights import load_trained

COMPONENTS = ("vae", "text_encoder", "tokenizer")
STEPS = 3

CARD = f"""\
# InstructPix2Pix on {{{{ config.backbone.path }}}}

Edits a picture by an order. guidance_scale says how much of the order is done, image_guidance_scale how much of the \
picture stays.

```python
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from PIL import Image

pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained("PATH/OF/THIS/FOLDER", torch_dtype=torch.float16)
side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
picture = Image.open("photo.jpg").convert("RGB").resize((side, side))
edited = pipeline.to("cuda")(
    "make it snow",
    image=picture,
    num_inference_steps=100,
    guidance_scale={TEXT_GUIDANCE},
    image_guidance_scale={IMAGE_GUIDANCE},
)
edited.images[0].save("edited.png")
```

The folder holds weights alone, without a safety checker; the pipeline is diffusers' own. Of the figures below, \
`prediction_error/…` is the squared error at noisy, middle and clean timesteps.
"""


def build_pipeline(trained: TrainedWeights) -> StableDiffusionInstructPix2PixPipeline:
    """The run's UNet in diffusers' pipeline, in float32 on the CPU, with the paper's Euler-ancestral sampler."""
    wanted = trained.config.backbone
    stock = DiffusionPipeline.from_pretrained(
        wanted.path, variant=wanted.variant, torch_dtype=torch.float32, **WITHOUT_CHECKER
    )
    return StableDiffusionInstructPix2PixPipeline(
        **{name: stock.components[name] for name in COMPONENTS},
        unet=_stock_unet(trained, stock.unet),
        scheduler=EulerAncestralDiscreteScheduler.from_config(stock.scheduler.config),
        **WITHOUT_CHECKER,
    )


def _stock_unet(trained: TrainedWeights, base: UNet2DConditionModel) -> UNet2DConditionModel:
    """The UNet with stock names; of a full fine-tune its weights are those of the checkpoint, not copies."""
    config: InstructPix2PixConfig = trained.config
    if config.unet.lora.rank:
        rounded(base, dtype_of(config.backbone.dtype))
        unet = build_unet(freeze(base), config.unet, config.run.seed)
        load_trained(unet, trained.weights)
        unet = merged(unet)
    else:
        with torch.device("meta"):
            unet = widened(UNet2DConditionModel.from_config(base.config))
        unet.load_state_dict(trained.weights, strict=True, assign=True)
        trained.weights.clear()
    return unet.requires_grad_(False).eval()


@torch.no_grad()
def outputs(pipeline: StableDiffusionInstructPix2PixPipeline) -> Tensor:
    """Latents of a random picture, edited in a few steps."""
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    return pipeline(
        "make it a picture",
        image=image,
        num_inference_steps=STEPS,
        guidance_scale=TEXT_GUIDANCE,
        image_guidance_scale=IMAGE_GUIDANCE,
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
    ).images


EXPORT = ExportParts(
    build=build_pipeline,
    outputs=outputs,
    card=CARD,
    figures=("loss", "mse", "prediction_error"),
    tags=("image-editing", "instruct-pix2pix"),
)
