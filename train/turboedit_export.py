"""TurboEdit's part of the export."""

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from models.noise_encoder import NoiseEncoder
from models.schedule import NoiseSchedule
from models.turboedit_pipeline import TurboEditPipeline
from train.exporter import Exporter, Trained
from train.turboedit import TurboEditConfig

COMPONENTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "text_encoder_2", "tokenizer_2")

CARD = """\
---
library_name: diffusers
tags: [image-editing, inversion, turboedit]
base_model: {{ config.generator.path }}
---
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


def build_pipeline(trained: Trained) -> TurboEditPipeline:
    """The run's generator and encoder as a pipeline in float32 on the CPU."""
    generator = trained.config.generator
    stock = DiffusionPipeline.from_pretrained(generator.path, variant=generator.variant, torch_dtype=torch.float32)
    encoder = NoiseEncoder.from_generator(stock.unet, NoiseSchedule.from_scheduler(stock.scheduler))
    encoder.load_state_dict(trained.weights, strict=True)
    components = {name: stock.components.get(name) for name in COMPONENTS}
    return TurboEditPipeline(
        **components,
        encoder=encoder.unet.eval(),
        timesteps=" ".join(map(str, generator.timesteps)),
        attention_resolution=max(8, stock.unet.config.sample_size // 4),
    )


@torch.no_grad()
def outputs(pipeline: TurboEditPipeline) -> Tensor:
    """Noises and reconstructions of a random picture."""
    side = pipeline.backbone.image_size
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    inversion = pipeline.invert(image, "a picture")
    return torch.stack([*inversion.noises, *inversion.reconstructions])


TURBOEDIT = Exporter(
    config=TurboEditConfig,
    build=build_pipeline,
    outputs=outputs,
    pipeline=("turboedit_pipeline", "TurboEditPipeline"),
    code=(
        "attention",
        "attention_maps",
        "backbone",
        "generator",
        "masks",
        "noise_encoder",
        "pictures",
        "schedule",
        "text",
        "turboedit_pipeline",
        "words",
    ),
    parts={},
    card=CARD,
    figures=("loss", "latent_mse", "kl", "posterior_sigma", "noise_mean", "noise_std", "noise_over10"),
)
