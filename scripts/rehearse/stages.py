"""The stages of the rehearsal, in order, each the command that a person would type."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from scripts.rehearse.measured import GB, Row, fitting_dtype, gpu_gb, measure_stage, table, watched_gpu

ROOT = Path(__file__).parents[2]
STRANGER = Path(__file__).with_name("stranger.py")
LORA = "configs/turboedit/sdxl_24gb.yaml"
WHOLE = "configs/turboedit/sdxl_turbo.yaml"
WHOLE_GB = 72
"""Memory of a GPU from which on all of the encoder is trained for a few steps too."""

VARIANT = "fp16"
ENCODER_ONLY = "--encoder_only=true"
BATCH = 2
SIDES = {"full": 512, "tenth": 128}
PLAN_TOLERANCE = 0.1
KEPT_GB = 0.5
"""What the allocators may keep beside what is in use; all that counts at a tenth of the width."""

EXPORT_SHARE = 1.3
"""Largest memory of an export beside the libraries, as a share of the bytes that it writes."""


class Rehearsal:
    """The folder of a rehearsal and what its stages took.

    Args:
        out: Folder for everything that is built.
        size: "full" or "tenth".
        device: Device of all stages.
        dtype: Dtype of the frozen networks, or "auto".
        images: Photographs with captions, or None to make some.
        steps: Steps of the training before it is resumed.

    Attributes:
        rows: What the stages took so far.
    """

    def __init__(self, out: Path, size: str, device: str, dtype: str, images: Path | None, steps: int) -> None:
        self.out, self.size, self.device, self.steps = out, size, device, steps
        self.makes_images = images is None
        self.rows: list[Row] = []
        self._gpu = watched_gpu(device)
        self._dtype = fitting_dtype(self._gpu is not None) if dtype == "auto" else dtype
        self._work = out / "work"
        self.images = self._work / "photographs" if images is None else images.resolve()
        self._model = self._work / "sdxl-turbo"
        self._run = self._work / "run"
        self._libraries_gb = 0.0

    def run(self) -> None:
        """Take all stages.

        Raises:
            ValueError: A stage failed.
        """
        self._work.mkdir()
        libraries = self._stage("libraries alone", "-c", "import train.engine, train.methods.turboedit.task")
        self._libraries_gb = libraries.host_gb
        self._stage("build the model", "-c", _BUILD, self._model, self.size)
        if self.makes_images:
            self._stage("photographs", "-c", _PHOTOGRAPHS, self.images)
        backbone = (f"--backbone={self._model}", f"--variant={VARIANT}")
        shards, latents, side = self._work / "shards", self._work / "latents", SIDES[self.size]
        sizes = (f"--resolution={side}", f"--min-size={side}", "--shapes=buckets")
        self._command("data.caption", self.images, shards, "--engine=existing", *sizes)
        self._command("data.inspect", shards, *backbone)
        self._command("data.encode", shards, latents, *backbone, f"--device={self.device}")
        self._trainings(LORA, self._run)
        if self.size == "full" and self._gpu is not None and gpu_gb(self._gpu) >= WHOLE_GB:
            self._trainings(WHOLE, self._work / "whole", ", in full")
        whole_gb = 0.0
        for name, option in {"merged": "--lora=merged", "apart": "--lora=apart", "encoder_only": ENCODER_ONLY}.items():
            out = self._work / name
            options = (option, f"--device={self.device}")
            row = self._command("train.export", self._run, out, *options, title=f"export, {name}")
            # Parts of an export are written with the whole pipeline in memory, which tries them out.
            whole_gb = whole_gb or sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / GB
            promised = EXPORT_SHARE * whole_gb
            words = f"{promised:.1f} GB beside the libraries: {EXPORT_SHARE} of a whole export's {whole_gb:.1f} GB"
            self._promise(row, words, row.host_gb - self._libraries_gb <= promised + KEPT_GB)
        photograph = next(path for path in sorted(self.images.rglob("*")) if path.suffix in (".jpg", ".png"))
        device = self.device if self.device != "auto" else "cpu" if self._gpu is None else "cuda"
        for name in ("merged", "encoder_only"):
            alone = ("-I", STRANGER, self._work / name, photograph, device, self._dtype)
            self._stage(f"diffusers alone, {name}", *alone, folder=self.out)

    def _trainings(self, config: str, run: Path, title: str = "") -> None:
        """Plan a training, run it, and resume it for one step."""
        plan = self._work / f"{run.name}.json"
        machine = ("--gpus=1", "--gpu_memory=80", "--preset=one_gpu", f"--json={plan}")
        self._command("train.plan", *self._training(config, run, self.steps), *machine, title=f"train.plan{title}")
        for name, steps in (("train", self.steps), ("resume", self.steps + 1)):
            row = self._command("train.turboedit", *self._training(config, run, steps), title=f"{name}{title}")
            self._promise(row, *self._planned(row, plan, run))

    def close(self, keep: bool) -> None:
        """Write the table, print it, and remove what was built unless it is to be kept."""
        text = table(self.rows)
        (self.out / "rehearsal.md").write_text(text + "\n")
        rows = [vars(row) for row in self.rows]
        (self.out / "rehearsal.json").write_text(json.dumps(rows, indent=1) + "\n")
        print(f"\n{text}")
        if not keep:
            shutil.rmtree(self._work, ignore_errors=True)

    def _training(self, config: str, run: Path, steps: int) -> list[str]:
        return [
            f"--config={config}",
            *(f"--run.folder={run}", f"--run.steps={steps}", f"--run.device={self.device}", "--run.processes=1"),
            *(f"--run.global_batch={BATCH}", f"--run.micro_batch={BATCH}", "--data.workers=0"),
            *(f"--data.shards={self._work / 'latents'}", f"--generator.path={self._model}"),
            *(f"--generator.variant={VARIANT}", f"--generator.dtype={self._dtype}"),
            *(f"--run.mixed_precision={'no' if self._dtype == 'float32' else 'bf16'}",),
            *("--log.log_every=1", "--log.preview_every=0"),
        ]

    def _planned(self, row: Row, plan: Path, run: Path) -> tuple[str, bool]:
        """What the plan promised of a training's memory and seconds, and whether that of memory was kept.

        On a GPU it is the memory that torch has allocated; on a CPU the process's, less that of the libraries. Seconds
        are a GPU's, an H100's as the plan takes it, and only said.
        """
        counted = json.loads(plan.read_text())
        planned = sum(counted["alone"]["memory"]["gpu"].values()) / GB
        last = json.loads((run / "timing.jsonl").read_text().splitlines()[-1])
        on_gpu = self._gpu is not None
        found = last["peak_memory_gb"] if on_gpu else row.host_gb - self._libraries_gb
        words = f"{planned:.1f} GB by train.plan, {found:.1f} found"
        if on_gpu:
            promised, measured = counted["seconds_per_step"]["one_gpu"], last["step_sec_p50"]
            words += f"; {promised:.2f} s a step on an H100, {measured:.2f} found"
        return words, abs(found - planned) <= max(PLAN_TOLERANCE * planned, KEPT_GB)

    def _command(self, module: str, *words: object, title: str = "") -> Row:
        return self._stage(title or module, "-m", module, *words)

    def _stage(self, name: str, *words: object, folder: Path = ROOT) -> Row:
        row = measure_stage(name, [str(word) for word in words], folder, self._gpu)
        self.rows.append(row)
        return row

    def _promise(self, row: Row, promised: str, kept: bool) -> None:
        """Add a promise to the newest row, beside that of the host's memory."""
        assert self.rows[-1] is row
        self.rows[-1] = replace(row, promised=promised, kept=kept and row.kept is not False)


_BUILD = """\
import sys
from pathlib import Path
from scripts.rehearse.model import write_model
write_model(Path(sys.argv[1]), sys.argv[2])
"""

_PHOTOGRAPHS = """\
import sys
from pathlib import Path
from scripts.rehearse.model import write_varied_photographs
write_varied_photographs(Path(sys.argv[1]))
"""
