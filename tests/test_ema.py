"""The moving average: it moves, it is what its formula says, and it is put in and taken out without a trace."""

import pytest
import torch
from torch import nn

from train.ema import Ema, EmaConfig


def moved(module: nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by)


def test_average_follows_its_formula() -> None:
    module = nn.Linear(3, 2).double()
    ema = Ema(module, EmaConfig(decay=0.9))
    expected = module.weight.detach().clone()
    for step in range(200):
        moved(module, 0.1)
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    torch.testing.assert_close(ema.state()["weight"], expected)


def test_first_update_moves_most_of_the_way() -> None:
    module = nn.Linear(3, 2)
    ema = Ema(module, EmaConfig(decay=0.9999))
    start = module.weight.detach().clone()
    moved(module, 1.0)
    ema.update(0)
    torch.testing.assert_close(ema.state()["weight"], start + 0.9)


def test_applied_swaps_and_restores_even_after_an_error() -> None:
    module = nn.Linear(3, 2)
    ema = Ema(module, EmaConfig(decay=0.5))
    moved(module, 1.0)
    ema.update(5)
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    averages = {name: value.clone() for name, value in ema.state().items()}
    with pytest.raises(KeyError), ema.applied(module):
        assert torch.equal(module.weight, averages["weight"])
        raise KeyError
    assert all(torch.equal(module.state_dict()[name], weights[name]) for name in weights)
    assert all(torch.equal(ema.state()[name], averages[name]) for name in averages)


def test_frozen_parameters_are_not_averaged_and_decay_zero_is_off() -> None:
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    assert set(Ema(module, EmaConfig(decay=0.9)).state()) == {"weight"}
    off = Ema(module, EmaConfig(decay=0))
    off.update(0)
    assert not off.enabled and off.state() == {}
    with off.applied(module) as same:
        assert same is module


def test_load_takes_a_full_state_and_refuses_a_missing_or_wrong_one() -> None:
    module = nn.Linear(3, 2)
    ema = Ema(module, EmaConfig(decay=0.9))
    state = {name: torch.full_like(value, 7) for name, value in module.state_dict().items()}
    ema.load({**state, "more": torch.zeros(1)})
    assert (ema.state()["weight"] == 7).all()
    with pytest.raises(ValueError, match=r"EMA of bias: expected shape .*nothing"):
        ema.load({"weight": state["weight"]})
    with pytest.raises(ValueError, match="EMA of weight"):
        ema.load({**state, "weight": torch.zeros(2, 2)})


def test_decay_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ema\.decay is 1"):
        EmaConfig(decay=1)


def test_tied_weights_have_their_average_under_both_names() -> None:
    module = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    module[1].weight = module[0].weight
    ema = Ema(module, EmaConfig(decay=0.5))
    moved(module, 1.0)
    ema.update(0)
    state = ema.state()
    assert set(state) == {"0.weight", "1.weight"}
    module.load_state_dict(module.state_dict() | state)
    torch.testing.assert_close(module[1].weight, state["0.weight"])
    other = Ema(module, EmaConfig(decay=0.5))
    moved(module, 1.0)
    other.load(state)
    torch.testing.assert_close(other.state()["1.weight"], state["0.weight"])
