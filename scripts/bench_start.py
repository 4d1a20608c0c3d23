"""Seconds until each command has written its help, or has told a mistyped option, beside `import torch`.

    python -m scripts.bench_start
    python -m scripts.bench_start --root ../older-clone --select '[eval.scenes,train.turboedit]'

The commands are found by listing the packages' folders. Each is started as a user starts it, in a process of its own.
The last line printed is one JSON object; ratio is value / reference, the reference `python -c "import torch"` in the
same run.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.jobs.command import run
from scripts.bench.results import print_results, result

PACKAGES = ("data", "eval", "train", "scripts")
WORDS = {"help": "--help", "typo": "--no_such_option=1"}
EXPECTED_STATUS = {"help": 0, "typo": 2}


@dataclass(frozen=True)
class Start:
    """A finished process: its seconds on the wall clock and of CPU time, its exit status and the lines it wrote."""

    wall_sec: float
    cpu_sec: float
    status: int
    lines: int


def bench(
    root: Path = Path(),
    python: Path | None = None,
    repeats: int = 1,
    select: tuple[str, ...] = (),
) -> list[dict[str, Any]]:
    """Measure the start of every command.

    Args:
        root: Root of the clone whose commands are measured.
        python: Interpreter; .venv/bin/python of the clone by default, or the one that runs this where there is none.
        repeats: Starts of each command, of which the medians count.
        select: Commands to measure, such as eval.scenes; all by default.

    Returns:
        The results that are printed.

    Raises:
        ValueError: There is no such command, or no repeat at all.
    """
    if repeats < 1:
        raise ValueError(f"--repeats is {repeats}, expected at least 1")
    known = commands(root)
    if not known:
        raise ValueError(f"--root {root}: expected a clone with the folders {', '.join(PACKAGES)}")
    if unknown := sorted(set(select) - set(known)):
        raise ValueError(f"--select {', '.join(unknown)}: expected some of {', '.join(known)}")
    own = root.absolute() / ".venv/bin/python"
    interpreter = str(python or (own if own.is_file() else sys.executable))
    names = [name for name in known if name in select or not select]
    torch: list[Start] = []
    starts: dict[tuple[str, str], list[Start]] = {(name, kind): [] for name in names for kind in WORDS}
    bar = tqdm(total=repeats * (1 + len(starts)), unit=" starts", desc="start")
    with bar:
        for _ in range(repeats):
            torch.append(start([interpreter, "-c", "import torch"], root))
            bar.update()
            for (name, kind), found in starts.items():
                bar.set_postfix_str(name)
                found.append(start([interpreter, "-m", name, WORDS[kind]], root))
                bar.update()
    print(table(torch, starts))
    return start_results(torch, starts)


def commands(root: Path) -> list[str]:
    """Names of all modules of a clone that can be run, such as eval.scenes."""
    paths = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    runnable = (path.relative_to(root) for path in paths if '__name__ == "__main__"' in path.read_text())
    return [".".join(path.with_suffix("").parts) for path in runnable]


def start(command: Sequence[str], folder: Path) -> Start:
    """Run a command in a folder to its end."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as output:
        begin = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)  # wait4 has taken it from Popen
        output.seek(0)
        lines = len(output.read().splitlines())
    return Start(wall, usage.ru_utime + usage.ru_stime, process.returncode, lines)


def start_results(torch: Sequence[Start], starts: dict[tuple[str, str], list[Start]]) -> list[dict[str, Any]]:
    """Two results for each command and kind of start: on the wall clock and of CPU time."""
    found = []
    for (name, kind), measured in starts.items():
        for clock, field in (("wall", "wall_sec"), ("CPU", "cpu_sec")):
            value, reference = (statistics.median(getattr(one, field) for one in side) for side in (measured, torch))
            found.append(result(f"{name}: {kind}, {clock}", value, "s", reference))
    return found


def table(torch: Sequence[Start], starts: dict[tuple[str, str], list[Start]]) -> str:
    """A Markdown table, a row for each command and kind of start; another exit status than the expected is marked."""
    lines = ["| command | start | wall, s | CPU, s | CPU to torch | lines | status |", "|---|---|---|---|---|---|---|"]
    reference = statistics.median(one.cpu_sec for one in torch)
    wall = statistics.median(one.wall_sec for one in torch)
    lines.append(f'| python -c "import torch" | | {wall:.2f} | {reference:.2f} | 1.00 | | |')
    for (name, kind), measured in starts.items():
        wall, cpu = (statistics.median(getattr(one, field) for one in measured) for field in ("wall_sec", "cpu_sec"))
        status = measured[-1].status
        mark = "" if status == EXPECTED_STATUS[kind] else f", expected {EXPECTED_STATUS[kind]}"
        row = f"{wall:.2f} | {cpu:.2f} | {cpu / reference:.2f} | {measured[-1].lines} | {status}{mark}"
        lines.append(f"| {name} | {kind} | {row} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    print_results(run("scripts.bench_start", bench, argv))


if __name__ == "__main__":
    main()
