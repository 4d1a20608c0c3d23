"""InstructPix2Pix's part of the export: diffusers' own pipeline, which needs no code of ours."""

from typing import Any

import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)

from eval.editors.instruct_pix2pix import WITHOUT_CHECKER
from models.backbone import Backbone, dtype_of
from models.components import load_components
from models.instruct_pix2pix import IMAGE_GUIDANCE, TEXT_GUIDANCE
from models.unet_family import UNetBackbone
from train.method import Example, ExportParts, Storage, TrainedWeights, Trial
from train.methods.instruct_pix2pix.config import InstructPix2PixConfig
from train.methods.instruct_pix2pix.task import build_unet
from train.methods.lora import merge
from train.run.weights import load_trained

COMPONENTS = ("vae", "text_encoder", "tokenizer")
STEPS, PICTURE_STEPS = 3, 20
ROWS = 3
"""Guidance by words and by the picture evaluates the UNet on three at once."""

CARD = f"""\
# InstructPix2Pix on {{{{ base }}}}

Edits a picture by an order. guidance_scale says how much of the order is done, image_guidance_scale how much of the \
picture stays.

```python
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from PIL import Image, ImageOps

folder, device, dtype = "PATH/OF/THIS/FOLDER", "cuda", torch.float16  # on a CPU: "cpu", torch.float32
pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(folder, torch_dtype=dtype).to(device)
side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGBA")  # turned as it was held, and on white
photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")
edited = pipeline(
    "make it snow",
    image=ImageOps.fit(photo, (side, side)),
    num_inference_steps=100,
    guidance_scale={TEXT_GUIDANCE},
    image_guidance_scale={IMAGE_GUIDANCE},
)
edited.images[0].save("edited.png")
```

The folder holds weights alone, without a safety checker; the pipeline is diffusers' own. Of the figures below, \
`prediction_error/…` is the squared error at noisy, middle and clean timesteps.
"""


def build_pipeline(trained: TrainedWeights, storage: Storage) -> StableDiffusionInstructPix2PixPipeline:
    """The run's UNet in diffusers' pipeline, on the CPU, with the paper's Euler-ancestral sampler."""
    wanted = trained.config.backbone
    unet = _stock_unet(trained, storage)
    parts = load_components(wanted.path, storage.dtype, wanted.variant, **WITHOUT_CHECKER)
    return StableDiffusionInstructPix2PixPipeline(
        **{name: parts[name] for name in COMPONENTS},
        unet=unet,
        scheduler=EulerAncestralDiscreteScheduler.from_config(parts["scheduler"].config),
        **WITHOUT_CHECKER,
    )


def _stock_unet(trained: TrainedWeights, storage: Storage) -> UNet2DConditionModel:
    """The UNet with stock names."""
    config: InstructPix2PixConfig = trained.config
    wanted = config.backbone
    if config.unet.lora.rank:
        base = Backbone.load(wanted.path, dtype=dtype_of(wanted.dtype), variant=wanted.variant, parts=("network",)).unet
        unet = build_unet(base, config.unet, config.run.seed)
        load_trained(unet, dict(trained.weights))
        merge(unet, storage)
    else:
        with torch.device("meta"):
            shape = UNet2DConditionModel.load_config(wanted.path, subfolder="unet")
            unet = UNetBackbone.widened(UNet2DConditionModel.from_config(shape))
        weights = {name: storage.cast(name, weight) for name, weight in trained.weights.items()}
        unet.load_state_dict(weights, strict=True, assign=True)
    return unet.requires_grad_(False).eval()


@torch.no_grad()
def trial(pipeline: StableDiffusionInstructPix2PixPipeline, example: Example) -> Trial:
    """Latents of the example, edited in a few steps; its edit in more as a picture."""
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    picture = example.picture.resize((side, side))

    def edit(num_steps: int, output_type: str) -> Any:
        return pipeline(
            example.instruction,
            image=picture,
            num_inference_steps=num_steps,
            guidance_scale=TEXT_GUIDANCE,
            image_guidance_scale=IMAGE_GUIDANCE,
            generator=torch.Generator().manual_seed(0),
            output_type=output_type,
        ).images

    return Trial(edit(STEPS, "latent"), lambda: {f"edit: {example.instruction}": edit(PICTURE_STEPS, "pil")[0]})


EXPORT = ExportParts(
    build=build_pipeline,
    trial=trial,
    evaluations=lambda pipeline: ROWS * (2 * STEPS + PICTURE_STEPS),
    card=CARD,
    figures=("loss", "mse", "prediction_error"),
    tags=("image-editing", "instruct-pix2pix"),
)
