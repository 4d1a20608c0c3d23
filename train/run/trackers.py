"""TensorBoard and Weights & Biases behind one small face. Each is imported only when it is asked for."""

from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image


class Tracker(Protocol):
    """Where numbers and pictures go beside the run folder."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log numbers of a step."""
        ...

    def picture(self, step: int, picture: Image.Image) -> None:
        """Log the preview grid of a step."""
        ...

    def close(self) -> None:
        """Write what is buffered."""
        ...


class TensorBoard:
    """Event files in RUN/tensorboard; those after the step of a resume are hidden."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log numbers of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, picture: Image.Image) -> None:
        """Log the preview grid of a step."""
        self._writer.add_image("preview", np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is buffered."""
        self._writer.close()


class Wandb:
    """A Weights & Biases run that a resume goes on with, by its id."""

    def __init__(self, folder: Path, run_id: str, mode: Literal["offline", "online"], config: dict[str, Any]) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project="inversion-encoders",
            name=folder.name,
            id=run_id,
            resume="allow",
            dir=str(folder),
            mode=mode,
            config=config,
        )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log numbers of a step."""
        self._run.log(values, step=step)

    def picture(self, step: int, picture: Image.Image) -> None:
        """Log the preview grid of a step."""
        self._run.log({"preview": self._wandb.Image(picture)}, step=step)

    def close(self) -> None:
        """Write what is buffered."""
        self._run.finish()
