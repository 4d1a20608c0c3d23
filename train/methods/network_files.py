"""Few-step models that are published as weights over a base pipeline: a UNet's, or a LoRA.

SDXL-Lightning, Hyper-SD, DMD2, LCM and LCM-LoRA are such.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from models.fingerprints import DECISIVE
from models.weight_files import files_by_variant, only_variant

_ENDING = ".safetensors"
_UNET_CONFIG, _PEFT_CONFIG = "config.json", "adapter_config.json"
_LORA_FILES = {_PEFT_CONFIG: "adapter_model.safetensors", "": "pytorch_lora_weights.safetensors"}
_GUIDANCE = "time_embedding.cond_proj.weight"
"""Weights [D, guidance embedding's width] that latent consistency models have beside their base's."""
_CHUNK = 2**24


def apply_files(network: Any, unet: str | None, lora: str | None) -> Any:
    """A pipeline's UNet with other weights, or with a LoRA fused into them.

    Each is a safetensors file, a folder as diffusers or peft saves it, or OWNER/NAME/FILE.safetensors on the hub.

    Args:
        network: the base pipeline's UNet, whose weights are changed in place.
        unet: a UNet's weights for it. None leaves its own.
        lora: a LoRA on it, in diffusers', kohya's or peft's names; it is fused with scale 1, in float32.

    Returns:
        `network` itself; or one like it that embeds a guidance, where the weights of a UNet do.

    Raises:
        ValueError: the network is no UNet, weights are not there, they are another network's, or the LoRA changes text
            encoders too.
    """
    if unet is None and lora is None:
        return network
    if not isinstance(network, UNet2DConditionModel):
        raise ValueError(
            f"generator.unet and generator.lora work on UNets (Stable Diffusion, SDXL), and the network is a "
            f"{type(network).__name__}: leave them out"
        )
    if unet is not None:
        network = _replaced(network, unet)
    if lora is not None:
        _fuse(network, lora)
    return network


def shaped(network: Any, unet: str | None) -> Any:
    """The UNet that `apply_files` fills: `network` itself, or one without data that embeds a guidance as `unet` does.

    Raises:
        ValueError: the weights are not there.
    """
    for path in [] if unet is None else _files(unet, "generator.unet"):
        if path.suffix == _ENDING:
            with safe_open(path, "pt") as file:
                names = file.keys()
                if _GUIDANCE in names and network.config.time_cond_proj_dim is None:
                    return _with_guidance(network, file.get_slice(_GUIDANCE).get_shape()[1])
    return network


def digests(places: Mapping[str, str | None]) -> dict[str, str]:
    """sha256, hexadecimal, of what lies at the place that each option names; options without one are left out.

    Raises:
        ValueError: it is not there.
    """
    found = {}
    for option, place in places.items():
        if place is not None:
            digest = hashlib.sha256()
            for path in _files(place, option):
                with path.open("rb") as file:
                    while part := file.read(_CHUNK):
                        digest.update(part)
            found[option] = digest.hexdigest()
    return found


def _replaced(network: UNet2DConditionModel, place: str) -> UNet2DConditionModel:
    weights: dict[str, Tensor] = {}
    for path in _files(place, "generator.unet"):
        if path.name == _UNET_CONFIG:
            _check_config(network, UNet2DConditionModel.load_config(path.parent), place)
        else:
            weights |= load_file(path)
    network = shaped(network, place)
    own = network.state_dict()
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
    return network


def _check_config(network: UNet2DConditionModel, config: Mapping[str, Any], place: str) -> None:
    """Refuse a UNet whose weights fit and which computes with them in another way."""
    for name, usual in DECISIVE["UNet2DConditionModel"].items():
        found, wanted = (source.get(name, usual) for source in (config, network.config))
        if _plain(found) != _plain(wanted):
            raise ValueError(
                f"generator.unet {place} is another network than generator.path's: its {name} is {found}, expected "
                f"{wanted}"
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _with_guidance(network: UNet2DConditionModel, width: int) -> UNet2DConditionModel:
    """A UNet like `network` whose time embedding takes one of a guidance too; its weights are to be loaded."""
    with torch.device("meta"):
        made = UNet2DConditionModel.from_config({**network.config, "time_cond_proj_dim": width})
    made = made.to_empty(device=network.device).to(network.dtype)
    return made.requires_grad_(False).eval()


@torch.no_grad()
def _fuse(network: UNet2DConditionModel, place: str) -> None:
    weights, alphas, metadata = _lora_weights(network, place)
    of_text = sorted(name for name in weights if name.startswith("text_encoder"))
    if of_text:
        raise ValueError(f"generator.lora {place} changes text encoders ({of_text[0]}), which is not served")
    try:
        StableDiffusionXLLoraLoaderMixin.load_lora_into_unet(
            weights, alphas, unet=network, adapter_name="fused", metadata=metadata
        )
        _merge(network)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"generator.lora {place} does not fit the UNet of generator.path: {error}") from error
    if not getattr(network, "peft_config", None):
        raise ValueError(f"generator.lora {place} names no layer of the UNet of generator.path")
    network.unload_lora()
    network.requires_grad_(False)


def _merge(network: UNet2DConditionModel) -> None:
    """Add the adapters to the weights under them, in float32; each is rounded to its own dtype once."""
    for layer in [module for module in network.modules() if isinstance(module, BaseTunerLayer)]:
        dtype = layer.get_base_layer().weight.dtype
        layer.float()
        layer.merge(safe_merge=True)
        layer.to(dtype)


def _lora_weights(
    network: UNet2DConditionModel, place: str
) -> tuple[dict[str, Tensor], dict[str, Any] | None, dict[str, Any] | None]:
    """Weights in diffusers' names after "unet.", and what tells diffusers' loader of their scale."""
    *config, file = _files(place, "generator.lora")
    if not config:
        return StableDiffusionXLLoraLoaderMixin.lora_state_dict(
            str(file.parent),
            weight_name=file.name,
            unet_config=network.config,
            local_files_only=True,
            return_lora_metadata=True,
        )
    about = peft.LoraConfig.from_pretrained(str(file.parent)).to_dict()
    weights = {f"unet.{name.removeprefix('base_model.model.')}": weight for name, weight in load_file(file).items()}
    return weights, None, {f"unet.{name}": value for name, value in about.items()}


def _files(place: str, option: str) -> list[Path]:
    """Local files, a folder's config before its weights; or one of the hub by OWNER/NAME/FILE.

    Raises:
        ValueError: they are not there, or no safetensors files.
    """
    path = Path(place)
    if path.is_dir():
        return _unet_folder(path, option) if option == "generator.unet" else _lora_folder(path, option)
    if not place.endswith(_ENDING):
        raise ValueError(
            f"{option} is {place}; expected a {_ENDING} file, a folder of one, or OWNER/NAME/FILE{_ENDING} on the hub"
        )
    if path.is_file():
        return [path]
    owner, _, rest = place.partition("/")
    name, _, file = rest.partition("/")
    if path.is_absolute() or not file:
        raise ValueError(f"{option} {place} is not there; give a {_ENDING} file, or OWNER/NAME/FILE{_ENDING}")
    try:
        return [Path(hf_hub_download(f"{owner}/{name}", file))]
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise ValueError(
            f"{option} {place} is no local file, and the hub does not give it: {str(error).splitlines()[0]}"
        ) from error


def _unet_folder(folder: Path, option: str) -> list[Path]:
    """Config and weights of a UNet's own folder, as diffusers saves it."""
    config, weights = folder / _UNET_CONFIG, files_by_variant(folder)
    found = [path for path in weights.get(only_variant(folder), []) if path.suffix == _ENDING and path.parent == folder]
    if not config.is_file() or not found:
        raise ValueError(
            f"{option} {folder} is a folder without {_UNET_CONFIG} and diffusion_pytorch_model{_ENDING}; expected that "
            "of a UNet, not of a pipeline"
        )
    return [config, *found]


def _lora_folder(folder: Path, option: str) -> list[Path]:
    """A LoRA as peft saves it, with its config, or as diffusers does."""
    for config, weights in _LORA_FILES.items():
        if (folder / config).exists() and (folder / weights).is_file():
            return [folder / name for name in (config, weights) if name]
    raise ValueError(f"{option} {folder} is a folder without {' or '.join(_LORA_FILES.values())}; name the file itself")
