"""Fingerprints: how a network is known again, whatever wrote its file, whichever library loads it.

The fingerprint of a network is a text of four parts, `kind:structure:weights:values`. `structure` stands for the names
and shapes of the tensors and for the fields of the configuration that decide numbers, `weights` for the weights as
bfloat16, and `values` holds 512 of them as they are. Several networks are several such texts, a blank between them.

The same weights are stored in several types: bfloat16 of float32 is not bfloat16 of float16. So fingerprints are not
compared as texts but by `same_weights`.
"""

import base64
import hashlib
import inspect
import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from .backbone import Backbone

if TYPE_CHECKING:
    from .clip import ClipEmbeddings, ImageTokens

NUM_VALUES = 512
"""Weights that a fingerprint holds."""

_CLIP_LAYERS = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_attention_heads": None}
_CLIP_TEXT = _CLIP_LAYERS | {"eos_token_id": 49407}
_CLIP_VISION = _CLIP_LAYERS | {"image_size": 224, "patch_size": 32}

DECISIVE: Mapping[str, Mapping[str, Any]] = {
    "AutoencoderKL": {
        "act_fn": "silu",
        "norm_num_groups": 32,
        "down_block_types": None,
        "up_block_types": None,
        "mid_block_add_attention": True,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "scaling_factor": 0.18215,
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
    },
    "UNet2DConditionModel": {
        "act_fn": "silu",
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "down_block_types": None,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": None,
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
        "attention_head_dim": 8,
        "num_attention_heads": None,
        "attention_type": "default",
        "only_cross_attention": False,
        "mid_block_only_cross_attention": None,
        "dual_cross_attention": False,
        "cross_attention_norm": None,
        "use_linear_projection": False,
        "center_input_sample": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "time_embedding_type": "positional",
        "time_embedding_act_fn": None,
        "timestep_post_act": None,
        "class_embed_type": None,
        "class_embeddings_concat": False,
        "encoder_hid_dim_type": None,
        "addition_embed_type": None,
        "addition_time_embed_dim": None,
        "addition_embed_type_num_heads": 64,
        "resnet_time_scale_shift": "default",
        "resnet_skip_time_act": False,
        "resnet_out_scale_factor": 1.0,
    },
    "t5": {
        "num_heads": 8,
        "feed_forward_proj": "relu",
        "layer_norm_epsilon": 1e-6,
        "relative_attention_max_distance": 128,
    },
    "qwen3": {
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_parameters": None,
        "use_sliding_window": False,
    },
    "gemma2": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "rope_parameters": None,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
    },
    "vit": {
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "num_attention_heads": 12,
        "qkv_bias": True,
    },
    "clip_text_model": _CLIP_TEXT,
    "clip_vision_model": _CLIP_VISION,
    "clip": {f"text_config.{name}": value for name, value in _CLIP_TEXT.items()}
    | {f"vision_config.{name}": value for name, value in _CLIP_VISION.items()},
}
"""Fields of each kind's configuration that decide numbers and are not seen by names and shapes, each with the value
that it has where a file says nothing. What has that value is not hashed, so that a field can be added here. Of
diffusers' networks that are not listed they are all fields, with the defaults of the class."""

_SMALLEST = 2.0**-14
"""Below it float16 has steps of 2^-24, so that a file in bfloat16 loses digits on the way to float16 there alone."""

_FORM = re.compile(r"\w+:[0-9a-f]{16}:[0-9a-f]{16}:[A-Za-z0-9+/=]*")
_FORMER = re.compile(r"[0-9a-f]{16}")


def fingerprint(network: nn.Module, **beside: Any) -> str:
    """The fingerprint of a network, see above.

    The weights are read once, a tensor at a time, on the device and in the dtype that they have; some gigabytes take
    some seconds.

    Args:
        network: a network of diffusers, or a CLIP (alone or its text or vision part), ViT, T5, Qwen3 or Gemma-2 of
            transformers.
        beside: what else decides its numbers (the normalisation of its pictures), as JSON.
    """
    config = getattr(network, "config")  # noqa: B009  every network of diffusers and transformers has one
    kind = getattr(config, "model_type", type(network).__name__)
    tensors = _tensors(network)
    shapes = [[name, list(tensor.shape)] for name, tensor in tensors.items()]
    known = json.dumps([kind, _settings(config, _decisive(kind, network)), beside, shapes], sort_keys=True)
    structure = hashlib.sha256(known.encode()).hexdigest()[:16]
    values = base64.b64encode(_some_values(tensors).astype("<f4").tobytes()).decode()
    return f"{kind}:{structure}:{weights_digest(network, _SMALLEST)}:{values}"


def _decisive(kind: str, network: nn.Module) -> Mapping[str, Any]:
    """The fields of a kind's configuration that decide numbers, with their usual values."""
    if kind in DECISIVE:
        return DECISIVE[kind]
    assert isinstance(network, ModelMixin), f"fields of {kind} are to be listed in DECISIVE"
    options = list(inspect.signature(type(network).__init__).parameters.values())[1:]
    return {option.name: option.default for option in options if option.name != "sample_size"}


def vae_fingerprint(backbone: Backbone) -> str:
    """The fingerprint of the VAE that makes latents."""
    return fingerprint(backbone.vae)


def unet_fingerprint(backbone: Backbone) -> str:
    """The fingerprint of the UNet that makes pivots, or of the network that another family has in its place."""
    return fingerprint(backbone.network)


