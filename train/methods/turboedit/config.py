"""Options of a TurboEdit training."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from models.options import INITIAL_LOGVAR, TURBO_TIMESTEPS, Quantization
from train.methods.config import Dtype, LoraConfig
from train.run.config import FitConfig


@dataclass(frozen=True)
class GeneratorConfig:
    """The frozen few-step generator G and its timesteps."""

    path: str = "stabilityai/sdxl-turbo"
    """diffusers folder or hub id."""
    variant: str | None = None
    """File variant on the hub, such as fp16."""
    dtype: Dtype = "float16"
    """Dtype of the frozen UNet and text encoders, in which they also compute. In float16 gradients are scaled where
    they cross the UNet."""
    quantize: Quantization | None = None
    """Hold the linear layers of the frozen UNet in 8 bits, int8 or fp8: 2.2 GB less of SDXL's; they compute in `dtype`,
    a little less exactly (docs/options.md)."""
    vae_dtype: Dtype = "float32"
    """Dtype of the VAE, which previews and the pixel objective use; SDXL's own overflows in float16."""
    timesteps: tuple[int, ...] = TURBO_TIMESTEPS
    """Indices 0..999 from noisy to clean. [999] alone is the paper's single-step encoder (section 3.2)."""
    size_conditioning: Literal["original", "uncropped"] = "original"
    """What SDXL is told of a picture's size, in training and in the export: original is the photograph's own size and
    where it was cropped, as the shards hold it; uncropped says that all are as they are seen."""
    cached_prompts: bool = False
    """Read prompt embeddings that data.encode stored, instead of encoding captions in every step."""
    gradient_checkpointing: bool = False
    """Recompute G's activations in the backward pass: less memory, about a third more time for G."""
    compile: bool = False
    """torch.compile of G's transformer blocks; the first steps then take minutes (docs/options.md)."""


@dataclass(frozen=True)
class EncoderConfig:
    """The noise encoder F."""

    init_from: str | None = None
    """Run folder or export (folder or hub id) whose averaged weights F starts from, with a fresh optimizer; only the
    first start of a run reads it. Null starts from G's."""
    initial_logvar: float = INITIAL_LOGVAR
    """Log-variance of the noise at step 0, everywhere."""
    gradient_checkpointing: bool = False
    """Recompute F's activations in the backward pass: less memory, about a third more time for F."""
    compile: bool = False
    """torch.compile of F's transformer blocks; the first steps then take minutes (docs/options.md)."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters over G's weights, which F then shares; conv_in and conv_out are trained in full."""


@dataclass(frozen=True)
class TurboEditObjective:
    """The loss, and where the paper is silent our reading of it."""

    kl_weight: float = 1e-6
    """lambda, on the KL summed over a latent's elements: 1e-6 at SDXL's 16,384; the same balance at 1,024 is 1.6e-5."""
    own_share: float = 0.0
    """Share of previous reconstructions that F and G make themselves as in inversion, instead of by one-step SDEdit."""
    space: Literal["latent", "pixel"] = "latent"
    """Space of the MSE; pixel decodes both sides and costs a pass through the VAE's decoder."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            ValueError: a value is out of its range.
        """
        if not 0 <= self.own_share <= 1:
            raise ValueError(f"objective.own_share is {self.own_share}, expected a share between 0 and 1")
        if self.kl_weight < 0:
            raise ValueError(f"objective.kl_weight is {self.kl_weight}, expected at least 0")


@dataclass(frozen=True, kw_only=True)
class TurboEditConfig(FitConfig):
    """A TurboEdit training.

    Args:
        generator: The frozen model.
        encoder: Options of F, which is trained.
        objective: The loss.
        method: Name of the method, by which train.plan and train.export know it.
    """

    init_option: ClassVar[str] = "encoder.init_from"
    former: ClassVar[Mapping[str, Any]] = {"generator.size_conditioning": "uncropped"}
    generator: GeneratorConfig
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    objective: TurboEditObjective = field(default_factory=TurboEditObjective)
    method: Literal["turboedit"] = "turboedit"

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together.

        Raises:
            ValueError: F would compute with 16-bit and float32 weights without autocast, or layers in 8 bits would be
                compiled.
        """
        adapted = self.encoder.lora.rank > 0
        if self.generator.quantize and (self.generator.compile or (adapted and self.encoder.compile)):
            name = "generator.compile" if self.generator.compile else "encoder.compile"
            raise ValueError(
                f"generator.quantize is {self.generator.quantize} and {name} true: compiled layers keep weights in 16 "
                f"bits for the backward pass, so 8 would save nothing; leave out {name} or generator.quantize"
            )
        if adapted and self.generator.dtype != "float32" and self.run.mixed_precision == "no":
            raise ValueError(
                f"with encoder.lora F shares G's {self.generator.dtype} weights beside float32 ones of its own: "
                "set run.mixed_precision bf16, or generator.dtype float32"
            )
