"""What a method brings to the export: how its pipeline is built, what proves it, which code goes with it."""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError
from jinja2 import Environment, StrictUndefined
from torch import Tensor

import models
from data.jobs.command import to_yaml
from data.shards.shard import read_manifest


@dataclass(frozen=True)
class TrainedWeights:
    """A run's newest weights.

    Args:
        config: the run's; step: of the checkpoint; weights: what the checkpoint holds of the task's trainable, which an
            exporter's `build` takes out; averaged: whether they are the EMA.
    """

    config: Any
    step: int
    weights: dict[str, Tensor]
    averaged: bool


@dataclass(frozen=True)
class Exporter:
    """One method's part of an export.

    Args:
        config: the class of its runs' configs.
        base: path or hub id of the frozen model in a config.
        build: the run's pipeline in float32 on the CPU.
        outputs: what the pipeline makes of a random picture, as one tensor; the export is proven on it.
        pipeline: name of the pipeline's file in models/ and of its class; None where the class is diffusers' own, which
            needs no code.
        code: files of models/ that the pipeline imports, its own among them.
        parts: components whose class lies in a file of models/ too, with the names of file and class.
        card: template of the model card (jinja2); figures: of the last log interval, named in it; tags: of its header.
    """

    config: type
    base: Callable[[Any], str]
    build: Callable[[TrainedWeights], DiffusionPipeline]
    outputs: Callable[[Any], Tensor]
    pipeline: tuple[str, str] | None
    code: tuple[str, ...]
    parts: Mapping[str, tuple[str, str]]
    card: str
    figures: tuple[str, ...]
    tags: tuple[str, ...] = ("image-editing", "inversion")


def add_code(exporter: Exporter, folder: Path) -> dict[str, Any]:
    """Put the source files beside the weights; returns what model_index.json has to say of them."""
    if exporter.pipeline is None:
        return {}
    sources = Path(models.__path__[0])
    for name in exporter.code:
        shutil.copy(sources / f"{name}.py", folder)
    for component, (name, _) in exporter.parts.items():
        shutil.copy(sources / f"{name}.py", folder / component)
    return {"_class_name": list(exporter.pipeline)} | {part: list(names) for part, names in exporter.parts.items()}


def model_card(
    exporter: Exporter,
    trained: TrainedWeights,
    last: Mapping[str, float],
    dtype: str,
    rounding: float,
    template: str,
    pipeline: Any = None,
) -> str:
    """Markdown with a diffusers header: use, config, data and the last figures of the run's log.

    Args:
        last: the last row of the run's metrics.
        rounding: largest change of the outputs by storing the weights in `dtype`.
        template: (jinja2) of what comes before config and figures; `pipeline` is known in it.
    """
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    base = exporter.base(trained.config)
    return environment.from_string(HEAD + template + TRAINING).render(
        tags=exporter.tags,
        base=base,
        licence=base_licence(base),
        config=trained.config,
        pipeline=pipeline,
        averaged=trained.averaged,
        step=trained.step,
        dtype=dtype,
        rounding=rounding,
        data=_training_data(Path(trained.config.data.shards)),
        figures={name: value for name, value in last.items() if name.split("/")[0] in exporter.figures},
        yaml=to_yaml(trained.config).strip(),
    )


HEAD = """\
---
library_name: diffusers
tags: [{{ tags|join(", ") }}]
base_model: {{ base }}
license: {{ licence }}
---
"""

TRAINING = """
## Training

{{ "Averaged (EMA) weights" if averaged else "Weights" }} of step {{ step }}, stored in {{ dtype }}, which changes \
the outputs by at most {{ "%.2g"|format(rounding) }}. Trained on {{ data }}. The weights derive from {{ base }}, whose \
licence ({{ licence }}) applies to them.

| figure of the last log interval | value |
|---|---|
{% for name, value in figures.items() -%}
| {{ name }} | {{ "%.4g"|format(value) }} |
{% endfor %}
```yaml
{{ yaml }}
```
"""

UNKNOWN_LICENCE = "unknown"


def base_licence(path: str) -> str:
    """The licence that the model card of a folder or hub id names; "unknown" where there is none to read."""
    try:
        card = ModelCard.load(Path(path) / "README.md" if Path(path).is_dir() else path)
    except (OSError, ValueError, HfHubHTTPError):
        return UNKNOWN_LICENCE
    named = (
        card.data.license_name if card.data.license == "other" and "license_name" in card.data else card.data.license
    )
    return str(named or UNKNOWN_LICENCE)


def _training_data(shards: Path) -> str:
    """How many samples the training shards hold and which; they may have been removed since."""
    if not (shards / "manifest.json").is_file():
        return "shards that are no longer there"
    units = read_manifest(shards)["units"]
    content = hashlib.sha256("".join(unit["sha256"] for unit in units).encode()).hexdigest()
    return f"{sum(unit['count'] for unit in units):,} samples (fingerprint {content[:16]})"


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Between two outputs, as a share of the largest value expected."""
    return ((found - expected).abs().max() / expected.abs().max()).item()
