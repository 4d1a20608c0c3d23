"""Models without data: a backbone from its config files alone, of any size, in the memory of a few objects.

torch's FakeTensors know shape, dtype, device and storage, and every operation on them gives further ones. Unlike
tensors on the meta device they take the kernels of their device: attention stays fused, autocast casts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from models.backbone import Backbone, recast
from models.schedule import NoiseSchedule
from models.text import ClipText, DualClipText


class MetaModels:
    """Makes models and tensors without data that belong together. Everything is on the CPU."""

    def __init__(self) -> None:
        # Small real tensors, such as drawn timesteps, may meet those without data.
        self.mode = _Fakes(allow_non_fake_inputs=True)
        self._found: dict[Tensor, Tensor] = {}

    def tensor(self, *shape: int) -> Tensor:
        """A float32 tensor."""
        with self.mode:
            return torch.empty(shape)

    def fill(self, *modules: nn.Module) -> None:
        """Give modules of the meta device FakeTensors for weights; those that share one go on to share it."""
        for part in (part for module in modules for part in module.modules()):
            owners: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
            for owner in owners:
                for name, tensor in owner.items():
                    if tensor is not None and tensor.is_meta and not isinstance(tensor, FakeTensor):
                        owner[name] = self._filled(tensor)

    def _filled(self, tensor: Tensor) -> Tensor:
        if tensor not in self._found:
            with self.mode:
                empty = torch.empty_like(tensor, device="cpu")
            is_weight = isinstance(tensor, nn.Parameter)
            self._found[tensor] = nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
        return self._found[tensor]

    def backbone(self, path: str, dtype: torch.dtype, vae_dtype: torch.dtype = torch.float32) -> Backbone:
        """`Backbone.load` with these dtypes on the meta device, to be filled; every caption is an empty one.

        Raises:
            ValueError: a config file is missing, or this is no Stable Diffusion pipeline.
        """
        try:
            return self._backbone(path, dtype, vae_dtype)
        except (OSError, KeyError) as error:
            raise ValueError(
                f"cannot read the config files of {path}: {error}; give a diffusers folder, or a hub id that can be "
                "reached or is cached (generator.path, backbone.path)"
            ) from error

    def _backbone(self, path: str, dtype: torch.dtype, vae_dtype: torch.dtype) -> Backbone:
        index = DiffusionPipeline.load_config(path)
        kinds: dict[str, Any] = {"text_encoder": CLIPTextModel}
        if index.get("text_encoder_2", (None, None))[0] is not None:
            kinds["text_encoder_2"] = CLIPTextModelWithProjection
        configs = [CLIPTextConfig.from_pretrained(path, subfolder=name) for name in kinds]
        tokenizers = [EmptyCaptions(config.max_position_embeddings) for config in configs]
        unet, vae = (kind.load_config(path, subfolder=name) for kind, name in _NETWORKS)
        schedule = NoiseSchedule.from_scheduler(DDPMScheduler.from_pretrained(path, subfolder="scheduler"))
        with torch.device("meta"):
            encoders = [kind(config) for kind, config in zip(kinds.values(), configs, strict=True)]
            networks = UNet2DConditionModel.from_config(unet), AutoencoderKL.from_config(vae)
        for module in (*encoders, networks[0]):
            recast(module, dtype)
        recast(networks[1], vae_dtype)
        text = DualClipText(tokenizers, encoders) if len(encoders) > 1 else ClipText(tokenizers[0], encoders[0])
        return Backbone(schedule=schedule, unet=networks[0], vae=networks[1], text=text)


class _Fakes(FakeTensorMode):
    """torch's own, where the statistics of norms have the dtype of their weights, as those of real tensors have."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result: Any = super().__torch_dispatch__(func, types, args, kwargs)
        if func in _NORM_WEIGHT and (weight := args[_NORM_WEIGHT[func]]) is not None:
            output, *statistics = result
            return output, *(x.to(weight.dtype) for x in statistics)
        return result


_NORM_WEIGHT = {torch.ops.aten.native_group_norm.default: 1, torch.ops.aten.native_layer_norm.default: 2}
_NETWORKS = ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))


@dataclass(frozen=True)
class EmptyCaptions:
    """Stand-in for a tokenizer, whose vocabulary is no config file: all texts become one of zeros."""

    model_max_length: int

    def __call__(self, texts: Sequence[str], **options: Any) -> "TokenIds":
        """Tokenize as transformers does with padding to the maximum length."""
        return TokenIds(torch.zeros(len(texts), self.model_max_length, dtype=torch.long))


@dataclass(frozen=True)
class TokenIds:
    """input_ids: int64 [B, L]."""

    input_ids: Tensor


def frozen_parts(backbone: Backbone, unet: str) -> dict[str, int]:
    """Bytes of a backbone's parts; its UNet is called `unet`."""
    return {
        unet: bytes_of(backbone.unet),
        "text": bytes_of(*backbone.modules()[2:]),
        "VAE": bytes_of(backbone.vae),
    }


def bytes_of(*modules: nn.Module) -> int:
    """Bytes of the modules' parameters and buffers."""
    return sum(x.nbytes for module in modules for x in (*module.parameters(), *module.buffers()))
