"""Stop on SIGTERM or SIGUSR1, which schedulers send before they end a job, and on Ctrl-C (SIGINT).

The step at hand is finished and saved, then the process ends with EXIT_CODE; the same command goes on. Schedulers that
see that code put the job back into the queue (scripts/cluster/train.sbatch). A second signal ends the process at once.
"""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

log = logging.getLogger(__name__)

EXIT_CODE = 85
"""Exit status of a run that was asked to stop and has saved. torchrun and accelerate launch make 1 of it."""

SIGNALS = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))
"""Those of them that this system has."""


class Preempted(SystemExit):
    """The run has saved and ends because it was asked to."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class Preemption:
    """Note the first of the SIGNALS in the block, instead of ending the process.

    Attributes:
        asked: whether one has come to this process.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread do it
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()
        log.warning("%s: the run saves after this step and ends; once more ends it now", signal.Signals(number).name)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
