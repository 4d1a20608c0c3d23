"""Few-step models that are published as a file over a base pipeline: a UNet's weights, or a LoRA.

SDXL-Lightning, Hyper-SD, DMD2 and LCM-LoRA are such.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors.torch import load_file

_ENDING = ".safetensors"


def apply_files(network: Any, unet: str | None, lora: str | None) -> None:
    """Give a pipeline's UNet other weights, and fuse a LoRA into them, in place.

    Args:
        network: the base pipeline's UNet.
        unet: a UNet's weights for it: a safetensors file, or OWNER/NAME/FILE.safetensors on the hub. None leaves its
            own.
        lora: a LoRA on it, likewise, in diffusers', kohya's or peft's names; it is fused with scale 1.

    Raises:
        ValueError: the network is no UNet, a file is not there, it is another network's, or the LoRA changes text
            encoders too.
    """
    if unet is None and lora is None:
        return
    if not isinstance(network, UNet2DConditionModel):
        raise ValueError(
            f"generator.unet and generator.lora work on UNets (Stable Diffusion, SDXL), and the network is a "
            f"{type(network).__name__}: leave them out"
        )
    if unet is not None:
        _replace(network, unet)
    if lora is not None:
        _fuse(network, lora)


def _replace(network: UNet2DConditionModel, place: str) -> None:
    weights, own = load_file(_file(place, "generator.unet")), network.state_dict()
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or unknown:
        named = [f"it lacks {missing[0]}"] if missing else []
        named += [f"it has {unknown[0]}"] if unknown else []
        raise ValueError(f"generator.unet {place} holds another network's weights than generator.path: {named[0]}")
    other = [name for name, weight in weights.items() if weight.shape != own[name].shape]
    if other:
        found, wanted = list(weights[other[0]].shape), list(own[other[0]].shape)
        raise ValueError(
            f"generator.unet {place}: {other[0]} is {found}, expected {wanted} as in the base of generator.path"
        )
    network.load_state_dict(weights)


@torch.no_grad()
def _fuse(network: UNet2DConditionModel, place: str) -> None:
    file = _file(place, "generator.lora")
    loader = StableDiffusionXLLoraLoaderMixin
    weights, alphas = loader.lora_state_dict(
        str(file.parent), weight_name=file.name, unet_config=network.config, local_files_only=True
    )[:2]
    of_text = sorted(name for name in weights if name.startswith("text_encoder"))
    if of_text:
        raise ValueError(f"generator.lora {place} changes text encoders ({of_text[0]}), which is not served")
    try:
        loader.load_lora_into_unet(weights, alphas, unet=network, adapter_name="fused")
    except (ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"generator.lora {place} does not fit the UNet of generator.path: {error}") from error
    if not getattr(network, "peft_config", None):
        raise ValueError(f"generator.lora {place} names no layer of the UNet of generator.path")
    network.fuse_lora(safe_fusing=True)
    network.unload_lora()
    network.requires_grad_(False)


def _file(place: str, option: str) -> Path:
    """A local file, or one of the hub by OWNER/NAME/FILE.

    Raises:
        ValueError: it is not there, or no safetensors file.
    """
    if not place.endswith(_ENDING):
        raise ValueError(f"{option} is {place}; expected a {_ENDING} file, or OWNER/NAME/FILE{_ENDING} on the hub")
    if Path(place).is_file():
        return Path(place)
    owner, _, rest = place.partition("/")
    name, _, file = rest.partition("/")
    if Path(place).is_absolute() or not file:
        raise ValueError(f"{option} {place} is not there; give a {_ENDING} file, or OWNER/NAME/FILE{_ENDING}")
    try:
        return Path(hf_hub_download(f"{owner}/{name}", file))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise ValueError(
            f"{option} {place} is no local file, and the hub does not give it: {str(error).splitlines()[0]}"
        ) from error
