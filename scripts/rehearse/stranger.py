"""An export in the hands of somebody who has diffusers and nothing of this project.

python -I stranger.py EXPORT PHOTOGRAPH DEVICE DTYPE
"""

import sys
import time
from typing import Any

import torch
from diffusers import DiffusionPipeline

PROMPT, TARGET = "a photograph of a cat on a sofa", "a photograph of a dog on a sofa"


def main(export: str, photograph: str, device: str, dtype_name: str) -> None:
    """Load, invert, edit without and with a mask, edit several at once, and again with the parts offloaded."""
    dtype = getattr(torch, dtype_name)
    pipeline = timed("load", lambda: load(export, dtype))
    pipeline.to(device)
    inversion = timed("invert", lambda: pipeline.invert(photograph, PROMPT))
    assert all(noise.isfinite().all() for noise in inversion.noises), "a noise is not finite"
    timed("edit", lambda: pipeline.edit(inversion, TARGET)).images[0].save("edit.png")
    timed("edit with a mask", lambda: pipeline.edit(inversion, TARGET, mask="auto")).images[0].save("edit_masked.png")
    pipeline.enable_model_cpu_offload(device=device)  # the same one: two do not fit into 24 GB
    timed("offloaded", lambda: pipeline(photograph, PROMPT, TARGET))
    ours = [name for name in ("models", "train", "data", "eval") if name in sys.modules]
    assert not ours, f"the project's own {ours} were imported"


def load(export: str, dtype: torch.dtype) -> Any:
    """The pipeline as anybody loads it."""
    return DiffusionPipeline.from_pretrained(export, dtype=dtype, trust_remote_code=True)


def timed(name: str, function: Any) -> Any:
    """What the function returns; its seconds are printed."""
    started = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    print(f"{name}: {time.perf_counter() - started:.1f} s", flush=True)
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
