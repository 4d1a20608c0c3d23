"""StyleDiffusion's part of the export."""

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from eval.editors.instruct_pix2pix import WITHOUT_CHECKER
from models.clip import ImageTokens
from models.stylediffusion_pipeline import StyleDiffusionPipeline
from models.words import token_limit
from train.method import ExportParts, TrainedWeights
from train.methods.stylediffusion.config import StyleDiffusionConfig
from train.methods.stylediffusion.task import build_mapper

COMPONENTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")

CARD = """\
# StyleDiffusion mapping network for {{ config.backbone.path }}

Inverts an image in {{ pipeline.config.num_steps }} network evaluations, without optimisation, and edits it by its \
prompt with Prompt-to-Prompt at guidance {{ pipeline.config.guidance }}. `refine` fits the image for some iterations \
more.

```python
import torch
from diffusers import DiffusionPipeline

folder, device, dtype = "PATH/OF/THIS/FOLDER", "cuda", torch.bfloat16  # on a CPU: "cpu", torch.float32
pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, trust_remote_code=True).to(device)
inversion = pipeline.invert("photo.jpg", "a description of the photo", refine=10)
pipeline.edit(inversion, "the same description with a change")[0].save("edited.png")
```

The folder carries the pipeline's code and needs torch, diffusers and transformers. Of the figures below, `rec` and \
`attention` are the terms of the loss, `step_error/…` the squared error of noisy, middle and clean steps.
"""


def build_pipeline(trained: TrainedWeights) -> StyleDiffusionPipeline:
    """The run's backbone, CLIP and mapping network as a pipeline in float32 on the CPU."""
    config: StyleDiffusionConfig = trained.config
    stock = DiffusionPipeline.from_pretrained(
        config.backbone.path, variant=config.backbone.variant, torch_dtype=torch.float32, **WITHOUT_CHECKER
    )
    tokens = ImageTokens.load(config.mapper.clip)
    text = stock.text_encoder.config.hidden_size
    mapper = build_mapper(config.mapper, tokens.shape, (token_limit(stock.tokenizer), text))
    mapper.load_state_dict(trained.weights, strict=True)
    return StyleDiffusionPipeline(
        **{name: stock.components[name] for name in COMPONENTS},
        image_encoder=tokens.model,
        mapper=mapper.eval(),
        num_steps=config.backbone.num_steps,
        steps_offset=config.backbone.steps_offset,
        guidance=config.objective.guidance,
        attention_weight=config.objective.attention_weight,
        attention_side=config.objective.attention_side,
        attention_blocks=config.objective.attention_blocks,
        into=config.objective.into,
        image_mean=tokens.pixels.mean,
        image_std=tokens.pixels.std,
    )


@torch.no_grad()
def outputs(pipeline: StyleDiffusionPipeline) -> Tensor:
    """The noisiest latent of a random picture, and its values at every step."""
    side = pipeline.backbone.image_size
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    trajectory = pipeline.invert(image, "a picture").trajectory
    assert trajectory.values is not None, "an inversion has mapped values"
    values = [to_values(trajectory.prompt.embeds) for to_values in trajectory.values]
    return torch.cat([trajectory.start.flatten(), torch.stack(values).flatten()])


EXPORT = ExportParts(
    build=build_pipeline,
    outputs=outputs,
    card=CARD,
    figures=("loss", "rec", "attention", "step_error"),
)
