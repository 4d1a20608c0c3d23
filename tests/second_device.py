"""A second device where there is but one: "meta" computes shapes alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn


@contextmanager
def offloaded(pipeline: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Offload to "meta"; gives the components as they come to the device ("+unet") and leave it ("-unet").

    Weights that leave it are found again where they came from. At the end none may be left there.
    """
    names = {part: name for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    homes: dict[nn.Module, dict[str, Tensor]] = {}
    moves: list[str] = []
    to = nn.Module.to

    def carry(module: nn.Module, *args: object, **kwargs: object) -> nn.Module:
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        here = next(module.parameters()).device.type
        if module not in names or device is None or device.type == here:
            return to(module, *args, **kwargs)
        if device.type == "meta":
            moves.append("+" + names[module])
            homes[module] = {name: value.detach() for name, value in module.state_dict().items()}
            homes[module] |= dict(module.named_buffers())
            return to(module, *args, **kwargs)
        moves.append("-" + names[module])
        for name, value in homes.pop(module).items():
            path, _, leaf = name.rpartition(".")
            part = module.get_submodule(path)
            if leaf in part._buffers:
                part._buffers[leaf] = value
            else:
                part._parameters[leaf] = nn.Parameter(value, requires_grad=False)
        return module

    monkeypatch.setattr(nn.Module, "to", carry)
    monkeypatch.setattr(torch, "meta", SimpleNamespace(empty_cache=lambda: None), raising=False)
    pipeline.enable_model_cpu_offload(device="meta")
    yield moves
    assert not homes, "after a call no network is left on the device"
