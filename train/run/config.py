"""The config of every run: frozen dataclasses that a command line fills before torch loads."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, ClassVar, Literal, TypeVar

from eval.metrics.measures import MEASURES

Config = TypeVar("Config")

Precision = Literal["no", "bf16", "fp16"]
"""Precision of the forward pass."""

TrackerName = Literal["tensorboard", "wandb", "trackio", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab"]
"""Trackers that accelerate knows."""

VALID = "valid/"
"""Beginning of the names of figures of held-out samples."""


@dataclass(frozen=True)
class LogConfig:
    """Cadences, in optimizer steps, and trackers."""

    log_every: int = 10
    """Steps between two lines of metrics.jsonl; the end of a run always has one."""
    preview_every: int = 500
    """Steps between two preview pictures; 0 for none."""
    preview_samples: int = 8
    """Rows of a preview picture."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; the end of a run always has one."""
    keep_checkpoints: int = 2
    """Number of the newest checkpoints that stay."""
    keep_every: int = 0
    """Checkpoints of every so many steps stay for good, whatever their age; 0 for none."""
    validate_every: int = 500
    """Steps between two looks at the samples of data.validation, by the averaged weights; the end of a run always has
    one, and so has its beginning. 0 for none."""
    validation_samples: int = 128
    """Number of held-out samples that are looked at, evenly spaced over the shards; all if there are fewer."""
    best: str | None = None
    """Figure of held-out samples by which the best checkpoint is kept beside the newest ones, such as valid/psnr_4."""
    best_is: Literal["highest", "lowest"] | None = None
    """Better values of log.best. By default as its measure has it: highest for psnr_4, lowest for latent_mse/t249."""
    peak_tflops: float | None = None
    """Peak of a device in 10^12 FLOP a second, for MFU. By default that of well-known GPUs in bf16, else no MFU."""
    profile: tuple[int, ...] = ()
    """First and last step to profile, such as [20, 22]: RUN/profile gets a trace and, on CUDA, a memory snapshot."""
    trackers: tuple[TrackerName, ...] = ()
    """Further places to log to, such as [tensorboard, wandb]; the package of each has to be installed."""
    project: str = "inversion-encoders"
    """Project of the trackers."""
    entity: str | None = None
    """User or team of wandb."""
    run_name: str | None = None
    """Name of wandb's run; by default that of the run folder."""
    tags: tuple[str, ...] = ()
    """Tags of wandb's run."""
    wandb_mode: Literal["offline", "online"] = "offline"
    """Whether wandb uploads. `wandb sync` uploads an offline run later."""

    def __post_init__(self) -> None:
        """Refuse cadences that cannot be meant.

        Raises:
            ValueError: a value is out of its range.
        """
        for name in ("log_every", "checkpoint_every", "keep_checkpoints", "preview_samples", "validation_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"log.{name} is {getattr(self, name)}, expected at least 1")
        if self.profile and not (len(self.profile) == 2 and 0 <= self.profile[0] <= self.profile[1]):
            raise ValueError(f"log.profile is {self.profile}, expected a first and a last step such as [20, 22]")
        for name in ("preview_every", "keep_every", "validate_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"log.{name} is {getattr(self, name)}, expected 0 (none) or more")
        if self.best is not None and not (self.best.startswith(VALID) and self.validate_every):
            raise ValueError(
                f"log.best is {self.best} and log.validate_every {self.validate_every}, expected a figure of held-out "
                f"samples such as {VALID}psnr_4, and steps between two looks at them"
            )
        if self.best is not None and self.best_is is None and _better_values(self.best) is None:
            raise ValueError(f"log.best is {self.best}, which is no measure: say log.best_is highest or lowest")

    @property
    def best_is_highest(self) -> bool:
        """Whether more of `best` is better."""
        assert self.best is not None
        return (self.best_is or _better_values(self.best)) == "highest"


def _better_values(figure: str) -> Literal["highest", "lowest"] | None:
    """The better values of a figure, by its measure: psnr of valid/psnr_4, latent_mse of valid/latent_mse/t249."""
    name = figure.removeprefix(VALID).split("/")[0]
    measure = MEASURES.get(name) or MEASURES.get(name.rstrip("0123456789").rstrip("_"))
    if measure is None or measure.better is None:
        return None
    return "highest" if measure.higher else "lowest"


@dataclass(frozen=True)
class EmaConfig:
    """Average of the weights over the steps."""

    decay: float = 0.999
    """Share of the average that stays in each step; 0 keeps no average.
    Early steps use min(decay, (1 + step) / (10 + step)), so that the first averages move."""
    every: int = 1
    """Steps between two updates, which then count as many at once."""
    device: Literal["model", "cpu"] = "model"
    """Device of the average. On the CPU it takes nothing of the GPU, but an update waits for 4 bytes a weight
    to cross over: set `every` to 10 or so."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            ValueError: a value is out of its range.
        """
        if not 0 <= self.decay < 1:
            raise ValueError(f"ema.decay is {self.decay}, expected 0 (off) or a value below 1, 0.999 say")
        if self.every < 1:
            raise ValueError(f"ema.every is {self.every}, expected at least 1")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    kind: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit (bitsandbytes) keeps the moments of weights of 4,096 elements and more in 8 bits: 2 bytes an element
    instead of 8. Its step cannot be left out on the device, so every step waits for the device."""
    lr: float = 1e-4
    """Learning rate after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on all trainable parameters."""
    warmup_steps: int = 0
    """Steps of linear warm-up from zero."""
    decay: Literal["constant", "cosine", "linear"] = "constant"
    """Course of the learning rate from the warm-up's end to run.steps."""
    final_lr_share: float = 0.0
    """Learning rate at run.steps as a share of `lr` (cosine and linear)."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    fused: bool | None = None
    """Fused AdamW. By default wherever torch has it (CPU and CUDA). Without it every step waits for the device."""
    max_bad_steps: int = 3
    """Steps in a row with a gradient that is not finite before the run stops. Such a step is never applied."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            ValueError: a value is out of its range.
        """
        if self.lr <= 0 or self.grad_clip < 0 or self.warmup_steps < 0 or self.max_bad_steps < 1:
            raise ValueError(
                f"optim.lr {self.lr} must be above 0, optim.grad_clip {self.grad_clip} and optim.warmup_steps "
                f"{self.warmup_steps} at least 0, optim.max_bad_steps {self.max_bad_steps} at least 1"
            )
        if self.fused and self.kind != "adamw":
            raise ValueError(f"optim.fused is torch's AdamW: leave it null with optim.kind {self.kind}")
        if not 0 <= self.final_lr_share <= 1:
            raise ValueError(f"optim.final_lr_share is {self.final_lr_share}, expected a share between 0 and 1")


@dataclass(frozen=True)
class DataConfig:
    """Place of the samples and way of reading them.

    Args:
        shards: Folder of shards, the OUT folder of data.encode (or of data.caption, to train on images).
        workers: Processes that read for each rank; 0 reads in the training process.
        window: Number of shards among which samples are mixed.
        max_bad_share: Share of unreadable samples over which a run stops.
        verify: Read all shards through at each start of the run and compare them with their checksums. Without it a bit
            that turned inside an array goes unnoticed (docs/data.md).
        validation: Folder of shards of held-out samples, made as `shards` are, at which the run looks as it trains and
            which its previews show; null for none (docs/training.md).
        probe: File of edits that are tried on held-out pictures, a JSON object a line: `key` of the sample, `target`,
            the description after the edit, and `caption` where the one before it is not the sample's own.
        attributes: Folder of the network that reads edits of held-out scenes, models/miniature/attributes; null does
            without.
    """

    shards: str
    workers: int = 2
    window: int = 8
    max_bad_share: float = 0.01
    verify: bool = False
    validation: str | None = None
    probe: str | None = None
    attributes: str | None = None


@dataclass(frozen=True)
class RunConfig:
    """Folder and length of a run, and sizes of its batches."""

    folder: str
    """Run folder, runs/NAME. The same command on the same folder resumes."""
    seed: int = 0
    """Seed of data order and noise."""
    steps: int = 1000
    """Optimizer steps."""
    global_batch: int = 64
    """Samples of an optimizer step, over all processes."""
    micro_batch: int = 64
    """Samples of one forward pass on one process; accumulation follows from it."""
    processes: int | None = None
    """Processes that the launch is meant to have; another number stops the run before it begins. Null takes any."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device of each process. auto takes the GPU that torch can use (CUDA, else Apple's MPS), else the CPU; with cuda
    or mps a run that finds none stops and says why."""
    mixed_precision: Precision = "no"
    """Precision of the trained network's forward pass. Trainable weights stay fp32; under ZeRO their fp32 masters do.
    fp16 scales the loss and is for GPUs without bf16 (V100, T4, RTX 20). Frozen networks have a dtype of their own."""
    time_limit_min: float | None = None
    """Minutes of training, over all starts, after which the run saves and ends; looked at after every step."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be meant.

        Raises:
            ValueError: a value is out of its range.
        """
        for name in ("steps", "global_batch", "micro_batch", "processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"run.{name} is {value}, expected at least 1")
        if self.seed < 0:
            raise ValueError(f"run.seed is {self.seed}, expected at least 0")
        if self.time_limit_min is not None and self.time_limit_min <= 0:
            raise ValueError(f"run.time_limit_min is {self.time_limit_min}, expected more than 0, or null for none")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Config of every run; a method's config adds its own fields.

    Args:
        run: Folder and length of the run, and sizes of its batches.
        data: Place of the samples.
        optim: AdamW and its schedule.
        ema: Average of the weights.
        log: Cadences and trackers.

    Attributes:
        init_option: Name of the option by which a run starts from the weights of another; "" where there is none.
        former: Values of options that configs of before the option lack, by dotted name, where they are not the
            defaults.
    """

    init_option: ClassVar[str] = ""
    former: ClassVar[Mapping[str, Any]] = {}
    run: RunConfig
    data: DataConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together.

        Raises:
            ValueError: what needs held-out samples has none.
        """
        for name in ("data.probe", "data.attributes", "log.best"):
            if option_of(self, name) is not None and self.data.validation is None:
                raise ValueError(
                    f"{name} is {option_of(self, name)}, which is about held-out samples: give their shards by "
                    "data.validation, or leave it out"
                )


def option_of(config: Any, name: str) -> Any:
    """Return the value of an option such as encoder.gradient_checkpointing."""
    return reduce(getattr, name.split("."), config)


def with_option(config: Config, name: str, value: Any) -> Config:
    """Return the config with another value of an option."""
    part, _, rest = name.partition(".")
    return replace(config, **{part: with_option(getattr(config, part), rest, value) if rest else value})  # type: ignore[type-var]
