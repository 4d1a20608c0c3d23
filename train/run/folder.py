"""The run folder: which config owns it, what ran in it, and how its logs go back to a checkpoint's step.

runs/NAME/ config.yaml environment.json metrics.jsonl timing.jsonl log.txt samples/ checkpoints/step-000100/
"""

import json
import logging
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from data.jobs.command import to_yaml
from data.jobs.files import write_text
from train.run.launch import Launch

log = logging.getLogger(__name__)

MAY_CHANGE = (
    "run.folder",
    "run.steps",
    "run.time_limit_min",
    "run.micro_batch",
    "run.processes",
    "run.device",
    "data.workers",
    "data.max_bad_share",
    "data.verify",
    "data.validation",
    "data.probe",
    "data.attributes",
    "log.",
    "ema.device",
)
"""Options that a resumed run may change, by name or by group, beside those called MEMORY_ALONE in any group. Nothing
else: the run would not be one experiment."""

MEMORY_ALONE = ("gradient_checkpointing", "compile")
"""Last words of options that change memory and time, and nothing that is computed."""

ENVIRONMENT = "environment.json"

INITIAL_WEIGHTS, NETWORK_FILES = "initial_weights", "network_files"
"""Records of a start there: another training's weights that it begins with, digests of files over a frozen model."""

LIBRARIES = ("torch", "accelerate", "diffusers", "transformers", "numpy", "safetensors")

_SHOWN_CHANGES = 8


def claim(folder: Path, config: Any, launch: Launch) -> None:
    """Make the folder this config's, or check that it already is. All ranks must call.

    Raises:
        ValueError: the folder belongs to a run with another config; the message shows the difference.
    """
    path = folder / "config.yaml"
    changes = config_changes(_claimed_before(path, config), _plain(config)) if path.is_file() else []
    refused = [f"{name}: {old!r} -> {new!r}" for name, old, new in changes if not may_change(name)]
    if refused:
        more = f"; and {len(refused) - _SHOWN_CHANGES} more" if len(refused) > _SHOWN_CHANGES else ""
        again = f" (with {config.init_option} {folder} it starts from these weights)" if config.init_option else ""
        raise ValueError(
            f"{folder} belongs to a run with another config:\n  {'; '.join(refused[:_SHOWN_CHANGES])}{more}\n"
            f"Set these back to resume it, or choose another run.folder{again}. On resume only these may change: "
            + ", ".join([n + "*" if n.endswith(".") else n for n in MAY_CHANGE] + [f"*.{n}" for n in MEMORY_ALONE])
        )
    launch.barrier()  # every rank has read the old file before the first one writes
    if launch.is_main:
        for name, old, new in changes:
            log.info("changed since the last start: %s: %r -> %r", name, old, new)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, to_yaml(config))
    launch.barrier()


def may_change(option: str) -> bool:
    """Whether a resumed run may change an option, given by its dotted name."""
    return option.startswith(MAY_CHANGE) or option.rpartition(".")[2] in MEMORY_ALONE


def config_changes(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(option, old value, new value) of the options that differ, by dotted name; None where an option is missing."""
    before, after = _flat(old), _flat(new)
    names = [*after, *(name for name in before if name not in after)]
    return [(n, before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n)]


def record_start(folder: Path, launch: Launch, step: int, record: Mapping[str, Any] | None = None) -> str:
    """Append this start to environment.json: versions, commit, command, device, and the step it goes on from.

    Args:
        record: What else is to be known of this start, by name, as JSON.

    Returns:
        The time of the folder's first start, which names the run for trackers.
    """
    path, starts = folder / ENVIRONMENT, _starts(folder)
    starts.append(
        {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "from_step": step,
            "command": sys.argv,
            "commit": _commit(),
            "python": platform.python_version(),
            "versions": {name: metadata.version(name) for name in LIBRARIES},
            "device": _device_name(launch),
            "world_size": launch.world_size,
            **(record or {}),
        }
    )
    write_text(path, json.dumps(starts, indent=1) + "\n")
    return starts[0]["started"]


def recorded_initial_weights(folder: Path) -> dict[str, Any] | None:
    """What environment.json says of another training's weights that the run began with; None for its own."""
    return next((found for start in reversed(_starts(folder)) if (found := start.get(INITIAL_WEIGHTS))), None)


def check_network_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Compare files that the frozen networks are made of with those of the run's last start.

    Args:
        folder: The run folder, which need not be there.
        digests: What stands for each file's content, by the option that names it.

    Raises:
        ValueError: A file is another one than then.
    """
    before: Mapping[str, str] = next(
        (found for start in reversed(_starts(folder)) if (found := start.get(NETWORK_FILES))), {}
    )
    for option, digest in digests.items():
        if before.get(option, digest) != digest:
            raise ValueError(
                f"{option} is not the file that {folder} was trained on: its sha256 is {digest[:16]}, expected "
                f"{before[option][:16]}; put that one back, or choose another run.folder"
            )


def _starts(folder: Path) -> list[dict[str, Any]]:
    path = folder / ENVIRONMENT
    return json.loads(path.read_text()) if path.is_file() else []


def truncate_records(path: Path, step: int) -> None:
    """Drop the lines of a JSONL file that come after `step`, and a last line that was cut off."""
    if not path.is_file():
        return
    lines = path.read_text().split("\n")[:-1]  # what follows the last newline was cut off
    kept = [line + "\n" for line in lines if json.loads(line)["step"] <= step]
    if len(kept) < len(lines):
        log.info("%s: dropping %d line(s) after step %d", path.name, len(lines) - len(kept), step)
    write_text(path, "".join(kept))


def _claimed_before(path: Path, config: Any) -> dict[str, Any]:
    before = yaml.safe_load(path.read_text())
    for name, value in config.former.items():
        section, _, option = name.partition(".")
        before.get(section, {}).setdefault(option, value)
    _fill(before, config)
    # Folders from before configs named their method: the sections say which it is.
    return {"method": config.method, **before} if hasattr(config, "method") else before


def _fill(before: dict[str, Any], config: Any) -> None:
    """Give options that the values of an older config lack their defaults, which are what it meant."""
    for option in fields(config):
        value = getattr(config, option.name)
        if is_dataclass(value):
            _fill(before.setdefault(option.name, {}), value)
        elif option.default is not MISSING:
            default = option.default
            before.setdefault(option.name, list(default) if isinstance(default, tuple) else default)


def _plain(config: Any) -> dict[str, Any]:
    return yaml.safe_load(to_yaml(config))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _commit() -> str | None:
    """The commit of the code, with "+changes" where files differ from it; None outside of a git checkout."""
    if shutil.which("git") is None:
        return None
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return None
    status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    return head.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def _device_name(launch: Launch) -> str:
    if launch.device.type == "cuda":
        return torch.cuda.get_device_name(launch.device)
    return f"{launch.device.type} {platform.machine()}"
