"""TurboEdit's part of the export."""

from typing import Any

import torch

from models.components import load_components
from models.noise_encoder import NoiseEncoder
from models.quantized import dequantize
from models.turboedit_pipeline import TurboEditPipeline
from train.method import Example, ExportParts, Storage, TrainedWeights, Trial
from train.methods.lora import merge
from train.methods.network_files import apply_files, shaped
from train.methods.turboedit.adapter import ADAPTER, build_adapted
from train.methods.turboedit.config import TurboEditConfig
from train.planning.meta_models import MetaModels

CARD = """\
# TurboEdit noise encoder for {{ base }}

Inverts an image in {{ 2 * pipeline.timesteps|length }} network evaluations (timesteps \
{{ pipeline.timesteps|join(", ") }}) and edits it by its prompt in {{ pipeline.timesteps|length }}.

```python
import torch
from diffusers import DiffusionPipeline

folder, device, dtype = "PATH/OF/THIS/FOLDER", "cuda", torch.float16  # on a CPU: "cpu", torch.float32
pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, trust_remote_code=True).to(device)
before, after = "a detailed description of the photo", "the same description with a change"
pipeline("photo.jpg", before, after, strength=1.0, mask="auto").images[0].save("edited.png")
```

Pictures are files, PIL's, arrays or tensors; they are turned as their EXIF data says and laid on white. `invert` and \
`edit` are the two halves, for many edits of one picture. With little memory call `enable_model_cpu_offload()` in the \
place of `.to(device)`.

The folder carries the pipeline's code and needs torch, diffusers and transformers. Of the figures below \
`latent_mse/t…` is the squared error of the latent at each timestep; `noise_mean` and `noise_std` should be near \
0 and 1.
"""


def build_pipeline(trained: TrainedWeights, storage: Storage) -> TurboEditPipeline:
    """The run's generator and encoder as a pipeline on the CPU; adapters are merged into the weights."""
    generator = trained.config.generator
    encoder = _stock_encoder(trained, storage)
    parts = load_components(generator.path, storage.dtype, generator.variant)
    if alters_base(trained.config):
        parts["unet"] = apply_files(parts.get("unet"), generator.unet, generator.lora)
    if generator.prediction_type is not None:
        parts["scheduler"].register_to_config(prediction_type=generator.prediction_type)
    return TurboEditPipeline(
        **{name: part for name, part in parts.items() if name in TurboEditPipeline._optional_components},
        encoder=encoder,
        timesteps=" ".join(map(str, generator.timesteps)),
        attention_resolution=max(8, (encoder.config.get("sample_size") or 0) // 4),
        size_conditioning=generator.size_conditioning,
    )


def alters_base(config: TurboEditConfig) -> bool:
    """Whether G is not what lies at generator.path: a file over it, or another prediction type."""
    generator = config.generator
    return any((generator.unet, generator.lora, generator.prediction_type))


def _stock_encoder(trained: TrainedWeights, storage: Storage) -> Any:
    """F's network with stock names."""
    if trained.config.encoder.lora.rank:
        encoder = build_adapted(trained).unet
        dequantize(encoder, torch.float32)
        merge(encoder, storage)
    else:
        encoder = _shape(trained.config)
        weights = {name: storage.cast(name, weight) for name, weight in trained.weights.items()}
        encoder.load_state_dict(weights, strict=True, assign=True)
        encoder = encoder.unet
    return encoder.requires_grad_(False).eval()


def _shape(config: TurboEditConfig) -> NoiseEncoder:
    """F without data."""
    backbone = MetaModels().backbone(config.generator.path, torch.float32)
    network = shaped(backbone.network, config.generator.unet)
    return NoiseEncoder.from_generator(network, backbone.schedule, blocks=config.encoder.blocks)


@torch.no_grad()
def trial(pipeline: TurboEditPipeline, example: Example) -> Trial:
    """Noises and reconstructions of the example; its reconstruction and its edit as pictures."""
    inversion = pipeline.invert(example.picture, example.caption)
    return Trial(
        torch.stack([*inversion.noises, *inversion.reconstructions]),
        lambda: {
            "reconstruction": pipeline.decode(inversion.reconstructions[-1])[0],
            f"edit: {example.instruction}": pipeline.edit(inversion, example.target).images[0],
        },
    )


EXPORT = ExportParts(
    build=build_pipeline,
    trial=trial,
    evaluations=lambda pipeline: 5 * len(pipeline.timesteps),
    card=CARD,
    figures=("loss", "latent_mse", "kl", "posterior_sigma", "noise_mean", "noise_std", "noise_over10"),
    adapter=ADAPTER,
    encoder="encoder",
    page=True,
    alters_base=alters_base,
)
