"""Disturbances that can befall a training, and what it has to do then. scripts/chaos.py draws from DISTURBANCES.

Each starts the training by its one command, once or several times, and leaves it unfinished (if it is not too late) in
a state from which the same command has to go on.
"""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from train.run.checkpoint import Checkpoints, damage
from train.run.preemption import EXIT_CODE

STEPS = 60
# Logs, checkpoints and previews fall on different steps, so that a resume starts inside of a log interval.
OPTIONS = (
    *(f"--run.steps={STEPS}", "--run.global_batch=8", "--run.micro_batch=4", "--optim.lr=1e-2", "--optim.decay=cosine"),
    *("--log.log_every=4", "--log.checkpoint_every=7", "--log.preview_every=9", "--ema.decay=0.99", "--dropout=0.1"),
    *("--broken_key=sample0003", "--time_per_step_sec=0.01"),
)
LONGEST_START_SEC = 120


class Broken(Exception):
    """The training did not do what it has to after a disturbance; the text says what."""


@dataclass
class Training:
    """tests.tiny_training in one run folder, started as often as needed by one command.

    Args:
        folder: Run folder.
        shards: Shards of the workload, written at the first start if they are not there.
        processes: Gloo processes through torchrun, or 1 for plain python.
        max_bad_share: Share of the samples that the loader may replace.
        starts: Starts so far.
    """

    folder: Path
    shards: Path
    processes: int = 1
    max_bad_share: float = 0.0
    starts: int = 0

    @property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        return Checkpoints(self.folder / "checkpoints", keep=2)

    def start(self) -> subprocess.Popen[str]:
        """The command, running."""
        self.starts += 1
        torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.processes}")
        command = [sys.executable, *(torchrun if self.processes > 1 else ()), "-m", "tests.tiny_training", *OPTIONS]
        command += [f"--run.folder={self.folder}", f"--data.shards={self.shards}", "--data.workers=0"]
        command += [f"--data.max_bad_share={self.max_bad_share}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def end(self, process: subprocess.Popen[str], refusal: str = "") -> str:
        """The output of a start that has been disturbed or has to end by itself.

        Args:
            refusal: Pattern of the message with which the start has to fail, unless it reached the last step.

        Raises:
            Broken: It hangs, or failed without that message.
        """
        try:
            output = process.communicate(timeout=LONGEST_START_SEC)[0]
        except subprocess.TimeoutExpired as error:
            for victim in [*psutil.Process(process.pid).children(recursive=True), process]:
                victim.kill()
            raise Broken(f"still runs after {LONGEST_START_SEC} s:\n{process.communicate()[0]}") from error
        if process.returncode and not re.search(refusal, output):
            raise Broken(f"failed without saying {refusal!r}:\n{output}")
        return output

    def finish(self) -> None:
        """Start and let it end.

        Raises:
            Broken: It failed.
        """
        process = self.start()
        output = self.end(process)
        if process.returncode:
            raise Broken(f"ended with status {process.returncode}:\n{output}")

    def ranks(self, process: subprocess.Popen[str]) -> list[psutil.Process]:
        """The training processes of a start; none while torchrun has not made them."""
        parent = psutil.Process(process.pid)
        return [parent] if self.processes == 1 else parent.children()

    def last_step(self) -> int:
        """The newest step in the metrics."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.is_file() else []
        return json.loads(lines[-1])["step"] if lines else 0

    def check_whole(self) -> None:
        """Look at what was left behind.

        Raises:
            Broken: A folder is named like a checkpoint and is not whole.
        """
        for step in self.checkpoints.steps():
            if problem := damage(self.checkpoints.path(step)):
                raise Broken(f"{self.checkpoints.path(step)} looks finished, but {problem}")


Disturbance = Callable[[Training, random.Random], bool]
"""Disturb a training and say whether there was still something to disturb. Raises Broken."""


def killed(training: Training, draw: random.Random) -> bool:
    """SIGKILL of one rank, while it starts or trains or saves."""
    process = training.start()
    reached = draw.choice((_starting, _training, _saving))(training, process, draw)
    if reached:
        _kill_a_rank(training, process, draw)
    training.end(process)
    training.check_whole()
    return reached


def asked_to_stop(training: Training, draw: random.Random) -> bool:
    """SIGTERM, without a launcher also SIGUSR1: the run saves and says so."""
    return _stopped(training, draw, must_say="")


def disk_full(training: Training, draw: random.Random) -> bool:
    """A limit of a few kB on the length of files (RLIMIT_FSIZE) from some moment on, less than a checkpoint needs."""
    process = training.start()
    reached = draw.choice((_starting, _training, _saving))(training, process, draw)
    if reached:
        limit = draw.randrange(9000)
        for rank in training.ranks(process):
            with suppress(ProcessLookupError):  # it has just ended by itself
                resource.prlimit(rank.pid, resource.RLIMIT_FSIZE, (limit, limit))
    training.end(process, refusal="free space or raise the quota")
    training.check_whole()
    return reached


def newest_checkpoint_damaged(training: Training, draw: random.Random) -> bool:
    """Damage to the newest checkpoint, after which the one before it is taken."""
    if not _kill_with_checkpoints(training, draw, at_least=2):
        return False
    _harm_checkpoint(training.checkpoints.path(training.checkpoints.steps()[-1]), draw)
    return _stopped(training, draw, must_say="taking the one before it")


def all_checkpoints_damaged(training: Training, draw: random.Random) -> bool:
    """Damage to all checkpoints: the next start has to refuse; then they are brought back."""
    if not _kill_with_checkpoints(training, draw, at_least=1):
        return False
    folder = training.checkpoints.folder
    aside = folder.with_name("checkpoints-aside")
    shutil.copytree(folder, aside)
    for step in training.checkpoints.steps():
        _harm_checkpoint(training.checkpoints.path(step), draw)
    _has_to_refuse(training, "no checkpoint in .* is whole")
    shutil.rmtree(folder)
    aside.rename(folder)
    return True


def shards_damaged(training: Training, draw: random.Random) -> bool:
    """Damage to shards: the next start has to stop at the first bad sample; then the shards are brought back."""
    tars = sorted(training.shards.glob("*.tar"))
    contents = {tar: tar.read_bytes() for tar in draw.sample(tars, len(tars) - 1)}
    for tar in contents:
        harm_shard(tar, draw, silently=False)
    output = training.end(training.start(), refusal="could not be read .*data.max_bad_share")
    for tar, content in contents.items():
        tar.write_bytes(content)
    training.check_whole()
    return "could not be read" in output


DISTURBANCES: dict[str, Disturbance] = {
    "a rank killed": killed,
    "asked to stop": asked_to_stop,
    "disk full": disk_full,
    "newest checkpoint damaged": newest_checkpoint_damaged,
    "all checkpoints damaged": all_checkpoints_damaged,
    "shards damaged": shards_damaged,
}


def harm_shard(tar: Path, draw: random.Random, silently: bool) -> None:
    """Truncate a tar or remove it; `silently` may also turn bits, which the loader need not notice."""
    content = bytearray(tar.read_bytes())
    way = draw.choice(("truncate", "remove", *(("turn bits",) if silently else ())))
    if way == "remove":
        tar.unlink()
    elif way == "truncate":
        tar.write_bytes(content[: draw.randrange(len(content) // 2)])
    else:
        for _ in range(50):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        tar.write_bytes(content)


def _harm_checkpoint(folder: Path, draw: random.Random) -> None:
    """Truncate, change or remove one file."""
    path = draw.choice(sorted(folder.iterdir()))
    content = bytearray(path.read_bytes())
    way = draw.choice(("truncate", "change", "remove"))
    if way == "remove":
        path.unlink()
        return
    if way == "change":
        content[draw.randrange(len(content))] ^= 1
    # A checksum file without its last byte, a line's end, says the same.
    path.write_bytes(content if way == "change" else content[: draw.randrange(len(content) - 1)])


def _stopped(training: Training, draw: random.Random, must_say: str) -> bool:
    """Let a start come to a random moment and ask it to stop; False if it was too late for that."""
    process = training.start()
    reached = draw.choice((_training, _saving))(training, process, draw)
    if reached:
        process.send_signal(signal.SIGTERM if training.processes > 1 else draw.choice((signal.SIGTERM, signal.SIGUSR1)))
    output = training.end(process, refusal=r"stopped at step \d+ as asked")
    training.check_whole()
    expected = 1 if training.processes > 1 else EXIT_CODE  # torchrun makes 1 of every code
    if process.returncode not in (0, expected):
        raise Broken(f"ended with status {process.returncode}, expected {expected}:\n{output}")
    if must_say not in output:
        raise Broken(f"did not say {must_say!r}:\n{output}")
    for step in re.findall(r"stopped at step (\d+) as asked", output):
        if int(step) not in training.checkpoints.steps():
            raise Broken(f"stopped at step {step} without a checkpoint of it")
    return reached


def _has_to_refuse(training: Training, message: str) -> None:
    process = training.start()
    output = training.end(process, refusal=message)
    if not process.returncode:
        raise Broken(f"started, but had to refuse with {message!r}:\n{output}")


def _kill_with_checkpoints(training: Training, draw: random.Random, at_least: int) -> bool:
    """Kill a start once there are so many checkpoints; False if it ended before."""
    process = training.start()
    reached = _wait(process, lambda: len(training.checkpoints.steps()) >= at_least)
    reached = reached and _training(training, process, draw)
    if reached:
        _kill_a_rank(training, process, draw)
    training.end(process)
    training.check_whole()
    return reached


def _kill_a_rank(training: Training, process: subprocess.Popen[str], draw: random.Random) -> None:
    """Kill one rank; torchrun ends the others, or itself where there are none yet."""
    with suppress(psutil.NoSuchProcess):  # it has just ended by itself
        draw.choice(training.ranks(process) or [process]).kill()


def _starting(training: Training, process: subprocess.Popen[str], draw: random.Random) -> bool:
    """Wait for a moment at which imports or the first steps are under way; False if the process ended before."""
    until = time.monotonic() + draw.uniform(0, 4 * training.processes)
    return _wait(process, lambda: time.monotonic() > until and bool(training.ranks(process)))


def _training(training: Training, process: subprocess.Popen[str], draw: random.Random) -> bool:
    """Wait for one of the next steps."""
    step = training.last_step() + draw.randint(1, 16)
    return _wait(process, lambda: training.last_step() >= step)


def _saving(training: Training, process: subprocess.Popen[str], draw: random.Random) -> bool:
    """Wait for a checkpoint that is half written, or an old one that is half removed."""
    folder = training.checkpoints.folder
    left = {path.name for path in folder.glob(".partial-*")}  # by an earlier start
    return _training(training, process, draw) and _wait(
        process, lambda: any(path.name not in left for path in folder.glob(".partial-*"))
    )


def _wait(process: subprocess.Popen[str], condition: Callable[[], bool]) -> bool:
    """Wait until `condition`; False if the process ended before."""
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(0.0005)
    return True
