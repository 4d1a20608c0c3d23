"""Export of a LoRA run's own weights alone: some megabytes that need their base beside them.

python -m train.export runs/NAME OUT --lora apart
"""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from models.backbone import Backbone, dtype_of, freeze
from models.noise_encoder import NoiseEncoder
from models.schedule import NoiseSchedule
from models.text import Prompt
from train.exports.pipeline import largest_difference
from train.method import AdapterParts, TrainedWeights
from train.methods.lora import load_adapter, rounded, save_adapter
from train.methods.turboedit.task import build_encoder
from train.run.weights import load_trained

CARD = """\
# LoRA of a TurboEdit noise encoder for {{ base }}

Adapters of rank {{ config.encoder.lora.rank }} over the base's UNet, and its convolutions in and out, trained in \
full. With the code of the project that trained them:

```python
import torch

from models.backbone import Backbone, freeze
from models.schedule import NoiseSchedule
from models.noise_encoder import NoiseEncoder
{%- if config.generator.quantize %}
from models.quantized import quantize
{%- endif %}
from train.methods.lora import load_adapter

backbone = Backbone.load("{{ base }}", dtype=torch.{{ config.generator.dtype }}\
{% if config.generator.variant %}, variant="{{ config.generator.variant }}"{% endif %})
{%- if config.generator.quantize %}
quantize(backbone.unet, "{{ config.generator.quantize }}")
{%- endif %}
encoder = NoiseEncoder.from_generator(backbone.unet, backbone.schedule, shared=True)
load_adapter(encoder.unet, "PATH/OF/THIS/FOLDER")
```
"""


def build_adapted(trained: TrainedWeights, unet: UNet2DConditionModel, schedule: NoiseSchedule) -> NoiseEncoder:
    """F of a LoRA run with its adapters over `unet`'s own weights, which first become what the training held."""
    rounded(unet, dtype_of(trained.config.generator.dtype))
    config = trained.config
    encoder = build_encoder(freeze(unet), schedule, config.encoder, config.run.seed, config.generator.quantize)
    load_trained(encoder, trained.weights)
    return encoder


@torch.no_grad()
def write_adapter(trained: TrainedWeights, folder: Path, dtype: str) -> tuple[float, float]:
    """Write a LoRA run's adapters and convolutions to `folder` in `dtype`, and take them up again.

    Returns:
        Largest change of F's outputs by storing in `dtype`, and by the reload as a share of the largest output.
    """
    generator = trained.config.generator
    backbone = Backbone.load(generator.path, variant=generator.variant, parts=("unet",))
    encoder = build_adapted(trained, backbone.unet, backbone.schedule)
    exact = _outputs(encoder)
    own = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    for parameter in own:
        parameter.data = parameter.data.to(dtype_of(dtype))
    save_adapter(encoder.unet, folder)
    for parameter in own:
        parameter.data = parameter.data.float()
    stored = _outputs(encoder)
    again = NoiseEncoder.from_generator(backbone.unet, backbone.schedule, shared=True)
    load_adapter(again.unet, folder)
    return (stored - exact).abs().max().item(), largest_difference(_outputs(again), stored)


def _outputs(encoder: NoiseEncoder) -> Tensor:
    """F's mean and log-variance for two random latents with random prompt embeddings."""
    draw, unet = torch.Generator().manual_seed(0), encoder.unet.config
    x0, x0_prev = torch.randn(2, 2, unet.in_channels // 2, unet.sample_size, unet.sample_size, generator=draw)
    embeds = torch.randn(2, 77, unet.cross_attention_dim, generator=draw)
    pooled = time_ids = None
    if unet.addition_embed_type == "text_time":
        width = unet.projection_class_embeddings_input_dim - 6 * unet.addition_time_embed_dim
        pooled, time_ids = torch.randn(2, width, generator=draw), torch.full((2, 6), 512.0)
    return torch.stack(encoder(x0, x0_prev, Prompt(embeds, pooled, time_ids), torch.tensor([999, 249])))


ADAPTER = AdapterParts(write=write_adapter, card=CARD)
