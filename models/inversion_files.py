"""Files of inversions: tensors by name in safetensors, all else as JSON in the metadata; no pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def write_inversion(
    path: str | Path, kind: str, tensors: Mapping[str, Tensor | None], facts: Mapping[str, Any]
) -> None:
    """Write an inversion of a `kind` into one file; tensors that are None are left out."""
    metadata = {"format": kind} | {name: json.dumps(value) for name, value in facts.items()}
    content = save({name: x.contiguous() for name, x in tensors.items() if x is not None}, metadata)
    Path(path).write_bytes(content)  # safetensors' own files could be read by their owner alone


def read_inversion(
    path: str | Path, kind: str, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and facts that `write_inversion` has written.

    Raises:
        ValueError: the file is not there, or it holds no inversion of this kind.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no inversion at {path}; expected a file that its save has written")
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is no inversion: it cannot be read as safetensors ({error})") from error
    if metadata.get("format") != kind:
        raise ValueError(
            f"{path} is no inversion: its format is {metadata.get('format')!r}, expected {kind!r}; "
            "give a file that its save has written"
        )
    return found, {name: json.loads(value) for name, value in metadata.items() if name != "format"}
