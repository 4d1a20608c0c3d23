"""Processes of the tests: started as `python -m` or `python -c` starts them, waited for, killed.

Importing PyTorch and diffusers takes eight seconds of a core, so most processes are forked from one that has done so
(`tests.fork_server`): real processes all the same, with their own pid, environment, files and signals. Each command and
each launcher is started `fresh` at least once. All forks of one worker share the seed of `hash`, so what is killed and
resumed in forks is compared with what a fresh process or this one has made.
"""

import contextlib
import functools
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CPU = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
OF_A_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
"""A real launch of two processes."""


def environment(**variables: str | None) -> dict[str, str]:
    """This process's environment for work on one core without network; None takes a variable out."""
    chosen = {name: value for name, value in os.environ.items() if name not in OF_A_LAUNCH} | CPU | variables
    return {name: value for name, value in chosen.items() if value is not None}


class Process:
    """A process whose output is kept."""

    def __init__(self, command: Sequence[str], folder: Path, variables: dict[str, str], fresh: bool) -> None:
        self.command = command
        outputs = [os.pipe() for _ in range(2)]  # pipes, because a limit of file sizes is put on some processes
        self._said = {reading: bytearray() for reading, _ in outputs}
        start = _start_fresh if fresh else _fork
        self.pid, self._end, self._read_status = start(command, folder, variables, [writing for _, writing in outputs])
        for reading, writing in outputs:
            os.set_blocking(reading, False)
            os.close(writing)
        self._status: int | None = None

    def poll(self, timeout: float | None = 0) -> int | None:
        """The exit status (minus the signal that ended it), or None if it still runs after `timeout` seconds."""
        until = math.inf if timeout is None else time.monotonic() + timeout
        while self._status is None:
            left = None if timeout is None else max(0, until - time.monotonic())
            if self._end in select.select([self._end, *self._said], [], [], left)[0]:
                self._status = self._read_status()
                os.close(self._end)
            self._listen()
            if time.monotonic() >= until:
                break
        return self._status

    def _listen(self) -> None:
        for reading, said in self._said.items():
            with contextlib.suppress(BlockingIOError):
                while heard := os.read(reading, 1 << 16):
                    said += heard

    def send(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it with SIGKILL and waits for that."""
        self.send(signal.SIGKILL)
        self.poll(None)

    def finished(self, status: int | None = 0) -> subprocess.CompletedProcess[str]:
        """What it has said until its end, which has to come with the status; None allows any.

        pytest's time limit ends the wait; what has not ended by then is killed.

        Raises:
            AssertionError: It ended otherwise.
        """
        with _killed_at_a_failure(self):
            self.poll(None)
        stdout, stderr = self.said()
        assert status in (self._status, None), f"{self.command} ended with {self._status}\n{stdout[-2000:]}\n{stderr}"
        return subprocess.CompletedProcess(self.command, self._status, stdout, stderr)

    def said(self) -> tuple[str, str]:
        """Stdout and stderr so far."""
        self._listen()
        stdout, stderr = self._said.values()
        return stdout.decode(), stderr.decode()


def start(
    *words: object, fresh: bool = False, program: str = sys.executable, folder: Path = ROOT, **variables: str | None
) -> Process:
    """Starts `python WORDS`, where the words begin with -m or -c, or another program.

    Args:
        words: What would follow `python`.
        fresh: In a new interpreter rather than forked from one that has imported much.
        program: Another one than Python; always fresh.
        folder: Where it works.
        variables: Changes of the environment; None takes a variable out.
    """
    command = [program, *map(str, words)]
    return Process(command, folder, environment(**variables), fresh or program != sys.executable)


def run(*words: object, status: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Starts the same and waits for its end, which has to come with the status."""
    return start(*words, **options).finished(status)


def start_ranks(number: int, *words: object, fresh: bool = False, **variables: str | None) -> list[Process]:
    """Starts processes that form one group, as torchrun would have them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        {name: str(value) for name, value in (group | {"RANK": r, "LOCAL_RANK": r}).items()} for r in range(number)
    ]
    return [start(*words, fresh=fresh, **(rank | variables)) for rank in ranks]


def finish(processes: Sequence[Process]) -> list[str]:
    """Waits for all; returns what each wrote to stderr. If one fails, so do the others, which would wait for it."""
    try:
        return [process.finished().stderr for process in processes]
    finally:
        for process in processes:
            process.kill()


def wait_for(condition: Callable[[], bool], *processes: Process) -> None:
    """Waits until something has happened that running processes bring about; they are killed if it does not."""
    with _killed_at_a_failure(*processes):
        while True:
            ended = [process for process in processes if process.poll() is not None]  # it may be the last that one does
            if condition():
                return
            assert not ended, f"{ended[0].command} ended too early"
            time.sleep(0.003)


@contextlib.contextmanager
def _killed_at_a_failure(*processes: Process) -> Iterator[None]:
    try:
        yield
    except BaseException as failure:
        for process in processes:
            process.kill()
            failure.add_note(f"{process.command} said {process.said()}")
        raise


def kill_when(condition: Callable[[], bool], process: Process) -> None:
    """Ends a process with SIGKILL as soon as something has happened."""
    wait_for(condition, process)
    process.kill()
    assert process.poll() == -signal.SIGKILL, f"{process.command} had ended by itself before it was killed"


Started = tuple[int, int, Callable[[], int]]
"""A pid, a descriptor that can be read from when the process has ended, and what reads its status then."""


def _start_fresh(command: Sequence[str], folder: Path, variables: dict[str, str], outputs: list[int]) -> Started:
    stdout, stderr = outputs
    process = subprocess.Popen(
        command, cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
    )
    return process.pid, os.pidfd_open(process.pid), process.wait


def _fork(command: Sequence[str], folder: Path, variables: dict[str, str], outputs: list[int]) -> Started:
    heard, report = os.pipe()
    request = {"words": command[1:], "folder": str(folder), "environment": variables}
    socket.send_fds(_server()[1], [json.dumps(request).encode()], [*outputs, report])
    os.close(report)
    pid = os.read(heard, 16)
    assert pid, "the process that forks has ended; its message is in pytest's stderr"
    return int(pid), heard, lambda: int(os.read(heard, 16))


@functools.cache
def _server() -> tuple[subprocess.Popen, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())]
        options = {"cwd": ROOT, "env": environment(), "stdin": subprocess.DEVNULL, "pass_fds": [theirs.fileno()]}
        return subprocess.Popen(command, **options), ours


def stop_forking() -> None:
    """Ends the process that forks the others, if there is one."""
    if _server.cache_info().currsize:
        process, requests = _server()
        requests.close()
        process.wait()
        _server.cache_clear()
