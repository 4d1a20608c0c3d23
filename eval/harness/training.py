"""The training behind an export, as its card tells it."""

import re
from pathlib import Path
from typing import Any

import yaml


def training_steps(encoder: Path) -> dict[str, Any] | None:
    """Steps that an export's weights have (`taken`) and that their run was to take (`planned`), and what run that was.

    `run` is its name, `began` its first day and `by_clock` whether its clock stopped it; the last two are None where
    an older card does not say. None in all where the card says nothing of the steps, or where there is none.
    """
    card = encoder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    taken = re.search(r"^(?:Averaged \(EMA\) weights|Weights) of step (\d+),", text, re.M)
    config = re.search(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    if not taken or not config:
        return None
    run = yaml.safe_load(config[1])["run"]
    said = re.search(r" The run .+? began on (\d{4}-\d\d-\d\d)( and was stopped by its clock)?\.", text)
    return {
        "taken": int(taken[1]),
        "planned": run["steps"],
        "run": Path(run["folder"]).name,
        "began": said[1] if said else None,
        "by_clock": bool(said[2]) if said else None,
    }
