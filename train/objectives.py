"""Train an encoder for every config of a folder and every seed, export and measure it, and lay all side by side.

    python -m train.objectives configs/turboedit/ablation runs/objectives --seeds 0,1,2

A row is a file of the folder. Leaves OUT/index.html, results.json and table.csv, anew after each training, and below
OUT the run folders and exports. It takes hours and may be killed: the same command goes on where it was, and rows that
are done are kept as long as their options stay. It is a command of train, since it starts trainings; what is measured
and how lies in eval/objectives.
"""

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from data.jobs.command import existing, read_config, run
from data.jobs.files import write_text
from data.jobs.forked import start_command
from data.jobs.inheritance import flattened
from data.jobs.kept import KeptFolder, digest
from eval.harness.results import about, at_least_one, finish
from eval.harness.training import training_steps
from train.methods.turboedit.config import TurboEditConfig

if TYPE_CHECKING:
    from eval.objectives.encoders import SceneMeasurement

logger = logging.getLogger(__name__)

_PREEMPTED = 85


@dataclass(frozen=True)
class ObjectiveTraining:
    """A row's training with one seed, as its file was when the command began.

    Args:
        row: Name of the row.
        text: The row's file as it was written.
        whole: The same with all that it inherits.
        seed: Seed of the training.
        options: Options behind the file's.
        steps: Steps that it takes.
        samples: Samples that it sees.
    """

    row: str
    text: str
    whole: str
    seed: int
    options: tuple[str, ...]
    steps: int
    samples: int

    @classmethod
    def of(cls, path: Path, seed: int, steps: int | None, shards: Path | None) -> "ObjectiveTraining":
        """The training of a file of options.

        Raises:
            ValueError: The file cannot be read as options of train.turboedit; the message names it.
        """
        config = read_config(TurboEditConfig, path)
        options = [f"--run.seed={seed}", "--run.time_limit_min=null", "--log.keep_checkpoints=1"]
        options += [] if steps is None else [f"--run.steps={steps}"]
        options += [] if shards is None else [f"--data.shards={shards}"]
        text = path.read_text(encoding="utf-8")
        taken = steps or config.run.steps
        return cls(path.stem, text, flattened(path), seed, tuple(options), taken, taken * config.run.global_batch)

    @property
    def settings(self) -> list[Any]:
        """All options that decide it, as JSON; code is not part of it."""
        return [yaml.safe_load(self.whole), *self.options]

    def piece(self, scenes: "SceneMeasurement") -> str:
        """Name of the work of training, exporting and measuring it."""
        return f"{self.row}-seed{self.seed}-{digest(self.settings, scenes.settings)}"


