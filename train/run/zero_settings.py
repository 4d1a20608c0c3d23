"""DeepSpeed's settings as the launcher names them, brought into line with the run's config."""

import logging
import os
import warnings

from accelerate.utils import DeepSpeedPlugin, parse_flag_from_env
from transformers.integrations import unset_hf_deepspeed_config

log = logging.getLogger(__name__)


def deepspeed_plugin() -> DeepSpeedPlugin | None:
    """Plugin of accelerate with the launcher's DeepSpeed settings; None where it asks for no ZeRO.

    Raises:
        ValueError: the launcher asks for the CPU too, in the way that DeepSpeed does not know.
    """
    if not parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return None
    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        raise ValueError(
            "ACCELERATE_USE_CPU is set, which DeepSpeed does not follow: set CUDA_VISIBLE_DEVICES= instead"
        )
    warnings.filterwarnings("ignore", r"`torch\.distributed\..*` is deprecated", FutureWarning)  # DeepSpeed's own calls
    plugin = DeepSpeedPlugin()
    if plugin.zero_stage == 0:
        log.warning("ZeRO stage 0 lays nothing out in pieces: the run goes on without DeepSpeed, as DDP")
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "false"
        return None
    return plugin


def resolve_zero_settings(
    plugin: DeepSpeedPlugin, micro_batch: int, accumulation: int, grad_clip: float, mixed_precision: str
) -> None:
    """Write the run's own sizes and precision into DeepSpeed's settings.

    Raises:
        ValueError: they name another value; "auto" is what they should say.
    """
    settings = plugin.deepspeed_config
    for name, value in {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": grad_clip,
    }.items():
        if settings.get(name, "auto") not in ("auto", value):
            raise ValueError(
                f"DeepSpeed's settings have {name} {settings[name]}, the run's config has {value}: "
                'write "auto" there, the run\'s config alone decides'
            )
        settings[name] = value
    for name in ("fp16", "bf16"):
        enabled = settings.get(name, {}).get("enabled", "auto")
        if enabled not in ("auto", mixed_precision == name):
            raise ValueError(
                f"DeepSpeed's settings have {name}.enabled {enabled}, the run has run.mixed_precision "
                f'{mixed_precision}: write "auto" there, the run\'s config alone decides'
            )
    settings["zero_allow_untested_optimizer"] = True  # torch's AdamW, which DeepSpeed takes for untested
    settings["zero_force_ds_cpu_optimizer"] = False


def compile_nothing() -> None:
    """Leave the sums over processes of a CPU to gloo.

    DeepSpeed would compile an operation of its own for them, a minute at the first start, and cannot start where there
    is no compiler.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}  # what it may compile, asked for by nothing else


def build_whole() -> None:
    """Let models be built whole: those that are frozen stay so, the trained one is laid out in pieces when prepared.

    accelerate has told transformers of ZeRO-3, which would build all of its models in pieces.
    """
    unset_hf_deepspeed_config()
