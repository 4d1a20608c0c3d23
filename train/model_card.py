"""The model card of an export: its header, the method's text, licence and use, config, data and last figures."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData
from jinja2 import Environment, StrictUndefined

from data.jobs.command import to_yaml
from data.shards.shard import read_manifest
from train.exports.base import Base
from train.exports.example import EXAMPLE_FILE
from train.method import ExportParts, Storage, TrainedWeights
from train.reports.records import read_records
from train.run.config import VALID

TESTED = ("torch", "diffusers", "transformers")


def model_card(
    template: str,
    parts: ExportParts,
    trained: TrainedWeights,
    *,
    base: Base,
    last: Mapping[str, float],
    initial: Mapping[str, Any] | None = None,
    history: str = "",
    storage: Storage,
    pipeline: Any = None,
    example: str | None = None,
    encoder_only: bool = False,
) -> str:
    """Markdown with a header for the hub: use, licence, config, data and the last figures of the run's log.

    Args:
        template: Text (jinja2) before all else; `base` (its name), `config` and `pipeline` are known in it.
        parts: The method's part of the export.
        trained: Weights of the run.
        base: The frozen model.
        last: Last figures of the run's metrics.
        initial: What the run's environment.json says of another training's weights that it began with.
        history: What `run_words` says of the run.
        storage: Dtype in which weights are stored, with what that has cost.
        pipeline: The pipeline that is exported.
        example: What EXAMPLE_FILE beside the card shows; None where there is none.
        encoder_only: Whether the other parts are loaded from the base.
    """
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    header = ModelCardData(
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=list(parts.tags),
        base_model=base.hub_id,
        **base.licence_entries(),  # type: ignore[arg-type]
    )
    text = environment.from_string(template + REST).render(
        base=base.name,
        terms=base.terms,
        config=trained.config,
        pipeline=pipeline,
        example=example,
        example_file=EXAMPLE_FILE,
        encoder_only=encoder_only,
        versions=", ".join(f"{name} {version(name)}" for name in TESTED),
        averaged=trained.averaged,
        step=trained.step,
        storage=storage,
        initial=_initial_words(initial),
        history=history,
        data=_training_data(Path(trained.config.data.shards)),
        figures={name: value for name, value in last.items() if _is_shown(name, parts.figures)},
        heldout=any(name.startswith(VALID) for name in last),
        yaml=_without_paths(trained.config),
    )
    return f"---\n{header.to_yaml()}\n---\n{text}"


REST = """
{% if encoder_only %}
The folder holds the trained encoder alone; the other parts are loaded from {{ base }}. Another copy of it is \
named by `base="FOLDER OR HUB ID"` in `from_pretrained`.
{% endif -%}
{% if example %}
![{{ example }}]({{ example_file }})

*Made by these weights: {{ example }}. A rendered scene, not chosen by eye.*
{% endif %}
Tested with {{ versions }}.

## Licence and use

{{ terms }}
## Training

{{ "Averaged (EMA) weights" if averaged else "Weights" }} of step {{ step }}, stored in {{ storage.name }}, which \
changes a trained tensor by at most {{ "%.2g"|format(storage.rounding) }} of its norm. Trained on \
{{ data }}{{ initial }}.{{ history }}

| figure of the last log interval{{ ", valid/... of held-out samples" if heldout }} | value |
|---|---|
{% for name, value in figures.items() -%}
| {{ name }} | {{ "%.4g"|format(value) }} |
{% endfor %}
```yaml
{{ yaml }}
```
"""


def run_words(run: Path) -> str:
    """A run's name, the day on which it began, and whether its clock ended it: what a date of its weights is.

    Evaluations read the sentence again (eval/harness/training.py).
    """
    records = read_records(run)
    began = f" began on {records.starts[0]['started'][:10]}" if records.starts else " began on an unknown day"
    ended = " and was stopped by its clock" if records.stopped_by_clock else ""
    return f" The run {records.name}{began}{ended}."


def last_figures(run: Path, step: int) -> dict[str, float]:
    """The figures that a run logged last, up to a step: of its training, and of its held-out samples."""
    lines = (run / "metrics.jsonl").read_text().split("\n")[:-1]  # what follows the last newline was cut off
    rows = [row for line in lines if (row := json.loads(line))["step"] <= step]
    heldout = [row for row in rows if any(name.startswith(VALID) for name in row)]
    training = [row for row in rows if row not in heldout]
    return {**(heldout[-1] if heldout else {}), **(training[-1] if training else {})}


def _is_shown(name: str, figures: tuple[str, ...]) -> bool:
    """Whether the card shows a figure: the method's, and those of held-out samples of no single group."""
    return name.split("/")[0] in figures or (name.startswith(VALID) and name.count("/") == 1)


def _without_paths(config: Any) -> str:
    """The config's YAML with names of files and folders in the place of their paths, which are this machine's."""

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(part) for key, part in value.items()}
        if isinstance(value, list):
            return [named(part) for part in value]
        is_path = isinstance(value, str) and "/" in value and (Path(value).is_absolute() or Path(value).exists())
        return Path(value).name if is_path else value

    return yaml.safe_dump(named(yaml.safe_load(to_yaml(config))), sort_keys=False).strip()


def _initial_words(initial: Mapping[str, Any] | None) -> str:
    """The weights of another training that a run began with; its name alone, not where it lies on this machine."""
    if initial is None:
        return ""
    name = str(initial["init_from"])
    name = Path(name).name if Path(name).is_absolute() or Path(name).exists() else name
    averaged = "averaged weights" if initial.get("averaged", True) else "weights"
    source = f"{averaged} of step {initial['step']} of the run" if initial["kind"] == "run" else "weights of the export"
    return f", starting from the {source} {name} (sha256 {initial['sha256'][:16]})"


def _training_data(shards: Path) -> str:
    """Number and fingerprint of the samples in the training shards; they may have been removed since."""
    if not (shards / "manifest.json").is_file():
        return "shards that are no longer there"
    units = read_manifest(shards)["units"]
    content = hashlib.sha256("".join(unit["sha256"] for unit in units).encode()).hexdigest()
    return f"{sum(unit['count'] for unit in units):,} samples (fingerprint {content[:16]})"
