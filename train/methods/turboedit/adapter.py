"""Export of a LoRA run's own weights alone: some megabytes that need their base beside them.

python -m train.export runs/NAME OUT --lora apart
"""

from pathlib import Path

import torch
from torch import Tensor

from models.backbone import Backbone, dtype_of
from models.noise_encoder import NoiseEncoder
from models.quantized import dequantize, quantize
from train.exports.precision import compute_in_float32
from train.method import AdapterParts, Storage, TrainedWeights
from train.methods.lora import load_adapter, save_adapter
from train.methods.network_files import apply_files
from train.methods.turboedit.config import TurboEditConfig
from train.methods.turboedit.task import build_encoder
from train.run.weights import load_trained

CARD = """\
# LoRA of a TurboEdit noise encoder for {{ base }}

Adapters of rank {{ config.encoder.lora.rank }} over the base's UNet, and its convolutions in and out, trained in \
full. With the code of the project that trained them:

```python
import torch

from models.backbone import Backbone
from models.noise_encoder import NoiseEncoder
{%- if config.generator.quantize %}
from models.quantized import quantize
{%- endif %}
from train.methods.lora import load_adapter

folder, device, dtype = "PATH/OF/THIS/FOLDER", "cuda", torch.{{ config.generator.dtype }}\
  # on a CPU: "cpu", torch.float32
backbone = Backbone.load("{{ base }}", device=device, dtype=dtype\
{% if config.generator.variant %}, variant="{{ config.generator.variant }}"{% endif %})
{%- if config.generator.quantize %}
quantize(backbone.network, "{{ config.generator.quantize }}")
{%- endif %}
encoder = NoiseEncoder.from_generator(backbone.network, backbone.schedule, shared=True\
{% if config.encoder.blocks %}, blocks={{ config.encoder.blocks }}{% endif %})
load_adapter(encoder.unet, folder)
```
"""


def build_adapted(trained: TrainedWeights) -> NoiseEncoder:
    """F of a LoRA run as its training held it: adapters over G's own weights, in G's dtype or in 8 bits."""
    config, backbone = trained.config, _base(trained)
    encoder = build_encoder(
        backbone.network, backbone.schedule, config.encoder, config.run.seed, config.generator.quantize
    )
    load_trained(encoder, dict(trained.weights))
    return encoder


@torch.no_grad()
def write_adapter(trained: TrainedWeights, folder: Path, storage: Storage) -> tuple[Tensor, Tensor]:
    """Write a LoRA run's adapters and convolutions to `folder`, and take them up again.

    Returns:
        F's outputs for random latents before and after, [2, B, 4, h, w].
    """
    encoder = build_adapted(trained)
    own = {name: weight for name, weight in encoder.named_parameters() if weight.requires_grad}
    for name, weight in own.items():
        weight.data = storage.cast(name, weight.data)
    save_adapter(encoder.unet, folder)
    for weight in own.values():
        weight.data = weight.data.float()
    held = dtype_of(trained.config.generator.dtype)
    dequantize(encoder.unet, held)
    compute_in_float32(encoder.unet)
    expected = _outputs(encoder, trained.config)
    del encoder, own, weight  # one UNet in memory at a time
    backbone = _base(trained)
    if trained.config.generator.quantize:
        quantize(backbone.network, trained.config.generator.quantize)
    blocks = trained.config.encoder.blocks
    again = NoiseEncoder.from_generator(backbone.network, backbone.schedule, shared=True, blocks=blocks)
    load_adapter(again.unet, folder)
    for weight in again.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    dequantize(again.unet, held)
    compute_in_float32(again.unet)
    return expected, _outputs(again, trained.config)


def _base(trained: TrainedWeights) -> Backbone:
    """G's network in its training's dtype."""
    generator = trained.config.generator
    backbone = Backbone.load(
        generator.path,
        dtype=dtype_of(generator.dtype),
        parts=("network",),
        variant=generator.variant,
        prediction_type=generator.prediction_type,
    )
    backbone.network = apply_files(backbone.network, generator.unet, generator.lora)
    return backbone


def _outputs(encoder: NoiseEncoder, config: TurboEditConfig) -> Tensor:
    """F's mean and log-variance for two random latents with random prompt embeddings, [2, 2, C, h, w]."""
    latents, prompt = encoder.family.random_inputs(encoder.unet, 2)
    t = encoder.schedule.times([config.generator.timesteps[0]], latents.device).expand(2)
    return torch.stack(encoder(*latents.chunk(2, dim=1), prompt, t))


ADAPTER = AdapterParts(write=write_adapter, card=CARD)
