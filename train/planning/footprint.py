"""Cost of a task's step before it runs: the bytes that it holds, and its floating-point operations.

Counted by running the task's loss and its backward pass once, on weights without data (train/planning/meta_models.py)
or real.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

from train.planning.meta_models import PaddedAlike
from train.rng import StepRandom
from train.run.config import Precision
from train.run.optim import autocast
from train.task import Batch, StepLoss, Task, critic_of

Device = Literal["cpu", "cuda"]

_ATTENTION: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4])
    ),
}
"""torch itself counts the FLOP of the GPU's attention kernels alone."""

_FLOAT32_ON_CUDA = frozenset(
    {F.group_norm, F.layer_norm, F.interpolate, F.softmax, torch.softmax, Tensor.softmax, torch.exp, Tensor.exp}
)


@dataclass(frozen=True)
class Footprint:
    """Bytes of one micro batch, beside weights, gradients, optimizer and the loader's batch.

    Args:
        saved: Bytes that autograd holds at the forward pass's end for the backward pass.
        peak: Most bytes that live at once in both passes, what gradient checkpointing computes again and tensors in
            passing included. Work space inside kernels is not in it.
    """

    saved: int
    peak: int


@dataclass(frozen=True)
class Flop:
    """Floating-point operations (two a multiplication and addition) of the two passes."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Operations of both passes."""
        return self.forward + self.backward

    def __truediv__(self, samples: int) -> "Flop":
        return Flop(self.forward / samples, self.backward / samples)


class CudaAutocast(TorchFunctionMode):
    """CUDA's autocast for tensors on the CPU: there norms, softmax and upsampling run in float32 under autocast too.

    So the memory of a GPU can be counted where there is none. Attention needs no such rule: what torch's fused kernel
    for the CPU keeps (queries, keys, values, output, logsumexp) is what a GPU's flash attention keeps.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FLOAT32_ON_CUDA and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(Tensor, _float32, (args, kwargs))
            with torch.autocast("cpu", enabled=False):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operations within the block make, from their making to their end.

    Attributes:
        now: bytes of those that live; peak: the most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}
        self._made: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            self._meet(storage, made=False)
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            self._meet(storage, made=True)
        return result

    def bytes_made(self, storage: torch.UntypedStorage) -> int:
        """Bytes of a living storage; 0 if it was there before the block."""
        return self._made.get(storage._cdata, 0)

    def _meet(self, storage: torch.UntypedStorage, made: bool) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = weakref.ref(storage, lambda _: self._lose(key))
        if made:
            self._made[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def _lose(self, key: int) -> None:
        self._known.pop(key)
        self.now -= self._made.pop(key, 0)


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    return (value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor))


class BalancedRandom(StepRandom):
    """Draws of a batch in which every choice comes as often as its probability says, each with each of the others.

    Exact where the number of samples divides by the product of the choices; a `uniform` takes what the integers left.
    """

    def __init__(self, samples: int) -> None:
        super().__init__(seed=0, step=0, global_batch=samples, rows=torch.arange(samples))
        self._repeats = 1

    def uniform(self, name: str) -> Tensor:
        """The middles of equal parts of [0, 1)."""
        parts = max(1, self.global_batch // self._repeats)
        return (self.integers(name, parts) + 0.5) / parts

    def integers(self, name: str, high: int) -> Tensor:
        """0..high-1 in turns, each value as often as the draws before it have combinations."""
        values = torch.arange(self.global_batch) // self._repeats % high
        self._repeats *= high
        return values


def footprint(task: Task, batch: Batch, rng: StepRandom, precision: Precision, device: Device = "cuda") -> Footprint:
    """Count the bytes of a micro batch's loss and backward pass, exactly as autograd keeps them.

    Args:
        task: Task with weights on the CPU, without data or with.
        batch: Micro batch, without data or with.
        rng: Draws of the step.
        precision: Value of run.mixed_precision.
        device: Device whose autocast is counted. Tensors on CUDA follow their own.
    """
    live, saved = LiveBytes(), WeakIdKeyDictionary()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage] = live.bytes_made(storage)
        return tensor

    on_gpu = next(task.trainable.parameters()).device.type == "cuda"
    with ExitStack() as stack, _gradients_dropped(task):
        if device == "cuda" and not on_gpu:
            stack.enter_context(CudaAutocast())
        stack.enter_context(live)
        with saved_tensors_hooks(pack, _as_it_is):
            loss, result = _loss(task, batch, rng, precision)
            saved_bytes = sum(saved.values())
            if result.critic is not None:  # first, as the engine does
                _backward(result.critic)
            _backward(loss)
        del loss, result  # the engine holds them through the backward pass
    return Footprint(saved_bytes, live.peak)


def flop(task: Task, batch: Batch, rng: StepRandom, precision: Precision) -> Flop:
    """Count the floating-point operations of a batch's loss and backward pass, recomputed ones included."""

    def both() -> Tensor:
        loss, result = _loss(task, batch, rng, precision)
        return loss if result.critic is None else loss + result.critic

    with _gradients_dropped(task):
        return count_flop(both)


def count_flop(loss: Callable[[], Tensor]) -> Flop:
    """Count the floating-point operations of a scalar `loss` and of its backward pass, if it has one."""
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        value = loss()
        forward = counter.get_total_flops()
        if value.requires_grad:
            value.backward()
    return Flop(forward, counter.get_total_flops() - forward)


def _loss(task: Task, batch: Batch, rng: StepRandom, precision: Precision) -> tuple[Tensor, StepLoss]:
    """Loss as the engine takes it."""
    model = task.trainable.train()
    device = next(model.parameters()).device.type
    with PaddedAlike(), autocast(device, precision):
        result = task.loss(model, batch, rng)
        return torch.stack(list(result.terms.values())).sum(), result


def _backward(loss: Tensor) -> None:
    """loss.backward(), which leaves function modes: checkpoints would be computed again without CudaAutocast."""
    torch.autograd.Variable._execution_engine.run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


@contextmanager
def _gradients_dropped(task: Task) -> Iterator[None]:
    """Drop each parameter's gradient as soon as it is made in the block: its lasting place is counted elsewhere."""
    critic = critic_of(task)
    modules = [task.trainable, *([] if critic is None else [critic.module])]

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    parameters = (parameter for module in modules for parameter in module.parameters() if parameter.requires_grad)
    hooks = [parameter.register_post_accumulate_grad_hook(drop) for parameter in parameters]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
