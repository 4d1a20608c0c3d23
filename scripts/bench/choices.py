"""Trainings that can be selected in the benches of options and of full size; imports nothing heavy."""

import itertools
from typing import Literal

from train.methods.turboedit.config import GeneratorConfig

PLAIN = "plain"
OPTIONS: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    "plain, again": (),
    "checkpointing of F": ("--encoder.gradient_checkpointing=true",),
    "checkpointing of G": ("--generator.gradient_checkpointing=true",),
    "checkpointing of both": ("--encoder.gradient_checkpointing=true", "--generator.gradient_checkpointing=true"),
    "bf16": ("--run.mixed_precision=bf16", f"--generator.dtype={GeneratorConfig.dtype}"),
    "bf16, G in bfloat16": ("--run.mixed_precision=bf16", "--generator.dtype=bfloat16"),
    "lora": ("--encoder.lora.rank=16",),
    "adamw8bit": ("--optim.kind=adamw8bit",),
    "adamw not fused": ("--optim.fused=false",),
    "no average": ("--ema.decay=0",),
    "average on the CPU": ("--ema.device=cpu", "--ema.every=10"),
    "compile of both": ("--encoder.compile=true", "--generator.compile=true"),
    "channels-last": (),
    "F recomputed around G": (),
}
"""Words of train.turboedit's command line for each memory or speed option."""

_PARTS: dict[str, tuple[str, ...]] = {
    "full": (),
    "lora": ("--encoder.lora.rank=16",),
}
_SPEED_OPTIONS: dict[str, tuple[str, ...]] = {
    "checkpointing": ("--encoder.gradient_checkpointing=true", "--generator.gradient_checkpointing=true"),
    "compile": ("--encoder.compile=true", "--generator.compile=true"),
}
TRAININGS: dict[str, tuple[str, ...]] = {
    "+".join([part, *chosen]): _PARTS[part] + tuple(word for name in chosen for word in _SPEED_OPTIONS[name])
    for part, count in itertools.product(_PARTS, range(len(_SPEED_OPTIONS) + 1))
    for chosen in itertools.combinations(_SPEED_OPTIONS, count)
}
"""Words of train.turboedit's command line for each full-size training."""

LATENCY = "latency"

GeneratorDtype = Literal["auto", "float16", "bfloat16", "float32"]
"""Dtype of the frozen models of a bench."""


def generator_dtype(asked: GeneratorDtype, precision: str, kind: str) -> Literal["float16", "bfloat16", "float32"]:
    """The dtype of the frozen models on a kind of device: `auto` is the trainings' default under bf16, else float32.

    On a CPU it is bfloat16 under bf16: there F cannot share weights in another dtype, as it does with LoRA.
    """
    if asked != "auto":
        return asked
    if precision == "no":
        return "float32"
    return "bfloat16" if kind == "cpu" else GeneratorConfig.dtype