def text_fingerprint(backbone: Backbone) -> str:
    """The fingerprints of the text encoders that make prompts."""
    assert backbone.text is not None, "the backbone was loaded without its text encoders"
    return " ".join(fingerprint(encoder) for encoder in backbone.text.encoders)


def read_text_fingerprint(path: str, variant: str | None = None) -> str:
    """`text_fingerprint` of a folder or hub id; the encoders are read on the CPU as bfloat16 and let go again."""
    return text_fingerprint(Backbone.load(path, dtype=torch.bfloat16, parts=("text",), variant=variant))


def clip_fingerprint(clip: "ImageTokens | ClipEmbeddings") -> str:
    """The fingerprint of a CLIP with the normalisation of its pictures."""
    return fingerprint(clip.model, mean=clip.pixels.mean, std=clip.pixels.std)


def weights_digest(network: nn.Module, smallest: float = 0.0) -> str:
    """Sixteen hexadecimal digits of a network's weights, the same in every dtype that holds them as bfloat16.

    Any change of a weight that bfloat16 shows changes them; so does the way from float32 over float16 to bfloat16.

    Args:
        network: any network.
        smallest: weights below it count as zero.
    """
    digest = hashlib.sha256(b"{}")
    for name, weight in _tensors(network).items():
        coarse = weight.detach().to(torch.bfloat16)
        if smallest:
            coarse = coarse.where(coarse.abs() >= smallest, 0.0)
        digest.update(name.encode())
        digest.update(coarse.contiguous().cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def same_weights(first: str | None, second: str | None) -> bool:
    """Whether two fingerprints are of the same networks, of whose weights each may be stored in another type.

    Kind and structure have to be equal. Weights are the same if their digests are; or if they were rounded in different
    ways, which their values show: each stands for the numbers that are rounded to it, and those of both have to overlap
    everywhere. If no value differs at all, nothing was rounded, and the digests decide.
    """
    if not (first and second and is_fingerprint(first) and is_fingerprint(second)):
        return False
    pairs = list(zip(first.split(), second.split(), strict=False))
    return len(first.split()) == len(second.split()) and all(_same(*pair) for pair in pairs)


def named(fingerprints: str | None) -> str:
    """Fingerprints without their values: the names of the networks, for people and for comparing to the letter."""
    return " ".join(text.rpartition(":")[0] or text for text in (fingerprints or "none").split())


def is_fingerprint(text: str) -> bool:
    """Whether a text is a fingerprint of one or several networks."""
    return bool(text) and all(_FORM.fullmatch(part) for part in text.split())


def is_former_fingerprint(text: str | None) -> bool:
    """Whether a text is of the form before this one, which versions of libraries had a part in."""
    return bool(text) and all(_FORMER.fullmatch(part) for part in str(text).split())


def _same(first: str, second: str) -> bool:
    """`same_weights` of one network."""
    (*structure, digest, values), (*other_structure, other_digest, other_values) = first.split(":"), second.split(":")
    if structure != other_structure:
        return False
    if digest == other_digest:
        return True
    a, b = (np.frombuffer(base64.b64decode(text), "<f4") for text in (values, other_values))
    distance = np.abs(a.astype(np.float64) - b)
    return a.shape == b.shape and bool((a != b).any()) and bool((distance <= _rounding(a) + _rounding(b)).all())


def _rounding(values: np.ndarray) -> np.ndarray:
    """The largest distance of a number to each value that it was rounded to, float64 [n].

    A value that bfloat16 or float16 holds was rounded to it, the former perhaps over float16 (a coincidence in one of
    thousands that were not, which does no harm). A half of a unit in the last of 8, 11 and 24 digits; below 2^-14
    float16 has steps of 2^-24.
    """
    with np.errstate(over="ignore"):
        in_half = values == values.astype(np.float16)
    in_bfloat16 = (np.ascontiguousarray(values).view(np.uint32) & 0xFFFF) == 0
    share = np.where(in_bfloat16, 2.0**-8 + 2.0**-11, np.where(in_half, 2.0**-11, 2.0**-24))
    power = np.ldexp(1.0, np.frexp(values.astype(np.float64))[1] - 1)
    return share * power + np.where(in_bfloat16 | in_half, 2.0**-25, 0.0)


def _settings(config: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration whose values are not those of a file that says nothing."""
    found = {}
    for name, usual in fields.items():
        part, _, field = name.rpartition(".")
        value = getattr(getattr(config, part) if part else config, field, usual)
        if value != usual and (name, value) != ("shift_factor", 0.0):  # latents shifted by nothing
            found[name] = value
    return found


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Tensors by name, sorted. CLIP's text and vision models had all their layers one module deeper at first."""
    state = dict(network.state_dict())
    for wrapper in ("text_model.", "vision_model."):
        if all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
    return dict(sorted(state.items()))


def _some_values(tensors: Mapping[str, Tensor]) -> np.ndarray:
    """NUM_VALUES weights in float32 at places that names and sizes decide; fewer tensors give several each."""
    numbers = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    rounds = math.ceil(NUM_VALUES / len(numbers))
    drawn = sorted((_draw(f"{name} {turn}"), name) for name in numbers for turn in range(rounds))[:NUM_VALUES]
    places = [(numbers[name], draw % numbers[name].numel()) for draw, name in drawn]
    # One by one: a flat view of a tensor in channels_last would be a copy.
    found = [tensor[tuple(map(int, np.unravel_index(place, tensor.shape)))] for tensor, place in places]
    return torch.stack([value.detach().float() for value in found]).cpu().numpy()


def _draw(word: str) -> int:
    """A number below 2^64 that a word decides."""
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
