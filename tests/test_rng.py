"""The randomness of a step: a function of (seed, step, name), cut by rows."""

import pytest
import torch

from train.rng import SampleRandom, StepRandom, derived_seed, seed_step


def rows(first: int, end: int) -> torch.Tensor:
    return torch.arange(first, end)


def test_rows_of_micro_batches_make_up_the_global_draw():
    whole = StepRandom(3, 7, 8, rows(0, 8))
    parts = [StepRandom(3, 7, 8, rows(first, first + 2)) for first in (0, 2, 4, 6)]
    draws = {"normal": ("noise", (4, 5)), "uniform": ("u",), "integers": ("t", 4)}
    for method, arguments in draws.items():
        expected = getattr(whole, method)(*arguments)
        assert torch.equal(torch.cat([getattr(part, method)(*arguments) for part in parts]), expected)


def test_a_held_out_samples_noise_follows_from_its_key_alone():
    draws = {"normal": ("noise", (4, 5)), "uniform": ("u",), "integers": ("t", 1000)}
    for method, arguments in draws.items():
        together = getattr(SampleRandom(3, ["a", "b", "c"]), method)(*arguments)
        again = getattr(SampleRandom(3, ["c", "a"]), method)(*arguments)
        assert torch.equal(again, together[[2, 0]]) and len(together.unique()) == together.numel()
    with pytest.raises(ValueError, match="'u' were already drawn"):
        _ = [random.uniform("u") for random in [SampleRandom(3, ["a"])] * 2]


def test_draws_do_not_depend_on_their_order_or_on_global_state():
    one, other = StepRandom(0, 0, 4, rows(0, 4)), StepRandom(0, 0, 4, rows(0, 4))
    first = one.normal("a", (2,)), one.normal("b", (2,))
    torch.manual_seed(99)
    second = other.normal("b", (2,)), other.normal("a", (2,))
    assert torch.equal(first[0], second[1]) and torch.equal(first[1], second[0])


@pytest.mark.parametrize("change", [{"seed": 1}, {"step": 1}, {"stream": "preview"}])
def test_seed_step_and_stream_change_the_numbers(change: dict):
    base = {"seed": 0, "step": 0, "global_batch": 4, "rows": rows(0, 4)}
    drawn = StepRandom(**base).normal("a", (8,))
    assert not torch.equal(drawn, StepRandom(**{**base, **change}).normal("a", (8,)))
    assert not torch.equal(drawn, StepRandom(**base).normal("b", (8,)))


def test_distributions():
    rng = StepRandom(0, 0, 20000, rows(0, 20000))
    normal, uniform, integers = rng.normal("n", ()), rng.uniform("u"), rng.integers("i", 4)
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.01
    assert integers.dtype == torch.int64 and torch.bincount(integers).tolist() == pytest.approx([5000] * 4, rel=0.05)


def test_a_name_drawn_twice_is_refused():
    rng = StepRandom(0, 0, 4, rows(0, 4))
    rng.uniform("t")
    with pytest.raises(ValueError, match="'t' were already drawn"):
        rng.uniform("t")


def test_derived_seed_is_the_same_everywhere():
    assert derived_seed(0, 1, "train", "noise") == 227172791620735396
    assert derived_seed(0, 12) != derived_seed(0, 1, 2) != derived_seed(1, 0, 2)


def test_seed_step_makes_dropout_repeatable():
    dropout = torch.nn.Dropout(0.5)
    drawn = []
    for step, row in ((0, 0), (0, 0), (1, 0), (0, 4)):
        seed_step(5, step, first_row=row)
        drawn.append(dropout(torch.ones(64)))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[3])
