"""The log of a run: metrics.jsonl, timing.jsonl, log.txt, a progress bar, previews and trackers."""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from data.jobs.files import flush_to_disk
from train.reports.page import ABOUT, PAGE_FOLDER, write_run_page
from train.reports.records import read_records
from train.run.config import VALID
from train.run.folder import record_start, truncate_records
from train.run.launch import Launch
from train.run.trackers import Trackers

if TYPE_CHECKING:
    from train.run.config import FitConfig

log = logging.getLogger(__name__)


class RunLog:
    """All outputs of the first rank; on other ranks it does nothing. A context manager.

    Args:
        folder: Run folder.
        config: The run's whole config.
        launch: The processes.
        step: Step that the run goes on from; later records are dropped.
        record: What else is to be known of this start, for environment.json.
    """

    def __init__(
        self,
        folder: Path,
        config: "FitConfig",
        launch: Launch,
        step: int,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.config = config
        self.launch = launch
        self.step = step
        self.record = record
        self._on = launch.is_main
        self._trackers: Trackers
        self._stack = ExitStack()
        self._bar: tqdm

    def __enter__(self) -> Self:
        """Open the files, cut back to the step of the resume."""
        if not self._on:
            return self
        for name in ("metrics.jsonl", "timing.jsonl"):
            truncate_records(self.folder / name, self.step)
        self._metrics = self._stack.enter_context((self.folder / "metrics.jsonl").open("a"))
        self._timing = self._stack.enter_context((self.folder / "timing.jsonl").open("a"))
        first_start = record_start(self.folder, self.launch, self.step, self.record)
        self._trackers = Trackers(self.folder, self.config, self.launch, first_start, self.step)
        self._stack.callback(self._trackers.close)
        run = self.config.run
        bar = tqdm(
            total=run.steps * run.global_batch,
            initial=self.step * run.global_batch,
            unit=" samples",
            desc=self.folder.name,
            smoothing=0.05,
        )
        self._bar = self._stack.enter_context(bar)
        self._stack.enter_context(logging_redirect_tqdm())
        return self

    def __exit__(self, *error: Any) -> None:
        """Close the files and trackers."""
        self._stack.close()

    def advance(self) -> None:
        """One optimizer step was queued."""
        if self._on:
            self._bar.update(self.config.run.global_batch)

    def metrics(self, record: dict[str, Any], timing: dict[str, float]) -> None:
        """Log a line of metrics and one of timing; timing is kept apart because it differs from run to run."""
        if not self._on:
            return
        step = record["step"]
        self._metrics.write(json_line(record))
        self._timing.write(json_line({"step": step, **timing}))
        self._metrics.flush()
        self._timing.flush()
        self._bar.set_postfix(loss=f"{record['loss']:.4g}")
        numbers = {name: value for name, value in {**record, **timing}.items() if name != "step"}
        self._trackers.metrics(step, numbers)

    def validation(self, step: int, figures: dict[str, float]) -> None:
        """Log a line of figures of held-out samples; those that are of no single group are said, too."""
        if not self._on:
            return
        self._metrics.write(json_line({"step": step, **figures}))
        self._metrics.flush()
        self._trackers.metrics(step, figures)
        short = {name.removeprefix(VALID): value for name, value in figures.items()}
        said = (f"{name} {value:.4g}" for name, value in short.items() if "/" not in name)
        log.info("step %d, held-out samples: %s", step, ", ".join(said))

    def validated(self) -> list[str]:
        """Names of the figures of held-out samples in the newest line that has such; empty on other ranks."""
        rows = (self.folder / "metrics.jsonl").read_text().splitlines() if self._on else []
        names = ([name for name in json.loads(row) if name.startswith(VALID)] for row in reversed(rows))
        return next((found for found in names if found), [])

    def picture(self, step: int, picture: Image.Image) -> None:
        """Write samples/step-N.png, with what the picture's `info` says of it as a text in the file."""
        path = self.folder / "samples" / f"step-{step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        about = PngInfo()
        about.add_text(ABOUT, json.dumps(picture.info))
        picture.save(path, pnginfo=about)
        self._trackers.picture(step, picture)

    def page(self) -> None:
        """Write report/index.html of what is there; a page that cannot be written is told and stops no training."""
        if not self._on or not self._metrics.tell():
            return
        try:
            write_run_page(read_records(self.folder), self.folder / PAGE_FOLDER)
        except (OSError, ValueError) as error:
            log.warning("the page of the run was not written: %s", error)

    def flush(self) -> None:
        """Have the records on disk, before a checkpoint says that they are there."""
        if self._on:
            for file in (self._metrics, self._timing):
                flush_to_disk(Path(file.name))


def json_line(record: dict[str, Any]) -> str:
    """A record as one line of strict JSON; a number that is not finite becomes null."""
    finite = {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in record.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


@contextmanager
def log_file(folder: Path, launch: Launch) -> Iterator[None]:
    """Copy the log messages of the first rank to RUN/log.txt."""
    if not launch.is_main:
        yield
        return
    handler = logging.FileHandler(folder / "log.txt")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
