"""The trained weights under DeepSpeed's ZeRO: masters, gradients and moments in pieces over the processes.

Imported only where the launcher asks for it.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import Tensor, nn

from train.run.optim import LossScale
from train.run.weights import check_state, trained_parameters, trained_state

if TYPE_CHECKING:
    from train.run.launch import Launch

MOMENTS = ("exp_avg", "exp_avg_sq")


def check_fit(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse what ZeRO cannot lay out in pieces and put together again.

    Raises:
        ValueError: frozen or tied weights or buffers in the module, or another optimizer than AdamW.
    """
    if not isinstance(optimizer, torch.optim.AdamW):
        raise ValueError(
            f"{type(optimizer).__name__} keeps its moments in blocks, which do not fall together with ZeRO's pieces: "
            "set optim.kind adamw, or launch with configs/accelerate/ddp.yaml"
        )
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    if len(names) > len(dict(module.named_parameters())) or len(trained_state(module)) > len(names):
        raise ValueError(f"{type(module).__name__} has tied weights or buffers, which ZeRO does not keep in float32")
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    if frozen:
        raise ValueError(
            f"{len(frozen)} weights of the trained module are frozen ({frozen[0]}, ...): that is LoRA, which leaves "
            "nothing for ZeRO to save; launch with configs/accelerate/ddp.yaml or one_gpu.yaml"
        )


class ShardedWeights:
    """`train.weights.Weights` in pieces: ZeRO 1, 2 or 3, with or without offload to the CPU.

    DeepSpeed itself clips, leaves out a step whose gradient is not finite, and waits for the device to see that.

    Args:
        module: The task's trainable module, without a wrapper.
        optimizer: The optimizer as accelerate has prepared it.
    """

    def __init__(self, module: nn.Module, optimizer: Any) -> None:
        self.module, self.zero = module, optimizer.optimizer
        self.is_sharded = hasattr(self.zero, "fp32_partitioned_groups_flat")  # ZeRO-3: the module's weights too
        pieces = "fp32_partitioned_groups_flat" if self.is_sharded else "single_partition_of_fp32_groups"
        self.masters: list[Tensor] = list(getattr(self.zero, pieces))
        self.loss_scale = LossScale(self.masters[0].device, enabled=False)  # bf16 and float32 need none

    def backward(self, launch: "Launch", loss: Tensor) -> None:
        """Add the gradient of a micro batch's loss to those before it; with the last one comes the step."""
        launch.accelerator.backward(loss)

    def step(self, launch: "Launch", grad_clip: float) -> Tensor:
        """Clip the gradient and move the weights; the step itself has come with the last backward pass."""
        norm = self.zero._global_grad_norm  # infinite if DeepSpeed has left the step out
        return torch.as_tensor(norm, dtype=torch.float32, device=launch.device)

    def copy_to_model(self) -> None:
        """Let the module compute with the masters."""
        if not self.is_sharded:
            self.zero.update_lp_params()
            return
        self.zero._partition_all_parameters()
        for group in range(len(self.masters)):
            self.zero._reassign_or_swap_out_partitioned_parameters(group)
        if self.zero.persistent_parameters:  # small ones, which lie whole on every process between two steps
            self.zero.persistent_parameters[0].all_gather(self.zero.persistent_parameters)

    def state(self) -> dict[str, Tensor]:
        """Gather the whole trained state by name; on the CPU, one weight on the device at a time."""
        parameters, state = self._parameters(), trained_state(self.module)
        return {name: _whole(parameters[name]) if name in parameters else value for name, value in state.items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take up a `state`, into masters and module."""
        parameters, mine = self._parameters(), trained_state(self.module)
        check_state({name: _shape(parameters.get(name, value)) for name, value in mine.items()}, state)
        for name, value in mine.items():
            if name in parameters:
                self._set(parameters[name], state[name])
            else:
                value.copy_(state[name])
        self.copy_to_model()

    def optimizer_state(self) -> dict[str, Any]:
        """Gather the optimizer's state as AdamW over whole parameters has it; moments like `state`."""
        optimizer, parameters = self.zero.optimizer, self._parameters().values()
        [settings] = optimizer.param_groups
        group = {name: value for name, value in settings.items() if name != "params"}
        taken = optimizer.state[self.masters[0]].get("step")
        state = {} if taken is None else {i: _moments(p, taken) for i, p in enumerate(parameters)}
        return {"state": state, "param_groups": [group | {"params": list(range(len(parameters)))}]}

    @torch.no_grad()
    def load_optimizer(self, state: dict[str, Any]) -> None:
        """Take up an `optimizer_state`."""
        if not state["state"]:
            return
        optimizer, steps = self.zero.optimizer, state["state"][0]["step"]
        for master in self.masters:
            count = steps.to(master.device, copy=True)  # each piece counts for itself
            optimizer.state[master] = {"step": count} | {m: torch.zeros_like(master) for m in MOMENTS}
        if not self.is_sharded:
            self.zero._lazy_init_hp_params_optimizer_state()
        for i, parameter in enumerate(self._parameters().values()):
            for name in MOMENTS:
                self._set(parameter, state["state"][i][name], name)

    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(trained_parameters(self.module))

    def _set(self, parameter: Any, value: Tensor, moment: str | None = None) -> None:
        """Write this process's piece of a whole fp32 weight, or of its moment."""
        value = value.to(parameter.device)
        if not self.is_sharded:
            keywords = {} if moment is None else {"optim_state_key": moment}
            parameter.set_full_hp_param(value, **keywords)
            return
        size = parameter.ds_tensor.numel()
        whole = value.new_zeros(size * dist.get_world_size())
        whole[: value.numel()] = value.flatten()
        self.zero.set_local_hp_param(whole[size * dist.get_rank() :][:size], parameter, moment)


def _shape(value: Tensor) -> torch.Size:
    """Shape of the whole weight, which ZeRO-3 leaves empty between two uses."""
    return getattr(value, "ds_shape", value.shape)


def _whole(parameter: nn.Parameter, moment: str | None = None) -> Tensor:
    """A whole fp32 weight, or its moment: on the CPU of the first rank, elsewhere empty. All ranks must call."""
    whole = safe_get_full_fp32_param(parameter) if moment is None else safe_get_full_optimizer_state(parameter, moment)
    return whole.cpu() if dist.get_rank() == 0 else whole.new_empty(0)


def _moments(parameter: nn.Parameter, step: Tensor) -> dict[str, Tensor]:
    return {"step": step.cpu()} | {name: _whole(parameter, name) for name in MOMENTS}
