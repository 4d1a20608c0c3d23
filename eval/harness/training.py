"""The length of the training behind an export, as its card tells it."""

import re
from pathlib import Path

import yaml


def training_steps(encoder: Path) -> dict[str, int] | None:
    """Steps that an export's weights have (`taken`) and steps that their run was to take (`planned`).

    None where the card says nothing of them, or where there is none.
    """
    card = encoder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    taken = re.search(r"^(?:Averaged \(EMA\) weights|Weights) of step (\d+),", text, re.M)
    config = re.search(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    if not taken or not config:
        return None
    return {"taken": int(taken[1]), "planned": yaml.safe_load(config[1])["run"]["steps"]}
