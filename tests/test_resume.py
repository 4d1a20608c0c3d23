"""A run that is killed with SIGKILL and started again is the run that was never killed, bit for bit."""

import json
import os
import random
import re
import resource
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import processes
from tests.processes import ROOT, TORCHRUN, Process, kill_when
from tests.tiny_training import SIZES, write_latents
from train.run.checkpoint import damage
from train.run.preemption import EXIT_CODE

STEPS = 32
# Logs, checkpoints and previews fall on different steps, so that a resume starts inside of a log interval.
OPTIONS = (
    *SIZES,
    *(
        f"--run.steps={STEPS}",
        "--run.micro_batch=4",
        "--log.log_every=4",
        "--log.checkpoint_every=7",
        "--log.preview_every=9",
    ),
    *("--optim.lr=1e-2", "--optim.decay=cosine", "--ema.decay=0.99", "--dropout=0.1", "--broken_key=sample0003"),
    "--time_per_step_sec=0.01",
)


def start(shards: Path, run: Path, *options: str, fresh: bool = False) -> Process:
    words = [*OPTIONS, f"--data.shards={shards}", f"--run.folder={run}", *options]
    return processes.start("-m", "tests.tiny_training", *words, fresh=fresh)


def finish(process: Process) -> str:
    return process.finished().stderr


def kill_at(process: Process, run: Path, step: int) -> None:
    """SIGKILL as soon as the metrics have reached a step."""
    kill_when(lambda: last_step(run) >= step, process)


def wait_for(process: Process, run: Path, step: int) -> None:
    processes.wait_for(lambda: last_step(run) >= step, process)


def last_step(run: Path) -> int:
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return json.loads(lines[-1])["step"] if lines else 0


