"""Options of a TurboEdit training."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
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
    unet: str | None = None
    """Weights for the UNet of `path`: a safetensors file, or OWNER/NAME/FILE.safetensors on the hub
    (docs/backbones.md)."""
    lora: str | None = None
    """A LoRA on that UNet, likewise, which is fused into it before F is made of it."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    """What the network predicts, where the scheduler of `path` says something else: a file over it may differ."""
    dtype: Dtype = "float16"
    """Dtype of the frozen UNet and text encoders, in which they also compute. In float16 gradients are scaled where
    they cross the UNet."""
    quantize: Quantization | None = None
    """Hold the linear layers of the frozen UNet in 8 bits, int8 or fp8: 2.2 GB less of SDXL's; they compute in `dtype`,
    a little less exactly (docs/options.md)."""
    vae_dtype: Dtype = "float32"
    """Dtype of the VAE, which previews and the pixel objective use; SDXL's own overflows in float16."""
    timesteps: tuple[int | float, ...] = TURBO_TIMESTEPS
    """Timesteps from noisy to clean: indices 0..999, of a rectified flow sigmas up to 1, of SANA-Sprint angles up to
    pi / 2. [999] alone is the paper's single-step encoder (section 3.2)."""
    size_conditioning: Literal["original", "uncropped"] = "original"
    """What SDXL is told of a picture's size, in training and in the export: original is the photograph's own size and
    where it was cropped, as the shards hold it; uncropped says that all are as they are seen."""
    cached_prompts: bool = False
    """Read prompt embeddings that data.encode stored, instead of encoding captions in every step; of pictures with
    several captions they are of the first alone."""
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
    blocks: tuple[int, ...] | None = None
    """How many of the network's blocks F keeps, the first ones: of FLUX double and single ones, [10, 20] say, of
    Z-Image and SANA one number; null keeps all. Stable Diffusion, SDXL and SD 3 have no such lists."""
    gradient_checkpointing: bool = False
    """Recompute F's activations in the backward pass: less memory, about a third more time for F."""
    compile: bool = False
    """torch.compile of F's transformer blocks; the first steps then take minutes (docs/options.md)."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters over G's weights, which F then shares; conv_in and conv_out are trained in full."""


@dataclass(frozen=True)
class AdversaryConfig:
    """A discriminator on latents: heads on features of G's own encoder (docs/adversary.md)."""

    weight: float = 0.0
    """Weight of -D(x0_hat) in F's loss, where D is the mean of the heads' logits; 0 has no discriminator."""
    start: int = 1000
    """Optimizer step from which that term is in F's loss; before it D learns alone and F is trained as without it."""
    lr: float = 1e-4
    """Learning rate of D's own AdamW, constant. optim.grad_clip clips D's gradient as F's, each by its own norm."""
    timesteps: tuple[int, ...] = (249,)
    """Timesteps whose noise D sees latents under, one drawn for each sample: small ones judge detail, large ones
    layout. Those of generator.timesteps are known to G."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            ValueError: a value is out of its range.
        """
        if self.weight < 0:
            raise ValueError(f"objective.adversary.weight is {self.weight}, expected 0 (none) or more, 0.1 say")
        if self.start < 0:
            raise ValueError(f"objective.adversary.start is {self.start}, expected a step, 0 or more")
        if self.lr <= 0:
            raise ValueError(f"objective.adversary.lr is {self.lr}, expected more than 0, 1e-4 say")
        if not self.timesteps or not all(0 <= t <= 999 for t in self.timesteps):
            raise ValueError(
                f"objective.adversary.timesteps is {self.timesteps}, expected indices within 0..999 such as [249]"
            )