def compare_objectives(
    rows: Path,
    out: Path,
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int | None = None,
    shards: Path | None = None,
    baseline: str = "baseline",
    num: int = 20,
    num_validation: int = 8,
    num_reconstructions: int = 60,
    attributes: Path = Path("models/miniature/attributes"),
    clip: Path | None = Path("models/miniature/clip"),
    batch: int = 30,
    scene_seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Compare objectives of train.turboedit.

    Args:
        rows: Folder of configs of train.turboedit, a file NAME.yaml for each row; they may inherit.
        out: Folder of the report, of runs and of exports.
        seeds: Seeds of the trainings; every row is trained with each.
        steps: Steps of every training; null for those of its config. Limits of time do not count.
        shards: Training shards of every row; null for those of its config.
        baseline: Row that the others are compared with.
        num: Test edits of each of the nine kinds.
        num_validation: Validation edits of each kind, for the choice of strengths.
        num_reconstructions: Number of test scenes whose reconstructions are measured by step, to the next whole batch.
        attributes: Folder of the attribute reader.
        clip: Folder of a CLIPModel; null leaves CLIP similarity out.
        batch: Images at a time, in measuring.
        scene_seed: Seed of the scenes.
        device: Device of measuring, such as cpu or cuda:1; auto takes a GPU where there is one. Trainings take the
            run.device of their configs.
    """
    at_least_one(num=num, num_validation=num_validation, num_reconstructions=num_reconstructions, batch=batch)
    at_least_one(seeds=len(seeds), steps=steps)
    existing(rows, "ROWS", "folder of configs")
    existing(attributes, "--attributes", "folder of an attribute reader")
    files = {path.stem: path for path in sorted(rows.glob("*.yaml"))}
    if baseline not in files:
        raise ValueError(f"--baseline {baseline}: {rows} has no {baseline}.yaml; it has {', '.join(files) or 'no row'}")
    files = {baseline: files[baseline], **files}  # trained and shown first
    trainings = [ObjectiveTraining.of(path, seed, steps, shards) for seed in seeds for path in files.values()]

    from eval.objectives.encoders import SceneMeasurement
    from eval.scene_edits.run import kept_results

    scenes = SceneMeasurement(num, num_validation, num_reconstructions, attributes, clip, batch, scene_seed)
    comparison = _Comparison(rows, out, baseline, scenes, {one.piece(scenes): one for one in trainings}, device)
    editors = kept_results(out)
    for piece in comparison.kept.missing(dict.fromkeys(comparison.trainings, 1), "objectives", "encoder"):
        comparison.kept.keep(piece, comparison.made(piece, editors))
        comparison.report()
    return comparison.report(in_words=True)


@dataclass(frozen=True)
class _Comparison:
    """All rows and seeds, by the names of their work, and where it lies."""

    rows: Path
    out: Path
    baseline: str
    scenes: "SceneMeasurement"
    trainings: Mapping[str, ObjectiveTraining]
    device: str

    @cached_property
    def kept(self) -> KeptFolder:
        """Records of the encoders that are done."""
        return KeptFolder(self.out / "encoders")

    def made(self, piece: str, editors: KeptFolder) -> dict[str, Any]:
        """Train, export and measure an encoder; `editors` holds results that encoders share."""
        from eval.objectives.encoders import measured_encoder
        from train.run.checkpoint import Checkpoints, read_progress

        training, folder, exported = self.trainings[piece], self.out / "runs" / piece, self.out / "exports" / piece
        config = self.out / "configs" / f"{piece}.yaml"
        for path in (exported, config):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text(config, training.whole)
        if not exported.is_dir():  # it is there whole or not at all, and last
            _step("train.turboedit", f"--config={config}", f"--run.folder={folder}", *training.options)
            _step("train.export", folder, exported, "--dtype=float32", "--encoder_only=true")
        checkpoints = Checkpoints(folder / "checkpoints", keep=1)
        if not checkpoints.steps():
            raise ValueError(f"{folder} has no checkpoint, and {exported} is there: remove that too, to train it anew")
        progress = read_progress(checkpoints.path(checkpoints.steps()[-1]))
        record = measured_encoder(exported, self.scenes, editors, self.device)
        return {"minutes": progress.seconds / 60, **record}

    def report(self, in_words: bool = False) -> dict[str, Any]:
        """Write the page, results.json and table.csv of all that is done; the table is logged too, if asked for."""
        from data.jobs.device import choose_device
        from eval.objectives.figures import TrainedObjective, figure_rows, objective_figures
        from eval.objectives.page import objectives_words, write_objectives_page

        found: dict[str, dict[int, Any]] = {}
        origins: dict[str, dict[int, Any]] = {}
        for piece, training in self.trainings.items():
            if (record := self.kept.read(piece)) is not None:
                found.setdefault(training.row, {})[training.seed] = record
                origins.setdefault(training.row, {})[training.seed] = training_steps(self.out / "exports" / piece)
        trainings = list(self.trainings.values())
        texts = {training.row: training.text for training in trainings}
        results = objective_figures([TrainedObjective(row, found[row]) for row in texts if row in found], self.baseline)
        results["about"] = about(
            choose_device(self.device),
            rows=self.rows,
            seeds=list(dict.fromkeys(training.seed for training in trainings)),
            steps=list(dict.fromkeys(training.steps for training in trainings)),
            samples=list(dict.fromkeys(training.samples for training in trainings)),
            planned=len(trainings),
            done=sum(map(len, found.values())),
            scenes=self.scenes,
            trainings=origins,
        )
        summary = objectives_words(results) if in_words else None
        tables = {"table.csv": figure_rows(results)}
        finish(self.out, results, summary, tables, lambda: write_objectives_page(self.out, results, texts))
        return results


def _step(module: str, *words: object) -> None:
    """Run one command of the project to its end."""
    logger.info("$ python -m %s", shlex.join([module, *map(str, words)]))
    process = start_command(module, *words)
    process.join()
    if process.exitcode == _PREEMPTED:
        raise ValueError(f"{module} was asked to stop and has saved; the same command goes on from there")
    if process.exitcode:
        raise ValueError(f"{module} ended with status {process.exitcode}; its message stands above")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("train.objectives", compare_objectives, argv, positional=True)


if __name__ == "__main__":
    main()
