"""What every evaluation leaves: results.json without nan, CSV tables, a page, and a summary in the log."""

import csv
import dataclasses
import importlib.metadata
import io
import json
import logging
import math
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.jobs.files import write_text

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_PACKAGES = ("torch", "diffusers", "transformers", "torchmetrics", "numpy", "Pillow")


def at_least_one(**counts: int | None) -> None:
    """Refuse numbers that are too small.

    Args:
        counts: Values by the name of their option; None, which stands for all, is never too small.

    Raises:
        ValueError: A number is below 1; the message names all of these.
    """
    if wrong := [f"{name} is {value}" for name, value in counts.items() if value is not None and value < 1]:
        raise ValueError(f"{', '.join(wrong)}; expected at least 1")


def about(device: "torch.device", **options: Any) -> dict[str, Any]:
    """Say what was evaluated and by what: the entry `about` of results.json.

    Args:
        device: Place of the networks.
        options: Further entries; paths become text and dataclasses mappings.
    """
    machine = {"device": device.type, "device_name": device_name(device), "versions": versions(), "commit": commit()}
    return {name: _plain(value) for name, value in options.items()} | machine


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide figures."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}


def device_name(device: "torch.device") -> str:
    """Name of the GPU, or the processor and the number of threads."""
    import torch  # takes seconds, which a mistake in the options can spare

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def commit() -> str | None:
    """The commit of the clone that this code lies in, with "+" behind it if files have changed; None outside of git."""
    clone = ("git", "-C", str(Path(__file__).parents[2]))
    try:
        found = subprocess.run([*clone, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*clone, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() + ("+" if changed.stdout.strip() else "")


def finish(
    out: Path,
    results: Mapping[str, Any],
    summary: str | None,
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    page: Callable[[], Path] | None = None,
    name: str = "results.json",
) -> None:
    """Write what an evaluation leaves and log its summary.

    Args:
        out: Folder of the report.
        results: Content of results.json.
        summary: The main figures as text; None where the command prints them itself.
        tables: Rows of CSV files by the files' names.
        page: Function that writes the page and returns its path.
        name: File of the results.
    """
    write_results(out / name, results)
    for file, rows in (tables or {}).items():
        write_table(out / file, rows)
    written = page() if page is not None else out / name
    if summary is not None:
        logger.info("%s", summary)
    logger.info("report: %s", written)


class Columns:
    """A table as text: the first column is aligned to the left, the others to the right.

    Args:
        titles: Heads of the columns.
    """

    def __init__(self, *titles: str) -> None:
        self._rows = [titles]

    def add(self, *cells: str) -> None:
        """Add a row with a cell for each title."""
        assert len(cells) == len(self._rows[0]), f"{len(cells)} cells for {len(self._rows[0])} columns"
        self._rows.append(cells)

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self._rows, strict=True)]
        return "\n".join(
            "  ".join([first.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]).rstrip()
            for first, *cells in self._rows
        )


def mean_words(estimate: Mapping[str, Any] | None, scale: float = 1.0, digits: int = 1) -> str:
    """Mean of an estimate's dict as text, or a dash."""
    return "-" if not estimate or estimate["mean"] is None else f"{scale * estimate['mean']:.{digits}f}"


def decibel_words(estimate: Mapping[str, Any] | None, digits: int = 1) -> str:
    """Mean of a PSNR's dict as text, with the number of exact pictures and the mean of the others where there are both.

    A row of pictures that are all equal has no such others.
    """
    mean = mean_words(estimate, digits=digits)
    if not estimate or not estimate.get("exact"):
        return mean
    others = estimate["others"]["mean"]
    return f"{mean} ({estimate['exact']} exact{'' if others is None else f', others {others:.{digits}f}'})"


def estimate_words(estimate: Mapping[str, Any], scale: float = 1.0, digits: int = 1) -> str:
    """Mean and standard error of an estimate's dict as text."""
    error = "" if estimate["se"] is None else f" ± {scale * estimate['se']:.{digits}f}"
    return mean_words(estimate, scale, digits) + error


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """`results` as JSON; nan and infinities, which JSON does not have, become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(_finite(results), indent=2, allow_nan=False) + "\n")


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """`rows` as CSV, with the columns of all rows in the order in which they first occur; nan is an empty cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns, restval="")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    write_text(path, stream.getvalue())


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _plain(value: Any) -> Any:
    """Options as JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
