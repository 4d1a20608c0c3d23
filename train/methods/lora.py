"""LoRA of a network of diffusers: adapters laid over frozen layers, merged into them, or stored alone."""

from dataclasses import replace
from pathlib import Path

import peft
import torch
from diffusers.models.modeling_utils import ModelMixin
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import nn

from models.families import family_of, family_of_index
from models.pipeline_files import index_of
from train.exports.memory import give_back
from train.method import Storage
from train.methods.config import LoraConfig

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
FULL_FILE = "trained_in_full.safetensors"


def with_targets(config: LoraConfig, base: str) -> LoraConfig:
    """The config with the layers named that get adapters, as a run records them.

    Args:
        base: Folder or hub id of the model under the adapters.

    Raises:
        ValueError: It is no pipeline of a known family.
    """
    if config.targets is not None:
        return config
    return replace(config, targets=family_of_index(base, index_of(base)).LORA_TARGETS)


def add_lora(network: ModelMixin, config: LoraConfig, seed: int) -> None:
    """Lay float32 adapters over frozen layers of `network`; what it computes stays the same until they are trained.

    What is trainable already stays so. Without targets in the config they are those of the network's family.

    Raises:
        ValueError: a target names no frozen layer.
    """
    layers = {name: m for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    frozen = [f".{name}" for name, layer in layers.items() if not layer.weight.requires_grad]
    targets = family_of(network).LORA_TARGETS if config.targets is None else config.targets
    for target in targets:
        if not any(name.endswith(f".{target}") for name in frozen):
            raise ValueError(
                f"lora.targets: no frozen layer's name ends in {target!r}; to_q, ff.net.2 or conv1 would do"
            )
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    adapters = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha or config.rank, target_modules=list(targets))
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # every rank and every start of the run begins with the same weights
        network.add_adapter(adapters)
    for parameter in trained:  # peft freezes all but its own
        parameter.requires_grad_(True)
    for parameter in network.parameters():  # peft gives them the dtype of the layer below
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


_NOT_ON_A_CPU = {("float16", "bf16"), ("bfloat16", "fp16")}


def check_shared_dtype(dtype: str, precision: str, device: torch.device, option: str) -> None:
    """Refuse weights under adapters that a CPU's autocast cannot take.

    Args:
        dtype: Dtype of the frozen weights that the trained network shares.
        precision: The run's mixed precision.
        device: Where it trains.
        option: Option that gives the dtype, such as generator.dtype.

    Raises:
        ValueError: It is a CPU, and both are of 16 bits but not the same.
    """
    if device.type == "cpu" and (dtype, precision) in _NOT_ON_A_CPU:
        raise ValueError(
            f"run.mixed_precision is {precision} and the adapters lie over {dtype} weights; a CPU cannot mix them as a "
            f"GPU does: set {option} float32, or the dtype of that precision"
        )


@torch.no_grad()
def merge(network: ModelMixin, storage: Storage) -> None:
    """Add the adapters to the weights under them: `network` becomes a stock one with stock names.

    The sums are made in float32, a layer at a time, and all weights are cast to the dtype in which they are stored.
    """
    for layer in network.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.get_base_layer().float()
            layer.merge()
            _cast(layer.get_base_layer(), storage)
    network.unload_lora()
    _cast(network, storage)
    give_back()


def _cast(module: nn.Module, storage: Storage) -> None:
    for name, tensor in module.state_dict(keep_vars=True).items():  # buffers too, such as embedded positions
        if tensor.is_floating_point():
            tensor.data = storage.cast(name, tensor.data)


def save_adapter(network: ModelMixin, folder: Path) -> None:
    """Write the adapters as diffusers stores them, with their config, and beside them the layers trained in full."""
    network.save_lora_adapter(folder, weight_name=ADAPTER_FILE)
    save_file(_trained_in_full(network), folder / FULL_FILE)


def load_adapter(network: ModelMixin, folder: str | Path) -> None:
    """Lay what `save_adapter` wrote over a network as it was before `add_lora`; the adapters take its dtype."""
    trained = _trained_in_full(network)
    network.load_lora_adapter(folder, prefix=None, weight_name=ADAPTER_FILE, use_safetensors=True)
    for name, value in load_file(Path(folder) / FULL_FILE).items():
        trained[name].copy_(value)


def _trained_in_full(network: ModelMixin) -> dict[str, torch.Tensor]:
    """The trainable parameters that are no adapter's, by name."""
    named = network.named_parameters()
    return {name: p.detach() for name, p in named if p.requires_grad and ".lora_" not in name}
