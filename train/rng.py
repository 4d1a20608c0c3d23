"""Random numbers as a function of (seed, step, name), drawn for the whole global batch.

Each rank and micro batch takes its own rows of the same draw, so one process and eight see the same noise, and resume
needs no saved generator.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class StepRandom:
    """The random numbers of one micro batch.

    Args:
        seed: Seed of the run.
        step: Optimizer step that the batch belongs to.
        global_batch: Samples of an optimizer step over all ranks.
        rows: Row numbers int64 [b] of the micro batch's row numbers inside the global batch.
        device: Device on which normal numbers are drawn. CPU and CUDA give different streams.
        stream: Purpose, so that previews do not repeat the noise of a training step.
    """

    def __init__(
        self,
        seed: int,
        step: int,
        global_batch: int,
        rows: Tensor,
        device: torch.device | str = "cpu",
        stream: str = "train",
    ) -> None:
        self.seed, self.step, self.global_batch, self.stream = seed, step, global_batch, stream
        self.device = torch.device(device)
        self.host_rows = rows.cpu()
        self.rows = rows.to(self.device, non_blocking=True)
        self._drawn: set[str] = set()

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers, float32 [b, *shape]."""
        generator = self._generator(name, self.device)
        full = torch.randn((self.global_batch, *shape), generator=generator, device=self.device)
        return full[self.rows]

    def uniform(self, name: str) -> Tensor:
        """Uniform numbers in [0, 1), float32 [b], on the CPU: a choice that steers the step must not wait."""
        return torch.rand(self.global_batch, generator=self._generator(name, "cpu"))[self.host_rows]

    def integers(self, name: str, high: int) -> Tensor:
        """Uniform integers in 0..high-1, int64 [b], on the CPU like `uniform`."""
        return torch.randint(high, (self.global_batch,), generator=self._generator(name, "cpu"))[self.host_rows]

    def chosen(self, name: str, share: float) -> Tensor:
        """Choose a share of the rows, bool [b], on the CPU like `uniform`.

        Every row has the same chance, and of n neighbours n * share are chosen, rounded up or down: micro batches
        differ in cost by one row at most (systematic sampling).
        """
        offset = torch.rand(1, generator=self._generator(name, "cpu"), dtype=torch.float64)
        edges = torch.floor(torch.arange(self.global_batch + 1, dtype=torch.float64) * share + offset)
        return (edges[1:] > edges[:-1])[self.host_rows]

    def _generator(self, name: str, device: torch.device | str) -> torch.Generator:
        self._mark_drawn(name)
        return torch.Generator(device).manual_seed(derived_seed(self.seed, self.step, self.stream, name))

    def _mark_drawn(self, name: str) -> None:
        if name in self._drawn:
            raise ValueError(
                f"random numbers {name!r} were already drawn in this step and would repeat: give each draw its own name"
            )
        self._drawn.add(name)


class SampleRandom(StepRandom):
    """The random numbers of held-out samples: functions of (seed, key, name), whichever batch a sample is in.

    All are drawn on the CPU, so that every device sees the same.

    Args:
        seed: Seed of the run.
        keys: Keys of the b samples.
        device: Device of normal numbers.
    """

    def __init__(self, seed: int, keys: Sequence[str], device: torch.device | str = "cpu") -> None:
        super().__init__(seed, 0, len(keys), torch.arange(len(keys)), device, stream="held out")
        self.keys = tuple(keys)

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers, float32 [b, *shape]."""
        return torch.stack([torch.randn(*shape, generator=one) for one in self._generators(name)]).to(self.device)

    def uniform(self, name: str) -> Tensor:
        """Uniform numbers in [0, 1), float32 [b], on the CPU."""
        return torch.cat([torch.rand(1, generator=one) for one in self._generators(name)])

    def integers(self, name: str, high: int) -> Tensor:
        """Uniform integers in 0..high-1, int64 [b], on the CPU."""
        return torch.cat([torch.randint(high, (1,), generator=one) for one in self._generators(name)])

    def _generators(self, name: str) -> list[torch.Generator]:
        self._mark_drawn(name)
        seeds = (derived_seed(self.seed, self.stream, name, key) for key in self.keys)
        return [torch.Generator().manual_seed(seed) for seed in seeds]


def derived_seed(*parts: int | str) -> int:
    """A seed below 2**63 from integers >= 0 and words; the same on every machine and in every Python."""
    entropy = [part if isinstance(part, int) else _word_number(part) for part in parts]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_step(seed: int, step: int, first_row: int) -> None:
    """Seed torch's own generators for a micro batch, so that dropout inside a model is the same after a resume.

    Args:
        first_row: The micro batch's first row in the global batch.
    """
    torch.manual_seed(derived_seed(seed, step, "torch", first_row))


def _word_number(word: str) -> int:
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
