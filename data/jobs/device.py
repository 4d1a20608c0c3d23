"""The device that a command computes on."""

import torch

from data.jobs.sharing import Ranks


def use_tf32(device: torch.device) -> None:
    """Let float32 products on a GPU round their factors to 10 bits (TF32), as torch's convolutions do in any case.

    That is the precision of float16, in which a stage stores what it makes, at up to eight times the speed of float32.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name; "auto" is the GPU that belongs to this process of a launch, else the CPU.

    A GPU with a number becomes torch's current one, so that nothing lands on another by default.

    Raises:
        ValueError: torch does not know the name, or sees no such device here.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = f"cuda:{Ranks.local_rank() % gpus}" if gpus else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device is {name!r}, expected auto, cpu, cuda, cuda:0 ...") from error
    if device.type == "cuda":
        if (device.index or 0) >= gpus:
            seen = f"{gpus} GPU(s)" if gpus else "no GPU"
            raise ValueError(f"--device is {name!r}, but torch sees {seen} here; take --device auto or cpu")
        if device.index is not None:
            torch.cuda.set_device(device)
    return device
