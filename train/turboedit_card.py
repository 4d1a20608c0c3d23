"""The model card of an export: what it is, how it is used, what it was trained on and how far it got."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined

from data.loader import ShardDataset
from models.turboedit_pipeline import TurboEditPipeline
from train.cli import to_yaml

if TYPE_CHECKING:
    from train.export import Trained

CARD = """\
---
library_name: diffusers
tags: [image-editing, inversion, turboedit]
base_model: {{ config.generator.path }}
---
# TurboEdit noise encoder for {{ config.generator.path }}

Inverts an image in {{ 2 * timesteps|length }} network evaluations (timesteps {{ timesteps|join(", ") }}) \
and edits it by its prompt in {{ timesteps|length }}.

```python
import torch
from diffusers import DiffusionPipeline
from PIL import Image

pipeline = DiffusionPipeline.from_pretrained("PATH/OF/THIS/FOLDER", trust_remote_code=True)
inversion = pipeline.invert(Image.open("photo.jpg"), "a detailed description of the photo")
edited = pipeline.edit(inversion, "the same description with a change", strength=1.0, mask="auto")
edited.images[0].save("edited.png")
```

The folder carries the pipeline's code and needs torch, diffusers and transformers.

## Training

{{ "Averaged (EMA) weights" if averaged else "Weights" }} of step {{ step }}, stored in {{ dtype }}, which changes \
noises and reconstructions by at most {{ "%.2g"|format(rounding) }}; {{ samples }} samples in the training shards.

| figure of the last log interval | value |
|---|---|
{% for name, value in figures.items() -%}
| {{ name }} | {{ "%.4g"|format(value) }} |
{% endfor %}
`latent_mse/t…`: squared error of the latent at each timestep; `noise_mean` and `noise_std` should be near 0 and 1.

```yaml
{{ yaml }}
```
"""


def model_card(run: Path, trained: "Trained", pipeline: TurboEditPipeline, dtype: str, rounding: float) -> str:
    """Markdown with a diffusers header: use, config, data and the last figures of the run's log."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last: dict[str, float] = next((row for row in reversed(rows) if row["step"] <= trained.step), {})
    wanted = ("loss", "latent_mse", "kl", "posterior_sigma", "noise_mean", "noise_std", "noise_over10")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(CARD).render(
        config=trained.config,
        timesteps=pipeline.timesteps,
        averaged=trained.averaged,
        step=trained.step,
        dtype=dtype,
        rounding=rounding,
        samples=_num_samples(trained.config.data.shards),
        figures={name: value for name, value in last.items() if name.split("/")[0] in wanted},
        yaml=to_yaml(trained.config).strip(),
    )


def _num_samples(shards: str) -> str:
    """Samples in the training shards; they may have been removed since."""
    if not (Path(shards) / "manifest.json").is_file():
        return "an unknown number of"
    return f"{len(ShardDataset(shards, ('caption',))):,}"
