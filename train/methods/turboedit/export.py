"""TurboEdit's part of the export."""

import copy

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from models.noise_encoder import NoiseEncoder
from models.quantized import dequantize
from models.schedule import NoiseSchedule
from models.turboedit_pipeline import TurboEditPipeline
from train.method import ExportParts, TrainedWeights
from train.methods.lora import merged
from train.methods.turboedit.adapter import ADAPTER, build_adapted

COMPONENTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "text_encoder_2", "tokenizer_2")

CARD = """\
# TurboEdit noise encoder for {{ config.generator.path }}

Inverts an image in {{ 2 * pipeline.timesteps|length }} network evaluations (timesteps \
{{ pipeline.timesteps|join(", ") }}) and edits it by its prompt in {{ pipeline.timesteps|length }}.

```python
import torch
from diffusers import DiffusionPipeline
from PIL import Image

pipeline = DiffusionPipeline.from_pretrained("PATH/OF/THIS/FOLDER", trust_remote_code=True)
inversion = pipeline.invert(Image.open("photo.jpg"), "a detailed description of the photo")
edited = pipeline.edit(inversion, "the same description with a change", strength=1.0, mask="auto")
edited.images[0].save("edited.png")
```

The folder carries the pipeline's code and needs torch, diffusers and transformers. Of the figures below \
`latent_mse/t…` is the squared error of the latent at each timestep; `noise_mean` and `noise_std` should be near \
0 and 1.
"""


def build_pipeline(trained: TrainedWeights) -> TurboEditPipeline:
    """The run's generator and encoder as a pipeline in float32 on the CPU; adapters are merged into the weights."""
    generator = trained.config.generator
    stock = DiffusionPipeline.from_pretrained(generator.path, variant=generator.variant, torch_dtype=torch.float32)
    return TurboEditPipeline(
        **{name: stock.components.get(name) for name in COMPONENTS},
        encoder=_stock_encoder(trained, stock.unet, NoiseSchedule.from_scheduler(stock.scheduler)),
        timesteps=" ".join(map(str, generator.timesteps)),
        attention_resolution=max(8, stock.unet.config.sample_size // 4),
    )


def _stock_encoder(
    trained: TrainedWeights, unet: UNet2DConditionModel, schedule: NoiseSchedule
) -> UNet2DConditionModel:
    """F's network with stock names; of a full fine-tune its weights are those of the checkpoint, not copies."""
    if trained.config.encoder.lora.rank:
        quantized = trained.config.generator.quantize is not None
        encoder = build_adapted(trained, copy.deepcopy(unet) if quantized else unet, schedule)
        dequantize(encoder.unet, torch.float32)
        return merged(encoder.unet).requires_grad_(False).eval()
    with torch.device("meta"):
        shape = UNet2DConditionModel.from_config(unet.config)
    encoder = NoiseEncoder.from_generator(shape, schedule)
    encoder.load_state_dict(trained.weights, strict=True, assign=True)
    trained.weights.clear()
    return encoder.unet.requires_grad_(False).eval()


@torch.no_grad()
def outputs(pipeline: TurboEditPipeline) -> Tensor:
    """Noises and reconstructions of a random picture."""
    side = pipeline.backbone.image_size
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    inversion = pipeline.invert(image, "a picture")
    return torch.stack([*inversion.noises, *inversion.reconstructions])


EXPORT = ExportParts(
    build=build_pipeline,
    outputs=outputs,
    card=CARD,
    figures=("loss", "latent_mse", "kl", "posterior_sigma", "noise_mean", "noise_std", "noise_over10"),
    adapter=ADAPTER,
)
