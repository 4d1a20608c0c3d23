"""Training of a task's second part, its critic: gradient, step, checkpoint; nothing where the task has none.

The critic lies whole on every process, whatever the launch does with the trained module, and its gradient is averaged
over the processes here. Both parts take a step or neither does, and nothing waits for the device.
"""

import math
from pathlib import Path

from torch import Tensor
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters

from train.run.checkpoint import CRITIC, CRITIC_OPTIMIZER, Parts, read_part
from train.run.config import OptimConfig
from train.run.launch import Launch
from train.run.optim import LossScale, build_optimizer, step_if
from train.run.weights import ReplicatedWeights
from train.task import Critic


class CriticTraining:
    """A critic in training.

    Args:
        critic: The task's second part; without one every method does nothing.
        launch: The processes.
        grad_clip: Largest norm of its gradient; 0 does not clip.
    """

    def __init__(self, critic: Critic | None, launch: Launch, grad_clip: float) -> None:
        self.launch, self.grad_clip = launch, grad_clip
        self._norm: Tensor
        self._weights: ReplicatedWeights | None = None
        if critic is not None:
            module = critic.module.to(launch.device).train()
            optimizer = build_optimizer(module, OptimConfig(lr=critic.lr, betas=critic.betas, weight_decay=0.0))
            # Its loss is float32 and needs no scale under fp16 either.
            self._weights = ReplicatedWeights(module, optimizer, LossScale(launch.device, enabled=False))

    def backward(self, loss: Tensor, own: Tensor | None) -> Tensor:
        """Add the gradient of a micro batch's own loss to those before it.

        Args:
            loss: The trained module's loss, a scalar, which has not gone backward yet.
            own: The critic's.

        Returns:
            `loss`; with the step's last micro batch NaN if the critic's gradient is not finite, so that the trained
            module's is not either and every kind of launch leaves the step out.
        """
        if self._weights is None:
            return loss
        assert own is not None, "a task with a critic gives StepLoss.critic"
        (own / self.launch.accumulation).backward()
        if not self.launch.accelerator.sync_gradients:
            return loss
        masters = self._weights.masters
        self._average([master.grad for master in masters if master.grad is not None])
        self._norm = clip_grad_norm_(masters, self.grad_clip or math.inf)
        return loss * (1 + 0 * self._norm)  # times one, or NaN

    def _average(self, gradients: list[Tensor]) -> None:
        """Let gradients be the mean over the processes, by one sum."""
        if self.launch.world_size > 1:
            mean = self.launch.sum(parameters_to_vector(gradients)) / self.launch.world_size
            vector_to_parameters(mean, gradients)

    def step(self, good: Tensor) -> None:
        """Move the critic if the trained module was moved (`good`, bool scalar on the device); forget the gradient."""
        if self._weights is not None:
            step_if(good, self._weights.optimizer)
            self._weights.optimizer.zero_grad(set_to_none=True)

    def figures(self) -> dict[str, Tensor]:
        """Figures of the step to log, scalars on the device: the norm of the gradient before clipping."""
        return {} if self._weights is None else {"critic_grad_norm": self._norm}

    def parts(self) -> Parts:
        """Parts of a checkpoint."""
        if self._weights is None:
            return {}
        return {CRITIC: self._weights.state, CRITIC_OPTIMIZER: self._weights.optimizer_state}

    def load(self, checkpoint: Path) -> None:
        """Take up what a checkpoint holds."""
        if self._weights is not None:
            self._weights.load(read_part(checkpoint, CRITIC))
            self._weights.load_optimizer(read_part(checkpoint, CRITIC_OPTIMIZER))
