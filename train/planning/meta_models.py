"""Models without data: a backbone from its config files alone, of any size, in the memory of a few objects.

torch's FakeTensors know shape, dtype, device and storage, and every operation on them gives further ones. Unlike
tensors on the meta device they take the kernels of their device: attention stays fused, autocast casts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from transformers import BatchEncoding, CLIPTextConfig, PretrainedConfig

from models.backbone import PARTS, Backbone
from models.families import family_of_index
from models.pipeline_files import ConfigFiles
from models.shapes import Sizes
from models.text import Prompt, Text


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
            ValueError: a config file is missing, or this is no pipeline of a known family.
        """
        try:
            return self._backbone(path, dtype, vae_dtype)
        except (OSError, KeyError) as error:
            raise ValueError(
                f"cannot read the config files of {path}: {error}; give a diffusers folder, or a hub id that can be "
                "reached or is cached (generator.path, backbone.path)"
            ) from error

    def _backbone(self, path: str, dtype: torch.dtype, vae_dtype: torch.dtype) -> Backbone:
        files = _MetaFiles(path, DiffusionPipeline.load_config(path))
        backbone = family_of_index(path, files.index).read(files, PARTS, dtype, vae_dtype, dtype)
        backbone.text = _WholeTexts(backbone.text)
        return backbone


class PaddedAlike(TorchFunctionMode):
    """Within it sequences without data are padded to one without data; torch alone makes a real one of them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._nn.pad_sequence and isinstance(args[0][0], FakeTensor):
            return _padded(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _padded(
    sequences: Sequence[Tensor], batch_first: bool = False, padding_value: float = 0.0, side: str = "right"
) -> Tensor:
    assert side == "right"
    longest = max(map(len, sequences))
    rows = [F.pad(row, (0, 0) * (row.ndim - 1) + (0, longest - len(row)), value=padding_value) for row in sequences]
    return torch.stack(rows, 0 if batch_first else 1)


class _MetaFiles(ConfigFiles):
    """The config files of a pipeline, of which a tokenizer's vocabulary is none."""

    def tokenizer(self, kind: Any, name: str) -> "EmptyCaptions":
        """A stand-in that gives as many tokens as the text encoder beside it reads."""
        encoder = name.replace("tokenizer", "text_encoder")
        config, _ = PretrainedConfig.get_config_dict(self.path, subfolder=encoder)
        return EmptyCaptions(config.get("max_position_embeddings", CLIPTextConfig().max_position_embeddings))


class _Fakes(FakeTensorMode):
    """torch's own, where the statistics of norms have the dtype of their weights, as those of real tensors have."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result: Any = super().__torch_dispatch__(func, types, args, kwargs)
        if func in _NORM_WEIGHT and (weight := args[_NORM_WEIGHT[func]]) is not None:
            output, *statistics = result
            return output, *(x.to(weight.dtype) for x in statistics)
        return result


_NORM_WEIGHT = {torch.ops.aten.native_group_norm.default: 1, torch.ops.aten.native_layer_norm.default: 2}


class _WholeTexts:
    """Text encoders of whose prompts all tokens are there: how many are, data alone would say."""

    def __init__(self, text: Text) -> None:
        self.tokenizers, self.encoders = text.tokenizers, text.encoders
        self._text = text

    def __call__(self, texts: Sequence[str], size: Sizes, device: torch.device | None = None) -> Prompt:
        """Encode `texts`."""
        return replace(self._text(texts, size, device), mask=None)


@dataclass
class EmptyCaptions:
    """Stand-in for a tokenizer, whose vocabulary is no config file: all texts become one of zeros."""

    model_max_length: int
    padding_side: str = "right"

    def __call__(self, texts: str | Sequence[str], max_length: int | None = None, **options: Any) -> BatchEncoding:
        """Tokenize as transformers does with padding to the maximum length: input_ids and attention_mask [B, L]."""
        count = 1 if isinstance(texts, str) else len(texts)
        ids = torch.zeros(count, max_length or self.model_max_length, dtype=torch.long)
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def encode(self, text: str) -> list[int]:
        """Tokenize without padding: a token a word, as no more is known."""
        return [0] * len(text.split())

    def tokenize(self, text: str) -> list[str]:
        """No tokens, none of which stands for a learned word."""
        return []

    def apply_chat_template(self, messages: Sequence[Any], **options: Any) -> str:
        """An empty text."""
        return ""


def frozen_parts(backbone: Backbone, network: str) -> dict[str, int]:
    """Bytes of a backbone's parts; its network is called `network`."""
    return {
        network: bytes_of(backbone.network),
        "text": bytes_of(*backbone.modules()[2:]),
        "VAE": bytes_of(backbone.vae),
    }


def bytes_of(*modules: nn.Module) -> int:
    """Bytes of the modules' parameters and buffers."""
    return sum(x.nbytes for module in modules for x in (*module.parameters(), *module.buffers()))
