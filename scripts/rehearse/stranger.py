"""An export in the hands of somebody who has diffusers and nothing of this project.

python -I stranger.py EXPORT PHOTOGRAPH DEVICE
"""

import sys
import time
from typing import Any

import torch
from diffusers import DiffusionPipeline

PROMPT, TARGET = "a photograph of a cat on a sofa", "a photograph of a dog on a sofa"


def main(export: str, photograph: str, device: str) -> None:
    """Load, invert, edit without and with a mask, edit several at once, and again with the parts offloaded."""
    dtype = torch.float16 if device != "cpu" else torch.bfloat16
    pipeline: Any = timed("load", lambda: DiffusionPipeline.from_pretrained(export, dtype=dtype, trust_remote_code=True))
    pipeline.to(device)
    inversion = timed("invert", lambda: pipeline.invert(photograph, PROMPT))
    assert all(noise.isfinite().all() for noise in inversion.noises), "a noise is not finite"
    for name, options in {"edit": {}, "edit with a mask": {"mask": "auto"}}.items():
        edited = timed(name, lambda options=options: pipeline.edit(inversion, TARGET, **options))
        edited.images[0].save(f"{name.replace(' ', '_')}.png")
    del pipeline, inversion
    pipeline = DiffusionPipeline.from_pretrained(export, dtype=dtype, trust_remote_code=True)
    pipeline.enable_model_cpu_offload(device=device)
    timed("offloaded", lambda: pipeline(photograph, PROMPT, TARGET))
    ours = [name for name in ("models", "train", "data", "eval") if name in sys.modules]
    assert not ours, f"the project's own {ours} were imported"


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
