"""A stage as a process of its own: its seconds, its largest memory, and the promise that it has to keep.

Nothing heavy is imported here: a process begins with the memory of the one that starts it.
"""

import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GB = 1e9
MAX_HOST_GB = 20.0
"""Largest resident memory that any stage may take."""

_LOOK_EVERY_SEC = 0.3
_CAN_USE_A_GPU = "import sys, torch; sys.exit(not torch.cuda.is_available())"


@dataclass(frozen=True)
class Row:
    """What a stage took.

    Args:
        name: Name of the stage.
        seconds: Wall-clock time.
        host_gb: Largest resident memory of its process.
        gpu_gb: Largest memory in use on the GPU, None without one.
        promised: What was promised of it, in words.
        kept: Whether the promise was kept; None without one.
    """

    name: str
    seconds: float
    host_gb: float
    gpu_gb: float | None
    promised: str = ""
    kept: bool | None = None


def measure_stage(name: str, words: Sequence[str], folder: Path, gpu: str | None) -> Row:
    """Run `python WORDS` in a folder, with its output on this terminal.

    Args:
        name: Name of the stage.
        words: What would follow `python`.
        folder: Working directory.
        gpu: Number of the GPU whose memory is watched, as nvidia-smi counts; None watches none.

    Raises:
        ValueError: It ended with another status than 0.
    """
    print(f"\n== {name}\n$ python {shlex.join(words)}", flush=True)
    watch = _GpuWatch(gpu)
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], cwd=folder)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    peak = watch.stop()
    if process.returncode:
        raise ValueError(f"the stage {name!r} ended with status {process.returncode}; its message stands above")
    host = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / GB
    print(f"== {name}: {seconds:,.0f} s, {host:.1f} GB of the host", flush=True)  # the table comes at the end alone
    return Row(name, seconds, host, peak, f"at most {MAX_HOST_GB:g} GB", host <= MAX_HOST_GB)


class _GpuWatch:
    """Looks at the memory in use on a GPU, several times a second, from its making until `stop`."""

    def __init__(self, gpu: str | None) -> None:
        self._gpu, self._most, self._over = gpu, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._before = 0.0
        if gpu is not None:
            self._before = self._used()
            self._thread.start()

    def stop(self) -> float | None:
        """Most memory in GB that came into use since the making."""
        self._over.set()
        if self._gpu is None:
            return None
        self._thread.join()
        return max(0.0, self._most - self._before)

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_EVERY_SEC):
            self._most = max(self._most, self._used())

    def _used(self) -> float:
        assert self._gpu is not None
        with suppress(subprocess.CalledProcessError, ValueError):
            return _query(self._gpu, "memory.used")
        return 0.0


def watched_gpu(device: str) -> str | None:
    """Number of the GPU on which a device's stages run, where torch can use it and nvidia-smi tells its memory."""
    if device in ("cpu", "mps") or shutil.which("nvidia-smi") is None:
        return None
    usable = subprocess.run([sys.executable, "-c", _CAN_USE_A_GPU], check=False).returncode == 0
    return (device.partition(":")[2] or "0") if usable else None


def gpu_gb(gpu: str) -> float:
    """All memory of a GPU."""
    return _query(gpu, "memory.total")


def _query(gpu: str, what: str) -> float:
    """GB that nvidia-smi tells of a GPU."""
    words = ["nvidia-smi", f"--id={gpu}", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout) * 2**20 / GB


def fitting_dtype(on_gpu: bool) -> str:
    """Dtype in which frozen networks are fast: float16 on a GPU, bfloat16 on a CPU that multiplies it, else float32."""
    if on_gpu:
        return "float16"
    described = Path("/proc/cpuinfo")
    flags = described.read_text() if described.is_file() else ""
    return "bfloat16" if "amx_bf16" in flags or "avx512_bf16" in flags else "float32"


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| stage | seconds | host memory, GB | GPU memory, GB | promised | kept |", "|---|---|---|---|---|---|"]
    for row in rows:
        gpu = "" if row.gpu_gb is None else f"{row.gpu_gb:.1f}"
        kept = {None: "", True: "yes", False: "**no**"}[row.kept]
        lines.append(f"| {row.name} | {row.seconds:,.0f} | {row.host_gb:.1f} | {gpu} | {row.promised} | {kept} |")
    return "\n".join(lines)
