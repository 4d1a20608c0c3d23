"""The device that a command computes on."""

import logging
import os
from pathlib import Path

import torch

from data.jobs.sharing import Ranks

log = logging.getLogger(__name__)

_NVIDIA_DRIVER = Path("/proc/driver/nvidia")
"""There where Linux has loaded NVIDIA's driver, whatever torch can do with it."""


def use_tf32(device: torch.device) -> None:
    """Let float32 products on a GPU round their factors to 10 bits (TF32), as torch's convolutions do in any case.

    That is the precision of float16, in which a stage stores what it makes and in which a training holds its generator
    by default, at up to eight times the speed of float32.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True


def choose_device(name: str = "auto", option: str = "--device") -> torch.device:
    """The device of a name; "auto" is the GPU that belongs to this process of a launch, else the CPU.

    A GPU with a number becomes torch's current one, so that nothing lands on another by default. Where "auto" takes the
    CPU though a GPU may have been meant, the log says why.

    Args:
        name: "auto", "cpu", "cuda" (NVIDIA's, and AMD's in torch's builds for ROCm), "cuda:0" ..., or "mps" (Apple's).
        option: Option that gives the name, for messages.

    Raises:
        ValueError: torch does not know the name, or can use no such device here; the message says why.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = _best(gpus)
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"{option} is {name!r}, expected auto, cpu, cuda, cuda:0 ... or mps")
    elsewhere = f"{option} cpu computes on the CPU"
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"{option} is {name!r}, but torch can use no Apple GPU here: {_why_no_mps()}; {elsewhere}")
    if device.type == "cuda":
        if not gpus:
            raise ValueError(f"{option} is {name!r}, but torch can use no GPU here: {_why_no_cuda()}; {elsewhere}")
        if (device.index or 0) >= gpus:
            raise ValueError(f"{option} is {name!r}, but torch sees {gpus} GPU(s) here, cuda:0 to cuda:{gpus - 1}")
        if device.index is not None:
            torch.cuda.set_device(device)
    return device


def _best(gpus: int) -> str:
    """The name that "auto" stands for."""
    if gpus:
        return f"cuda:{Ranks.local_rank() % gpus}"
    if torch.backends.mps.is_available():
        return "mps"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")
    if (torch.backends.cuda.is_built() or _NVIDIA_DRIVER.exists()) and not hidden:
        log.warning("computing on the CPU, as torch can use no GPU here: %s", _why_no_cuda())
    return "cpu"


def _why_no_cuda() -> str:
    """What to change so that torch can use a GPU."""
    if not torch.backends.cuda.is_built():
        return (
            f"torch {torch.__version__} is a build for the CPU; "
            "pytorch.org/get-started/locally has the command that installs one for your GPU"
        )
    built_for = f"torch {torch.__version__} is built for {_platform()}"
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        built_for += f", CUDA_VISIBLE_DEVICES is {os.environ['CUDA_VISIBLE_DEVICES']!r}"
    try:
        torch.cuda.init()
    except RuntimeError as error:  # names the driver: missing, too old, no GPU that it may use
        return f"{built_for}, and it says: {' '.join(str(error).split()).rstrip('.')}"
    return f"{built_for}, and the driver shows none (nvidia-smi lists what it has)"


def _platform() -> str:
    return f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"


def _why_no_mps() -> str:
    if not torch.backends.mps.is_built():
        return f"torch {torch.__version__} is a build without MPS"
    return "MPS needs Apple's own processor and a macOS that this torch supports"