@dataclass(frozen=True)
class TurboEditObjective:
    """The loss, and where the paper is silent our reading of it."""

    kl_weight: float = 1e-6
    """lambda, on the KL summed over a latent's elements: 1e-6 at SDXL's 16,384; the same balance at 1,024 is 1.6e-5."""
    own_share: float = 0.0
    """Share of previous reconstructions that F and G make themselves as in inversion, instead of by one-step SDEdit."""
    own_share_ramp: float = 0.0
    """Share of run.steps over which own_share rises linearly from 0; 0 has it from the first step."""
    space: Literal["latent", "pixel"] = "latent"
    """Space of the MSE; pixel decodes both sides and costs a pass through the VAE's decoder."""
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    """A discriminator on latents."""
    timestep_weights: tuple[float, ...] | Literal["balanced"] | None = None
    """Weights of the MSE, one for each of generator.timesteps; balanced weighs each sample by its own error to the
    power -0.5, so that clean timesteps count as noisy ones do. Null weighs all alike."""
    known_noise_weight: float = 0.0
    """Weight of the error of F's noise for pictures that G has made of a known one. 0 has none."""
    known_noise_share: float = 0.5
    """Samples with a picture of known noise, as a share of a batch; the weight holds whatever it is."""
    known_noise_loss: Literal["mse", "nll"] = "mse"
    """Squared error of the mean, or the Gaussian's negative log-likelihood, which fits its variance too; the latter is
    1 / variance as strong."""
    moments_weight: float = 0.0
    """Weight of how far mean and deviation of each picture's mean noise are from 0 and 1."""
    spectrum_weight: float = 0.0
    """Weight of how far the power spectrum of each picture's mean noise is from white."""
    perceptual_weight: float = 0.0
    """Weight of the perceptual distance of the reconstruction. 0 has none."""
    perceptual: Literal["features", "lpips"] = "features"
    """Features of G's own encoder, without a decoder; or LPIPS of decoded crops of 16 x 16 latents."""
    perceptual_network: str | None = None
    """File with torchvision's weights of VGG16, which lpips needs."""
    score_weight: float = 0.0
    """Weight of the score regulariser: the noise has to be noise to a many-step teacher. 0 has none."""
    score_teacher: str | None = None
    """diffusers folder or hub id of the teacher, of the same latents."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            ValueError: a value is out of its range, or misses another one that it needs.
        """
        for name in ("own_share", "own_share_ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"objective.{name} is {getattr(self, name)}, expected a share between 0 and 1")
        for name in (option.name for option in fields(self) if option.name.endswith("_weight")):
            if getattr(self, name) < 0:
                raise ValueError(f"objective.{name} is {getattr(self, name)}, expected at least 0")
        if self.own_share_ramp and not self.own_share:
            raise ValueError(
                f"objective.own_share_ramp is {self.own_share_ramp} and objective.own_share 0: set own_share to the "
                "share at which the ramp ends"
            )
        if not 0 < self.known_noise_share <= 1:
            raise ValueError(
                f"objective.known_noise_share is {self.known_noise_share}, expected a share above 0 and at most 1; "
                "known_noise_weight 0 leaves the term out"
            )
        if isinstance(self.timestep_weights, tuple) and min(self.timestep_weights, default=0.0) <= 0:
            raise ValueError(f"objective.timestep_weights is {self.timestep_weights}, expected numbers above 0")
        if self.perceptual_weight and self.perceptual == "lpips" and not self.perceptual_network:
            raise ValueError(
                "objective.perceptual lpips needs objective.perceptual_network, a file with torchvision's weights of "
                "VGG16 (vgg16-397923af.pth)"
            )
        if self.score_weight and not self.score_teacher:
            raise ValueError("objective.score_weight needs objective.score_teacher, a many-step model's folder")
        if self.score_weight and not self.known_noise_weight:
            raise ValueError(
                f"objective.score_weight is {self.score_weight} and objective.known_noise_weight 0: alone the score "
                "regulariser did nothing for edits (SwiftEdit, CLIP 22.98 instead of 22.91); set known_noise_weight too"
            )


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
            ValueError: F would compute with 16-bit and float32 weights without autocast, layers in 8 bits would be
                compiled, or there are other numbers of timesteps and of their weights.
        """
        super().__post_init__()
        if self.data.probe is not None and self.generator.cached_prompts:
            raise ValueError(
                "data.probe has descriptions to encode, and with generator.cached_prompts the text encoders are not "
                "loaded: leave out one of both"
            )
        weights = self.objective.timestep_weights
        if isinstance(weights, tuple) and len(weights) != len(self.generator.timesteps):
            raise ValueError(
                f"objective.timestep_weights has {len(weights)} numbers for generator.timesteps "
                f"{self.generator.timesteps}: give one weight for each timestep"
            )
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
