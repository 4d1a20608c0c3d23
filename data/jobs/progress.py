"""A progress bar that counts what all ranks of a stage have done, shown by the first."""

import sys
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType

from tqdm import tqdm


class Progress:
    """A bar over all inputs of a stage, with inputs a second and the time left.

    Args:
        title: what stands before the bar.
        sizes: number of inputs by piece of work.
        shown: False for all ranks but the first. There is no bar either where nothing is left to do.
        unit: what is counted.
    """

    def __init__(self, title: str, sizes: Mapping[str, int], shown: bool, unit: str = "image") -> None:
        self._title = title
        self._sizes = sizes
        self._unit = unit
        self._shown = shown
        self._bar: tqdm | None = None
        self._finished = 0
        self._own = 0

    def following(self, finished: Callable[[], set[str]]) -> Callable[[], set[str]]:
        """Give a function that does what `finished` does, list the finished pieces, and moves the bar by them.

        It is to be called between two pieces of this process.
        """

        def noted() -> set[str]:
            names = finished()
            self._own = 0
            self.note(names)
            return names

        return noted

    def note(self, finished: Iterable[str]) -> None:
        """These pieces are finished, by whichever rank."""
        if not self._shown:
            return
        self._finished = sum(self._sizes.get(name, 0) for name in finished)
        total = sum(self._sizes.values())
        if self._bar is None and self._finished < total:
            # A log file gets a line every half a minute, a terminal a bar that moves.
            pause = 0.2 if sys.stderr.isatty() else 30
            self._bar = tqdm(total=total, initial=self._finished, unit=self._unit, desc=self._title, mininterval=pause)
        self._move()

    def tick(self, count: int = 1) -> None:
        """Move the bar by `count` more inputs that this process has done of its piece."""
        self._own += count
        self._move()

    def _move(self) -> None:
        if self._bar is not None:
            # What two processes made at the same time counts once: the bar never goes back.
            self._bar.update(max(0, min(self._finished + self._own, self._bar.total) - self._bar.n))

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
