"""Break one line of the project at a time and see that the tests notice.

    python -m scripts.mutants
    python -m scripts.mutants --jobs 2 --select '[kl-sign,psnr-factor]'

The lines and the tests that have to notice each stand in scripts/faults/broken_lines.py. Each is broken in a temporary
copy of the clone, in which its tests have passed before. Ends with status 1 if a broken line goes unnoticed. The last
line printed is one JSON object.
"""

import multiprocessing
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from data.jobs.command import run
from scripts.bench.results import print_results
from scripts.faults.broken_lines import BROKEN_LINES, BrokenLine

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("data", "eval", "models", "scripts", "tests", "train")
PASSED, FAILED = 0, 1  # exit statuses of pytest; all others say that no test has judged

LIBRARIES = (
    "accelerate",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl",
    "peft",
    "pytest",
    "torchmetrics",
    "transformers.models.clip.modeling_clip",
    "webdataset",
)
"""What the process imports once from which those of the tests are forked: it takes longer than most tests."""

_PROCESSES = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Noticed:
    """Whether the tests of a broken line failed, how many seconds they took, and the end of what they said."""

    name: str
    noticed: bool
    seconds: float
    said: str


def mutants(root: Path = ROOT, select: tuple[str, ...] = (), jobs: int = 1) -> list[Noticed]:
    """Break lines one at a time and run the tests that have to notice.

    Args:
        root: Root of the clone, a git checkout.
        select: Names of the lines to break; all by default.
        jobs: Lines that are broken at a time, each in a copy of its own.

    Returns:
        What became of each.

    Raises:
        ValueError: A name is not known, a line does not stand in its file exactly once, a file of tests is missing, or
            tests fail before anything is broken.
    """
    names = [line.name for line in BROKEN_LINES]
    if unknown := sorted(set(select) - set(names)):
        raise ValueError(f"--select {', '.join(unknown)}: expected some of {', '.join(names)}")
    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}, expected at least 1")
    lines = [line for line in BROKEN_LINES if line.name in select or not select]
    check_lines(root, lines)
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    _PROCESSES.set_forkserver_preload(list(LIBRARIES))
    copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder, tqdm(total=len(lines) + 1, unit=" lines", desc="mutants") as bar:
        for number in range(jobs):
            copies.put(copy_clone(root, Path(folder) / str(number)))
        status, said = run_tests(Path(folder) / "0", sorted({test for line in lines for test in line.tests}))
        if status != PASSED:
            raise ValueError(f"these tests have to pass before a line is broken:\n{said}")
        bar.update()

        def judge(line: BrokenLine) -> Noticed:
            copy = copies.get()
            try:
                return break_line(copy, line)
            finally:
                copies.put(copy)

        found = []
        with ThreadPoolExecutor(jobs) as pool:
            for future in as_completed([pool.submit(judge, line) for line in lines]):
                found.append(future.result())
                bar.update()
    return sorted(found, key=lambda one: names.index(one.name))


def check_lines(root: Path, lines: Sequence[BrokenLine]) -> None:
    """Check that each line stands in its file and that its tests are there.

    Raises:
        ValueError: One does not.
    """
    for line in lines:
        path = root / line.path
        times = path.read_text(encoding="utf-8").count(line.original) if path.is_file() else 0
        if times != 1:
            raise ValueError(
                f"{line.name}: {line.path} holds {line.original.strip()!r} {times} times, expected once; "
                "bring scripts/faults/broken_lines.py up to date"
            )
        for test in line.tests:
            if not (root / test.partition("::")[0]).is_file():
                raise ValueError(f"{line.name}: there is no {test}; bring scripts/faults/broken_lines.py up to date")


def copy_clone(root: Path, folder: Path) -> Path:
    """Copy the files that git knows or would add, as they are now; returns `folder`.

    Raises:
        ValueError: `root` is no git checkout.
    """
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode:
        raise ValueError(f"--root {root}: expected a git checkout ({listed.stderr.strip()})")
    for name in filter(None, listed.stdout.split("\0")):
        if (root / name).is_file():  # one that was removed is still listed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
    return folder


def break_line(copy: Path, line: BrokenLine) -> Noticed:
    """Break a line in a copy of the clone, run its tests and mend it.

    Raises:
        ValueError: The tests could not judge, as where the broken file cannot be imported.
    """
    path = copy / line.path
    whole = path.read_text(encoding="utf-8")
    start = time.monotonic()
    try:
        path.write_text(whole.replace(line.original, line.broken), encoding="utf-8")
        status, said = run_tests(copy, line.tests)
    finally:
        path.write_text(whole, encoding="utf-8")
    if status not in (PASSED, FAILED):
        raise ValueError(f"{line.name}: pytest ended with status {status}, so no test has judged:\n{said}")
    return Noticed(line.name, status == FAILED, round(time.monotonic() - start, 1), said)


def run_tests(copy: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run tests in a copy of the clone up to the first failure; returns pytest's status and its last lines."""
    log = copy / "pytest.log"
    process = _PROCESSES.Process(target=_pytest, args=(copy, log, tests))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])


def _pytest(copy: Path, log: Path, tests: Sequence[str]) -> None:
    """Run pytest in this process, which has the libraries and takes the project's own modules from the copy."""
    with log.open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.chdir(copy)
    sys.path[:] = [str(copy), *(path for path in sys.path if path and Path(path).resolve() != ROOT)]
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]
    # Without bytecode: a changed file of the same second and size would be taken for the one before.
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    import pytest

    sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", f"--rootdir={copy}", *tests]))


def table(found: Sequence[Noticed]) -> str:
    """A Markdown table, a row for each broken line."""
    lines = ["| broken line | file | noticed | s | harm |", "|---|---|---|---|---|"]
    known = {line.name: line for line in BROKEN_LINES}
    for one in found:
        line = known[one.name]
        lines.append(f"| {one.name} | {line.path} | {'yes' if one.noticed else 'NO'} | {one.seconds} | {line.harm} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    found = run("scripts.mutants", mutants, argv)
    unnoticed = [one.name for one in found if not one.noticed]
    print(f"{table(found)}\n\n{len(found) - len(unnoticed)} of {len(found)} broken lines were noticed")
    print_results([asdict(one) for one in found])
    sys.exit(1 if unnoticed else 0)


if __name__ == "__main__":
    main()
