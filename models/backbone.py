"""A frozen text-to-image model, loaded from any diffusers folder or hub id, and what its family has to know.

Every part is the stock diffusers or transformers class; this file only freezes them and speaks the project's words
(image, latent, prompt, t). What differs by family stands in one file each (models/families.py; docs/backbones.md).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor, nn

from .families import family_of_index
from .own_dtype import GradientScale, in_own_dtype
from .pipeline_files import ConfigFiles, PipelineFiles, index_of
from .precision import without_autocast
from .schedule import NoiseSchedule
from .shapes import SizeConditioning, Sizes, side_multiple
from .text import Prompt, Text
from .words import Reader, clip_readers

PARTS = ("vae", "text", "network")


@contextmanager
def named_in_errors(path: str) -> Iterator[None]:
    """Name the folder or hub id that is loaded in the block, where an OSError does not say it.

    Raises:
        OSError: with `path` before the message, in the place of one without it.
    """
    try:
        yield
    except OSError as error:
        if path in str(error):
            raise
        raise OSError(f"{path} cannot be loaded: {error}") from error


def freeze(module: nn.Module) -> nn.Module:
    """Evaluation mode and no gradients to the weights; gradients still cross the module to its input."""
    return module.requires_grad_(False).eval()


def assert_frozen(module: nn.Module) -> None:
    """Raises AssertionError if a weight of `module` would be trained or if it is in training mode."""
    trained = [name for name, weight in module.named_parameters() if weight.requires_grad]
    assert not trained, f"frozen {type(module).__name__} has trainable weights: {trained[:3]}"
    assert not any(m.training for m in module.modules()), f"frozen {type(module).__name__} is in training mode"


def dtype_of(name: str) -> torch.dtype:
    """Dtype of torch for weights that a config names.

    Raises:
        ValueError: it is none of float32, bfloat16, float16.
    """
    if name not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype is {name}, expected float32, bfloat16 or float16")
    return getattr(torch, name)


class Backbone:
    """The frozen parts and what they do; each family of models is a subclass.

    A family gives its stock classes, and the functions that say `NotImplementedError` here. Those that are static are
    for the noise encoder too, which is the family's network with more channels.

    Args:
        schedule: the noise schedule.
        vae, network: diffusers models, or None where a part was not asked for.
        text: the text encoders, or None.
    """

    NETWORK: ClassVar[Any]
    """Class of the generator's network."""
    NETWORK_NAME: ClassVar[str] = "transformer"
    """Its name among the components of a pipeline."""
    VAE: ClassVar[Any] = AutoencoderKL
    """Class of the autoencoder."""
    SCHEDULER: ClassVar[Any] = FlowMatchEulerDiscreteScheduler
    """Class as which the scheduler is read, whichever of its kind it is."""
    TEXT_ENCODERS: ClassVar[Mapping[str, Any]]
    """Classes of the text encoders by the names of the components."""
    TOKENIZERS: ClassVar[Mapping[str, Any]]
    """Classes of the tokenizers by the names of the components."""
    BLOCKS: ClassVar[Mapping[str, str]] = {}
    """The network's lists of blocks of which the noise encoder may keep the first ones, with their lengths' names in
    its config."""
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    """Components that a pipeline of the family may lack."""
    LORA_TARGETS: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    """Ends of the names of the layers that get adapters where a config names none: all projections of the attention."""
    TAKES_LISTS: ClassVar[bool] = False
    """Whether the network takes the pictures of a batch in a list and goes through them one by one."""

    def __init__(
        self,
        *,
        schedule: NoiseSchedule,
        vae: Any = None,
        network: Any = None,
        text: Text | None = None,
    ) -> None:
        self.schedule = schedule
        self.vae = vae
        self.network = network
        self.text = text
        for module in self.modules():
            freeze(module)

    @classmethod
    def load(
        cls,
        path: str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        vae_dtype: torch.dtype = torch.float32,
        network_dtype: torch.dtype | None = None,
        parts: Sequence[str] = PARTS,
        variant: str | None = None,
        prediction_type: str | None = None,
    ) -> "Backbone":
        """Load the `parts` of a diffusers folder or hub id, as a backbone of its family.

        Args:
            path: folder with `model_index.json`, or a hub id such as "stabilityai/sdxl-turbo"; HF_HUB_OFFLINE is
                respected.
            dtype: precision of the network and the text encoders; `vae_dtype`: precision of the VAE, float32 or
                bfloat16; `network_dtype`: precision of the network where it is to have another.
            parts: some of "vae", "text" and "network".
            variant: file variant, such as "fp16"; without it that of a folder that has no plain files.
            prediction_type: what the network predicts, where that is not what the scheduler says.

        Raises:
            ValueError: the folder is no pipeline of a known family, it has no files of the variant, or none without one
                and several variants, or the VAE would overflow in float16.
        """
        files = PipelineFiles.open(path, variant, device)
        return family_of_index(path, files.index).read(
            files, parts, dtype, vae_dtype, network_dtype or dtype, prediction_type
        )

    @classmethod
    def outline(cls, path: str) -> "Backbone":
        """The VAE and the network of a folder or hub id on the meta device, by their config files alone.

        Raises:
            ValueError: it is no pipeline of a known family.
        """
        files, dtype = ConfigFiles(path, index_of(path)), torch.float32
        return family_of_index(path, files.index).read(files, ("vae", "network"), dtype, dtype, dtype)

    @classmethod
    def read(
        cls,
        files: PipelineFiles,
        parts: Sequence[str],
        dtype: torch.dtype,
        vae_dtype: torch.dtype,
        network_dtype: torch.dtype,
        prediction_type: str | None = None,
    ) -> "Backbone":
        """Read some parts of a pipeline of this family; `load` says what its arguments are and what is refused."""
        if unknown := sorted(set(parts) - set(PARTS)):
            raise ValueError(f"parts {', '.join(unknown)} are unknown; expected some of {', '.join(PARTS)}")
        wanted = {"vae": cls.VAE, cls.NETWORK_NAME: cls.NETWORK, **cls.TEXT_ENCODERS, **cls.TOKENIZERS}
        missing = [n for n in (*wanted, "scheduler") if n not in files.index and n not in cls.OPTIONAL]
        if missing:
            raise ValueError(
                f"{files.path} is not a pipeline of {cls.__name__}: its model_index.json names no {', '.join(missing)}"
            )
        components: dict[str, Any] = {"scheduler": files.scheduler(cls.SCHEDULER)}
        if "vae" in parts:
            components["vae"] = vae = files.network(cls.VAE, "vae", vae_dtype)
            if vae_dtype == torch.float16 and getattr(vae.config, "force_upcast", False):
                raise ValueError(f"the VAE of {files.path} overflows in float16; use float32 or bfloat16 (vae_dtype)")
        if "network" in parts:
            components[cls.NETWORK_NAME] = files.network(cls.NETWORK, cls.NETWORK_NAME, network_dtype)
        if "text" in parts:
            tokenizers = {name: kind for name, kind in cls.TOKENIZERS.items() if files.has(name)}
            components |= {name: files.tokenizer(kind, name) for name, kind in tokenizers.items()}
            encoders = {name: kind for name, kind in cls.TEXT_ENCODERS.items() if files.has(name)}
            components |= {name: files.network(kind, name, dtype) for name, kind in encoders.items()}
        return cls.of_components(components, prediction_type)

    @classmethod
    def of_components(cls, components: Mapping[str, Any], prediction_type: str | None = None) -> "Backbone":
        """The backbone of a pipeline's components by their names; those that are missing or None are left out."""
        has_text = any(components.get(name) is not None for name in cls.TEXT_ENCODERS)
        return cls(
            schedule=NoiseSchedule.from_scheduler(components["scheduler"], prediction_type),
            vae=components.get("vae"),
            network=components.get(cls.NETWORK_NAME),
            text=cls.text_of(components) if has_text else None,
        )

    @classmethod
    def text_of(cls, components: Mapping[str, Any]) -> Text:
        """The text encoders with their tokenizers, of a pipeline's components by their names."""
        raise NotImplementedError

    @classmethod
    def readers_of(cls, tokenizers: Sequence[Any]) -> tuple[Reader, ...]:
        """The tokenizers whose encoders have to read all of a text, of a pipeline's in the order of TOKENIZERS."""
        return clip_readers(tokenizers)

    @staticmethod
    def evaluate(network: Any, x: Tensor, prompt: Prompt, t: Tensor) -> Tensor:
        """What the network, G's or the noise encoder's, gives at `x` [B, kC, h, w] and t [B], as [B, nC, h, w].

        It has the meaning of the schedule's prediction type. t is the schedule's own, int64 or float32; what the
        network is fed is made of it here, and never rounded to 16 bits on the way.
        """
        raise NotImplementedError

    @staticmethod
    def compute_dtype(network: Any) -> torch.dtype:
        """The dtype in which a network computes, however some of its layers are stored.

        Its own property walks through all modules to find it, 19 ms for SDXL.
        """
        raise NotImplementedError

    @staticmethod
    def widened(network: Any, shared: bool = False) -> Any:
        """A network that takes 2C channels, with zeros for the last C's weights: it starts as `network`.

        All weights are float32 and trainable. Where they are `shared` that holds for the first projection alone; the
        others are the tensors of `network`, not copies, frozen as they are there, for adapters to be laid over.
        `network` is left as it is.
        """
        raise NotImplementedError

    @staticmethod
    def append_outputs(network: Any, constants: Sequence[float]) -> None:
        """Give a network of C channels out as many more for each of the `constants`, which it gives there at first.

        The last projection becomes float32 and trainable, whose new weights are zeros.
        """
        raise NotImplementedError

    @staticmethod
    def random_inputs(network: Any, batch: int) -> tuple[Tensor, Prompt]:
        """A latent [B, kC, h, w] and a prompt of a network's own sizes, on its device; always the same ones."""
        raise NotImplementedError

    @property
    def unet(self) -> UNet2DConditionModel:
        """The UNet, for what works on no other network: control of attention, its maps, features of its blocks.

        Raises:
            ValueError: the family has none.
        """
        raise ValueError(
            f"a {type(self).__name__} has a {self.NETWORK.__name__} and no UNet: attention maps, frozen attention and "
            "what else reads a UNet's layers work on Stable Diffusion and SDXL alone; leave out that option"
        )

    @property
    def readers(self) -> tuple[Reader, ...]:
        """The tokenizers whose encoders have to read all of a text, with their limits."""
        return self.readers_of(loaded(self.text, "text").tokenizers)

    def modules(self) -> list[nn.Module]:
        """The frozen networks that are loaded."""
        encoders = list(self.text.encoders) if self.text else []
        return [m for m in (self.vae, self.network, *encoders) if m is not None]

    def assert_frozen(self) -> None:
        """Raises AssertionError if a loaded part is not frozen."""
        for module in self.modules():
            assert_frozen(module)

    @property
    def image_size(self) -> int:
        """Side in pixels of the images for which the network was made."""
        raise NotImplementedError

    @property
    def latent_channels(self) -> int:
        """C, the channels of a latent."""
        return loaded(self.network, "network").config.in_channels

    @property
    def takes_sizes(self) -> bool:
        """Whether the network is told of pictures' sizes (SDXL)."""
        return False

    @property
    def prompt_fields(self) -> tuple[str, ...]:
        """What is stored of a prompt: fields of samples, "prompt" for its embeds and "pooled"."""
        return ("prompt",)

    @property
    def vae_factor(self) -> int:
        """Pixels beside each other for one place of a latent."""
        return 2 ** (len(loaded(self.vae, "vae").config.block_out_channels) - 1)

    @property
    def vae_width(self) -> int:
        """Channels of the VAE's first level, which works at the pictures' own size."""
        width: int = loaded(self.vae, "vae").config.block_out_channels[0]
        return width

    @property
    def network_factor(self) -> int:
        """What divides the sides of latents, so that no level is odd, or no patch is cut."""
        return 2

    def pixels(self, latent: tuple[int, int]) -> tuple[int, int]:
        """Height and width in pixels of the pictures whose latents have a height and a width of `latent`."""
        return latent[0] * self.vae_factor, latent[1] * self.vae_factor

    @property
    def multiple(self) -> int:
        """What divides the sides of pictures in pixels: that of data's buckets (`side_multiple`).

        It is the VAE's factor times the network's where that is larger.
        """
        return max(self.vae_factor * self.network_factor, side_multiple(self.image_size))

    @property
    def own_size(self) -> SizeConditioning:
        """Size of the square, uncropped pictures for which the network was made."""
        return SizeConditioning.uncropped(self.image_size, self.image_size)

    def size_of(self, latent: Tensor) -> SizeConditioning:
        """Size of uncropped pictures whose latents are [..., h, w]."""
        height, width = latent.shape[-2:]
        return SizeConditioning.uncropped(*self.pixels((height, width)))

    def map_size(self, side: int, latent: Tensor) -> tuple[int, int]:
        """Height and width of the attention maps of latents [..., h, w] at one of the UNet's resolutions.

        Args:
            side: side of the maps at that resolution for latents of the UNet's own size, which are squares.
        """
        own = loaded(self.unet, "network").config.sample_size
        height, width = (-(-length * side // own) for length in latent.shape[-2:])  # a UNet halves and rounds up
        return height, width

    @torch.no_grad()
    def encode_text(
        self, texts: Sequence[str], size: Sizes | None = None, device: torch.device | None = None
    ) -> Prompt:
        """Prompt embeddings of `texts` [B].

        Args:
            size: sizes of the picture(s) for SDXL's micro-conditioning, one for all or one for each text; by default
                the backbone's own square, uncropped.
            device: where the text encoders run, if hooks move their weights there for the call alone.
        """
        text = loaded(self.text, "text")
        with without_autocast(device or text.encoders[0].device):
            return text(texts, size or self.own_size, device)

    @torch.no_grad()
    def encode_image(self, image: Tensor) -> Tensor:
        """Scaled posterior mean [B, C, h, w] in float32 of `image` [B, 3, H, W] in [-1, 1]."""
        vae = loaded(self.vae, "vae")
        latent = in_own_dtype(lambda x, _: vae.encode(x).latent_dist.mode(), vae.dtype, image)
        return (latent - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor

    def decode(self, latent: Tensor) -> Tensor:
        """Image [B, 3, H, W] in about [-1, 1], float32, of a scaled `latent` [B, C, h, w]; differentiable."""
        vae = loaded(self.vae, "vae")
        return in_own_dtype(lambda x, _: vae.decode(x).sample, vae.dtype, self.unscale(latent))

    def unscale(self, latent: Tensor) -> Tensor:
        """The latent [B, C, h, w] as the VAE itself gives and takes it, of a scaled one."""
        vae = loaded(self.vae, "vae")
        return latent / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)

    def predict(self, x_t: Tensor, prompt: Prompt, t: Tensor, scale: GradientScale | None = None) -> Tensor:
        """The network's raw output [B, C, h, w] in float32 at `x_t` [B, C, h, w], t [B]; differentiable.

        Args:
            scale: scale of the gradients where more enters or leaves a float16 network than x_t, prompt and output; the
                caller lets the output leave.
        """
        network = loaded(self.network, "network")

        def evaluate(x_t: Tensor, prompt: Any) -> Tensor:
            return self.evaluate(network, x_t, prompt, t)

        return in_own_dtype(evaluate, self.network_dtype, x_t, prompt, scale)

    def seen(self, x_t: Tensor) -> Tensor:
        """The latent [B, C, h, w] as the network sees it: rounded to its dtype, in float32.

        Its output is about that one, so x0 and noise follow from that one: eq. 3 divides by 0.07 at t = 999.
        """
        return x_t.to(self.network_dtype).float()

    @property
    def network_dtype(self) -> torch.dtype:
        """The dtype in which the network computes."""
        return self.compute_dtype(loaded(self.network, "network"))


def loaded(part: Any, name: str) -> Any:
    """`part`, or ValueError if it was left out of `Backbone.load`."""
    if part is None:
        raise ValueError(f"this needs the backbone's {name}, which was not loaded; add {name!r} to the parts")
    return part
