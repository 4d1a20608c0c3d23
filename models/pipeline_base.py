"""What the pipelines on a frozen backbone share: its parts, both ends, threads, devices, and saving with the code."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .attention import exclusive
from .backbone import Backbone
from .carried_code import carry_code
from .families import family_of
from .pictures import Images, to_output, to_tensor
from .shapes import Cutout, WantedShape

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as _Base
else:  # where no class is named, diffusers takes a file's only pipeline, so what pipelines share is none itself
    _Base = object

NETWORKS = ("unet", "transformer")
"""Names of the generator's network among the components, of which a pipeline has one."""

_TEXT = tuple(f"{part}{number}" for number in ("", "_2", "_3") for part in ("tokenizer", "text_encoder"))
_PARTS = ("scheduler", "vae", *NETWORKS, *_TEXT)

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class PipelineBase(_Base):
    """What a DiffusionPipeline with the components of a backbone takes from here."""

    _built: tuple[tuple[Any, ...], Backbone] | None = None
    _depth = 0
    _found_device: torch.device | None = None

    @property
    def network(self) -> Any:
        """The generator's network, a UNet or a transformer."""
        return network_of(self)

    @property
    def backbone(self) -> Backbone:
        """The components in the project's words; a VAE that overflows in float16 is moved to float32.

        It is built, and its networks frozen, once for the components that the pipeline has.
        """
        parts = tuple(getattr(self, name, None) for name in _PARTS)
        if self._built is None or any(old is not new for old, new in zip(self._built[0], parts, strict=True)):
            self._built = parts, family_of(self.network).of_components(dict(zip(_PARTS, parts, strict=True)))
        self._upcast_vae()
        return self._built[1]

    def preprocess(self, image: Images, height: int | None = None, width: int | None = None) -> Tensor:
        """Turn `image` into [B, 3, H, W] in [-1, 1].

        Pictures are turned as their EXIF data says, laid on white where they are transparent, resized, and cropped at
        the centre to the nearest shape that the networks take; a tensor is taken as it is.

        Args:
            image: picture(s) of one shape.
            height, width: size in pixels. By default pictures keep their aspect, up to 4 to 1, at about the area for
                which the backbone was made; where one of both is given the other one follows.

        Raises:
            ValueError: it is nothing of what `Images` lists, a file that gives no picture, pictures of several shapes,
                or sides that the networks cannot have.
        """
        return self._read_pictures(image, height, width)[0]

    def _read_pictures(self, image: Images, height: int | None, width: int | None) -> tuple[Tensor, tuple[Cutout, ...]]:
        """What `preprocess` gives, and what it shows of each photograph."""
        shape = WantedShape(self.backbone.image_size, self.backbone.multiple, height, width)
        return to_tensor(image, shape, self._compute_device)

    @torch.no_grad()
    def decode(self, latent: Tensor, output_type: str = "pil") -> Any:
        """Pictures of scaled latents [B, 4, h, w].

        Args:
            output_type: one of diffusers': "pil" for a list of pictures, "np" for an array [B, H, W, 3] and "pt" for a
                tensor [B, 3, H, W], both in [0, 1], "latent" for the latents themselves.

        Raises:
            ValueError: another output_type.
        """
        check_output_type(output_type)
        if output_type == "latent":
            return latent
        with self._in_use():
            return to_output(self.backbone.decode(latent), output_type)

    def to_json_file(self, json_file_path: Any) -> None:
        """Write the index of the components, and the pipeline's code beside it, before a push uploads the folder."""
        super().to_json_file(json_file_path)
        if Path(json_file_path).name == self.config_name:
            carry_code(self, Path(json_file_path).parent)

    def enable_sequential_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """Bring weights to the device layer by layer; the VAE gets its dtype while they can still be reached."""
        self._upcast_vae()
        super().enable_sequential_cpu_offload(*args, **kwargs)

    @property
    def _compute_device(self) -> torch.device:
        """The device of inputs; diffusers walks through all networks' hooks to find it, so within a call once."""
        return self._execution_device if self._found_device is None else self._found_device

    def _upcast_vae(self) -> None:
        if next(self.vae.parameters()).dtype == torch.float16 and getattr(self.vae.config, "force_upcast", False):
            self.vae.to(torch.float32)

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keep other threads from the network; after the outermost block offloaded networks leave the device."""
        with exclusive(self.network):
            self._found_device = self._compute_device
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth:
                    self._found_device = None
                    self.maybe_free_model_hooks()


def network_of(pipeline: Any) -> Any:
    """The generator's network of any diffusers pipeline, a UNet or a transformer."""
    return next(part for name in NETWORKS if (part := getattr(pipeline, name, None)) is not None)


def one_at_a_time(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make a method of a PipelineBase wait until no other thread uses the pipeline's networks."""

    @wraps(method)
    def alone(self: PipelineBase, *args: Any, **kwargs: Any) -> Any:
        with self._in_use():
            return method(self, *args, **kwargs)

    return alone


def check_output_type(output_type: str) -> None:
    """Raises ValueError for an output_type that diffusers does not have."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type is {output_type!r}; expected one of {', '.join(OUTPUT_TYPES)}")