def assert_same_run(run: Path, undisturbed: Path) -> None:
    assert (run / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
    names = sorted(path.name for path in (undisturbed / "checkpoints").iterdir())
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == names
    for name in names:
        for file in ("model.safetensors", "ema.safetensors", "optimizer.pt"):
            one, other = run / "checkpoints" / name / file, undisturbed / "checkpoints" / name / file
            assert one.read_bytes() == other.read_bytes(), f"{name}/{file}"
    for picture in (undisturbed / "samples").iterdir():
        assert (run / "samples" / picture.name).read_bytes() == picture.read_bytes()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    finish(start(shards, run, fresh=True))
    return run


def test_killed_twice_and_started_again(shards: Path, undisturbed: Path, tmp_path: Path):
    run, draw = tmp_path / "killed", random.Random()
    steps = sorted(draw.sample(range(4, STEPS - 4), 2))
    print(f"killing at steps {steps}")  # the steps are random; pytest shows them if the test fails
    for step in steps:
        kill_at(start(shards, run), run, step)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 32, "lo')  # a line that was cut off
    (run / "checkpoints" / ".partial-step-000035").mkdir(parents=True)
    output = finish(start(shards, run, "--data.workers=1"))
    if steps[-1] > 8:
        assert "resuming from" in output
    assert_same_run(run, undisturbed)
    assert f"is finished at step {STEPS}" in finish(start(shards, run, "--data.workers=1"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_asked_to_stop_it_saves_and_says_so(shards: Path, undisturbed: Path, tmp_path: Path, number: int):
    run = tmp_path / "asked"
    process = start(shards, run)
    wait_for(process, run, 8)
    process.send(number)
    output = process.finished(EXIT_CODE).stderr
    [stopped] = re.findall(r"stopped at step (\d+) as asked", output)
    assert (run / "checkpoints" / f"step-{int(stopped):06d}").is_dir()
    assert f"resuming from {run}/checkpoints/step-{int(stopped):06d}" in finish(start(shards, run))
    assert_same_end(run, undisturbed)


def test_ctrl_c_reaches_the_reading_processes_too_and_the_step_is_finished(shards: Path, tmp_path: Path):
    """Of a step of many micro batches the workers have read a few when a terminal's Ctrl-C comes to all processes."""
    run = tmp_path / "interrupted"
    batches = ("--run.micro_batch=1", "--run.global_batch=32", "--data.workers=1", "--log.log_every=1")
    process = start(shards, run, *batches)
    wait_for(process, run, 1)
    for reading in psutil.Process(process.pid).children(recursive=True):
        reading.send_signal(signal.SIGINT)
    process.send(signal.SIGINT)
    output = process.finished(EXIT_CODE).stderr
    assert output.count("SIGINT: the run saves") == 1 and "Traceback" not in output  # the workers take no notice
    [stopped] = re.findall(r"stopped at step (\d+) as asked", output)
    assert damage(run / "checkpoints" / f"step-{int(stopped):06d}") is None


def test_a_second_ctrl_c_ends_at_once(shards: Path, tmp_path: Path):
    run = tmp_path / "twice"
    process = start(shards, run, "--run.micro_batch=1", "--time_per_step_sec=0.3", "--log.log_every=1")
    wait_for(process, run, 1)
    process.send(signal.SIGINT)
    processes.wait_for(lambda: "SIGINT: the run saves" in process.said()[1], process)
    process.send(signal.SIGINT)
    assert "KeyboardInterrupt" in process.finished(None).stderr
    assert not list((run / "checkpoints").glob("step-*"))


def test_two_processes_end_by_the_first_ones_clock(shards: Path, tmp_path: Path):
    run = tmp_path / "limited"
    options = [*OPTIONS, "--run.steps=1000", "--run.time_limit_min=0.01", "--log.log_every=1000"]
    words = ["-m", "tests.tiny_training", *options, f"--data.shards={shards}", f"--run.folder={run}"]
    output = processes.finish(processes.start_ranks(2, *words))[0]
    [ended] = re.findall(r"ended at step (\d+) of 1000", output)
    assert damage(run / "checkpoints" / f"step-{int(ended):06d}") is None
    assert last_step(run) == int(ended) < 1000


def test_two_processes_stop_together(shards: Path, tmp_path: Path):
    """Though the first is asked alone."""
    run = tmp_path / "asked"
    words = ["-m", "tests.tiny_training", *OPTIONS, f"--data.shards={shards}", f"--run.folder={run}"]
    ranks = processes.start_ranks(2, *words)
    processes.wait_for(lambda: last_step(run) >= 8, *ranks)
    ranks[0].send(signal.SIGTERM)
    outputs = [process.finished(EXIT_CODE).stderr for process in ranks]
    [stopped] = re.findall(r"stopped at step (\d+) as asked", outputs[0])
    assert damage(run / "checkpoints" / f"step-{int(stopped):06d}") is None


@pytest.mark.long
def test_torchrun_stops_its_processes(shards: Path, tmp_path: Path):
    run = tmp_path / "asked"
    words = [*TORCHRUN, "-m", "tests.tiny_training", *OPTIONS, f"--data.shards={shards}", f"--run.folder={run}"]
    process = processes.start(*words, fresh=True)
    wait_for(process, run, 8)
    process.send(signal.SIGTERM)
    output = process.finished(1).stderr  # torchrun's own status, whatever its processes say
    [stopped] = re.findall(r"stopped at step (\d+) as asked", output)
    assert damage(run / "checkpoints" / f"step-{int(stopped):06d}") is None


SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
pids=()
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & pids+=($!); done
trap 'kill -USR1 "${pids[@]}"' USR1
echo $$ > srun.pid
code=0
for pid in "${pids[@]}"; do
  while kill -0 "$pid" 2>/dev/null; do wait "$pid"; found=$?; done
  code=$((found > code ? found : code))
done
exit $code
"""

SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> requeued; fi
"""


@pytest.mark.long
@pytest.mark.parametrize("tasks", [1, 2])
def test_the_slurm_template_puts_a_preempted_job_back(shards: Path, undisturbed: Path, tmp_path: Path, tasks: int):
    """With programs in the places of srun and scontrol; a second start goes on to the end."""
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    variables = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    variables |= {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_CPUS_PER_TASK": "1", "SLURM_JOB_ID": str(os.getpid())}
    variables |= {"SLURM_NTASKS": str(tasks), "SLURM_JOB_NODELIST": "here"}
    run = tmp_path / "run"
    words = [ROOT / "scripts/cluster/train.sbatch", "tests.tiny_training", *OPTIONS]
    words += [f"--data.shards={shards}", f"--run.folder={run}"]

    def submit() -> Process:
        return processes.start(*words, program="bash", **variables)

    job = submit()
    wait_for(job, run, 8)
    os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGUSR1)
    job.finished(EXIT_CODE)
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
    assert f"{tasks} process(es) on cpu" in finish(submit())
    ours, theirs = ([json.loads(line) for line in (r / "metrics.jsonl").open()] for r in (run, undisturbed))
    for line, expected in zip(ours, theirs, strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_a_damaged_checkpoint_costs_some_steps_and_nothing_else(shards: Path, undisturbed: Path, tmp_path: Path):
    run = tmp_path / "damaged"
    kill_at(start(shards, run), run, 24)
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:-100])
    output = finish(start(shards, run))
    assert f"checkpoint {newest.name}: optimizer.pt is not what was written; taking the one before it" in output
    assert_same_run(run, undisturbed)


def test_a_full_disk_says_what_to_do_and_costs_nothing(shards: Path, undisturbed: Path, tmp_path: Path):
    run = tmp_path / "full"
    process = start(shards, run)
    wait_for(process, run, 8)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, 0))
    assert f"{run} cannot take more: File too large" in process.finished(1).stderr
    finish(start(shards, run))
    assert_same_run(run, undisturbed)


@pytest.mark.long
def test_killed_at_any_moment(shards: Path, undisturbed: Path, tmp_path: Path):
    run, draw = tmp_path / "killed", random.Random()
    while last_step(run) < STEPS:
        process = start(shards, run, "--log.checkpoint_every=2")
        time.sleep(draw.uniform(2, 5))
        process.kill()
    finish(start(shards, run, "--log.checkpoint_every=2"))
    assert_same_end(run, undisturbed)


def assert_same_end(run: Path, undisturbed: Path) -> None:
    """Metrics and the last checkpoint are the same."""
    assert (run / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
    for file in ("model.safetensors", "ema.safetensors", "optimizer.pt"):
        newest = Path("checkpoints") / f"step-{STEPS:06d}" / file
        assert (run / newest).read_bytes() == (undisturbed / newest).read_bytes()
