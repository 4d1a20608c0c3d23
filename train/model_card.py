"""The model card of an export: its header, the method's text, config, data and last figures of the run."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from jinja2 import Environment, StrictUndefined

from data.jobs.command import to_yaml
from data.shards.shard import read_manifest
from train.method import ExportParts, TrainedWeights


def model_card(
    template: str,
    parts: ExportParts,
    trained: TrainedWeights,
    *,
    base: str,
    last: Mapping[str, float],
    dtype: str,
    rounding: float,
    pipeline: Any = None,
) -> str:
    """Markdown with a header for the hub: use, config, data and the last figures of the run's log.

    Args:
        template: Text (jinja2) before config and figures; `base`, `config` and `pipeline` are known in it.
        parts: The method's part of the export.
        trained: Weights of the run.
        base: Path or hub id of the frozen model.
        last: Last row of the run's metrics.
        dtype: Name of the dtype in which weights are stored.
        rounding: Largest change of the outputs by storing the weights in `dtype`.
        pipeline: The pipeline that is exported.
    """
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    header = ModelCardData(library_name="diffusers", tags=list(parts.tags), base_model=base, **_licence(base))
    text = environment.from_string(template + TRAINING).render(
        base=base,
        licence=base_licence(base),
        config=trained.config,
        pipeline=pipeline,
        averaged=trained.averaged,
        step=trained.step,
        dtype=dtype,
        rounding=rounding,
        data=_training_data(Path(trained.config.data.shards)),
        figures={name: value for name, value in last.items() if name.split("/")[0] in parts.figures},
        yaml=to_yaml(trained.config).strip(),
    )
    return f"---\n{header.to_yaml()}\n---\n{text}"


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
    """Name of the licence in the model card of a folder or hub id; "unknown" where there is none to read."""
    named = _licence(path)
    return named.get("license_name") or named["license"]


def _licence(base: str) -> dict[str, Any]:
    """Entries of a card's header on the licence, which is the base's; the hub knows few by name and others as such."""
    try:
        card = ModelCard.load(Path(base) / "README.md" if Path(base).is_dir() else base).data.to_dict()
    except (OSError, ValueError, HfHubHTTPError):
        card = {}
    found: dict[str, Any] = {"license": str(card.get("license") or UNKNOWN_LICENCE)}
    if found["license"] == "other":
        found |= {name: str(card[name]) for name in ("license_name", "license_link") if card.get(name)}
    return found


def last_figures(run: Path, step: int) -> dict[str, float]:
    """The figures that a run logged last, up to a step."""
    lines = (run / "metrics.jsonl").read_text().split("\n")[:-1]  # what follows the last newline was cut off
    rows = [json.loads(line) for line in lines]
    return next((row for row in reversed(rows) if row["step"] <= step), {})


def _training_data(shards: Path) -> str:
    """Number and fingerprint of the samples in the training shards; they may have been removed since."""
    if not (shards / "manifest.json").is_file():
        return "shards that are no longer there"
    units = read_manifest(shards)["units"]
    content = hashlib.sha256("".join(unit["sha256"] for unit in units).encode()).hexdigest()
    return f"{sum(unit['count'] for unit in units):,} samples (fingerprint {content[:16]})"
