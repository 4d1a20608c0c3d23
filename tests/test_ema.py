"""The moving average: it moves, it is what its formula says, and it is put in and taken out without a trace."""

from typing import Any

import pytest
import torch
from torch import nn

from train.run.config import EmaConfig
from train.run.ema import Ema
from train.run.optim import LossScale
from train.run.weights import ReplicatedWeights


def ema_of(module: nn.Module, **config: Any) -> Ema:
    return Ema(ReplicatedWeights(module, None, LossScale(torch.device("cpu"), enabled=False)), EmaConfig(**config))


def averages(ema: Ema) -> dict[str, torch.Tensor]:
    with ema.applied():
        return {name: value.clone() for name, value in ema.weights.state().items()}


def moved(module: nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by)


def test_average_follows_its_formula():
    module = nn.Linear(3, 2).double()
    ema = ema_of(module, decay=0.9)
    expected = module.weight.detach().clone()
    for step in range(200):
        moved(module, 0.1)
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    torch.testing.assert_close(averages(ema)["weight"], expected)


def test_first_update_moves_most_of_the_way():
    module = nn.Linear(3, 2)
    ema = ema_of(module, decay=0.9999)
    start = module.weight.detach().clone()
    moved(module, 1.0)
    ema.update(0)
    torch.testing.assert_close(averages(ema)["weight"], start + 0.9)


def test_applied_swaps_and_restores_even_after_an_error():
    module = nn.Linear(3, 2)
    ema = ema_of(module, decay=0.5)
    moved(module, 1.0)
    ema.update(5)
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    means = averages(ema)
    with pytest.raises(KeyError), ema.applied():
        assert torch.equal(module.weight, means["weight"])
        raise KeyError
    assert all(torch.equal(module.state_dict()[name], weights[name]) for name in weights)
    assert all(torch.equal(averages(ema)[name], means[name]) for name in means)


def test_large_weights_are_exchanged_piece_by_piece(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("train.run.ema._CHUNK", 5)
    module = nn.Sequential(nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), nn.Linear(3, 7))
    ema, start = ema_of(module, decay=0.5), {n: v.clone() for n, v in module.state_dict().items()}
    moved(module, 1.0)
    present = {n: v.clone() for n, v in module.state_dict().items()}
    assert all(torch.equal(averages(ema)[name], start[name]) for name in start)
    assert all(torch.equal(module.state_dict()[name], present[name]) for name in present)


def test_frozen_parameters_are_not_averaged_and_decay_zero_is_off():
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    assert set(averages(ema_of(module, decay=0.9))) == {"weight"}
    off, before = ema_of(module, decay=0), module.weight.clone()
    moved(module, 1.0)
    off.update(0)
    assert not off.enabled and torch.equal(averages(off)["weight"], before + 1)


def test_every_third_step_counts_as_three():
    module = nn.Linear(3, 2)
    ema = ema_of(module, decay=0.5, every=3)
    start = module.weight.detach().clone()
    moved(module, 1.0)
    for step in (96, 97, 98):
        assert torch.equal(averages(ema)["weight"], start)
        ema.update(step)
    torch.testing.assert_close(averages(ema)["weight"], start + 1 - 0.5**3)


def test_it_starts_anew_from_the_present_weights():
    module = nn.Linear(3, 2)
    ema = ema_of(module, decay=0.9)
    moved(module, 1.0)
    ema.take()
    assert torch.equal(averages(ema)["weight"], module.weight)


def test_decay_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"ema\.decay is 1"):
        EmaConfig(decay=1)


def test_no_update_at_all_is_refused():
    with pytest.raises(ValueError, match=r"ema\.every is 0"):
        EmaConfig(every=0)


def test_tied_weights_have_their_average_under_both_names():
    module = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    module[1].weight = module[0].weight
    ema = ema_of(module, decay=0.5)
    moved(module, 1.0)
    ema.update(0)
    state = averages(ema)
    assert set(state) == {"0.weight", "1.weight"}
    ema.weights.load(state)
    torch.testing.assert_close(module[1].weight, state["0.weight"])
