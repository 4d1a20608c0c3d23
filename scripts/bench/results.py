"""The results that a bench prints as one JSON object; imports nothing heavy."""

from typing import Any


def result(name: str, value: float, unit: str, reference: float | None) -> dict[str, Any]:
    """One measured figure beside its reference, and their ratio."""
    ratio = None if reference is None else round(value / reference, 4)
    rounded = None if reference is None else round(reference, 4)
    return {"name": name, "value": round(value, 4), "unit": unit, "reference": rounded, "ratio": ratio}
