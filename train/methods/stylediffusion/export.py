"""StyleDiffusion's part of the export."""

import torch

from eval.editors.instruct_pix2pix import WITHOUT_CHECKER
from models.clip import ImageTokens
from models.components import load_components
from models.stylediffusion_pipeline import StyleDiffusionPipeline
from models.words import token_limit
from train.method import Example, ExportParts, Storage, TrainedWeights, Trial
from train.methods.stylediffusion.config import StyleDiffusionConfig
from train.methods.stylediffusion.task import build_mapper

COMPONENTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")

CARD = """\
# StyleDiffusion mapping network for {{ base }}

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


def build_pipeline(trained: TrainedWeights, storage: Storage) -> StyleDiffusionPipeline:
    """The run's backbone, CLIP and mapping network as a pipeline on the CPU."""
    config: StyleDiffusionConfig = trained.config
    parts = load_components(config.backbone.path, storage.dtype, config.backbone.variant, **WITHOUT_CHECKER)
    tokens = ImageTokens.load(config.mapper.clip)
    text = parts["text_encoder"].config.hidden_size
    mapper = build_mapper(config.mapper, tokens.shape, (token_limit(parts["tokenizer"]), text))
    weights = {name: storage.cast(name, weight) for name, weight in trained.weights.items()}
    mapper.load_state_dict(weights, strict=True, assign=True)
    return StyleDiffusionPipeline(
        **{name: parts[name] for name in COMPONENTS},
        image_encoder=tokens.model.to(storage.dtype),
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
def trial(pipeline: StyleDiffusionPipeline, example: Example) -> Trial:
    """The example's noisiest latent and its values at every step; its edit as a picture."""
    inversion = pipeline.invert(example.picture, example.caption)
    trajectory = inversion.trajectory
    assert trajectory.values is not None, "an inversion has mapped values"
    values = [to_values(trajectory.prompt.embeds) for to_values in trajectory.values]
    return Trial(
        torch.cat([trajectory.start.flatten(), torch.stack(values).flatten()]),
        lambda: {f"edit: {example.instruction}": pipeline.edit(inversion, example.target)[0]},
    )


EXPORT = ExportParts(
    build=build_pipeline,
    trial=trial,
    evaluations=lambda pipeline: 6 * pipeline.config.num_steps,
    card=CARD,
    figures=("loss", "rec", "attention", "step_error"),
)
