"""Trainings that can be selected in the benches of options and of full size; imports nothing heavy."""

import itertools

PLAIN = "plain"
OPTIONS: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    "plain, again": (),
    "checkpointing of F": ("--encoder.gradient_checkpointing=true",),
    "checkpointing of G": ("--generator.gradient_checkpointing=true",),
    "checkpointing of both": ("--encoder.gradient_checkpointing=true", "--generator.gradient_checkpointing=true"),
    "bf16": ("--run.mixed_precision=bf16", "--generator.dtype=bfloat16"),
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
