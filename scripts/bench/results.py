"""The results that a bench prints as one JSON object; imports nothing heavy."""

import json
from collections.abc import Sequence
from typing import Any


def result(name: str, value: float, unit: str, reference: float | None) -> dict[str, Any]:
    """One measured figure beside its reference, and their ratio."""
    ratio = None if reference is None else round(value / reference, 4)
    rounded = None if reference is None else round(reference, 4)
    return {"name": name, "value": round(value, 4), "unit": unit, "reference": rounded, "ratio": ratio}


def print_results(found: Sequence[dict[str, Any]]) -> None:
    """Print results as one JSON object in the last line."""
    print(json.dumps({"results": found}))
