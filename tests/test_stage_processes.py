"""Stages in many processes: shared, killed at random moments, started again with other numbers, on a full disk."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.encode import EncodeConfig, encode_shards
from data.jobs.errors import ShardError
from data.jobs.files import temporary_path
from data.jobs.progress import Progress
from data.jobs.sharing import LOCK, Ranks
from data.shards.shard import Drop, Sample, file_digest, read_sidecars
from data.shards.stage import Unit, divide, run_stage
from tests import processes
from tests.nasty_pictures import Nasty, nasty_pictures, picture, saved, write_folder
from tests.processes import ROOT, Process, finish, kill_when, start, start_ranks, wait_for
from tests.shard_folders import make_latents, make_sample, origin, sources

SIDE = 64
UNIT_SIZE = 4


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files below a folder but the locks."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def words(module: str, *options: object, **named: object) -> list[object]:
    """What starts a stage."""
    return ["-m", module, *options, *(f"--{name}={value}" for name, value in named.items())]


def launch(processes: int, *words: object) -> Process:
    """Starts a stage through the real `accelerate launch`."""
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=1", f"--num_processes={processes}"]
    launcher += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    return start(*launcher, *words, fresh=True)


# --- what ranks are ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Ranks(0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, Ranks(3, 8)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, Ranks(1, 2)),
        ({"RANK": "0", "WORLD_SIZE": "4", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, Ranks(0, 4)),
        ({"RANK": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, Ranks(1, 2)),
    ],
)
def test_ranks_come_from_the_launcher(monkeypatch, environment, expected):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Ranks.of_launch() == expected


@pytest.mark.parametrize(("rank", "world_size"), [("2", "2"), ("-1", "2"), ("x", "2")])
def test_ranks_that_do_not_fit_are_refused(monkeypatch, rank, world_size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(ValueError, match=f"RANK={rank} and WORLD_SIZE=2"):
        Ranks.of_launch()


# --- claims --------------------------------------------------------------------------------------------------------

UNITS = divide(sources(24), sources(24), UNIT_SIZE)


def process(unit: Unit) -> Iterator[Sample | Drop]:
    return (make_sample(source) for source in unit.items)


def run(folder: Path, ranks: Ranks | None = None, make: Callable = process) -> dict:
    return run_stage(UNITS, folder, make, origin(), max_damage=0, ranks=ranks)


def finished(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("unit-*.json")}


def claim_of(folder: Path, unit: int, host: str, pid: int) -> Path:
    """A claim as another process would hold it."""
    own = temporary_path(folder, f"unit-{unit:06d}.tar").name.split(".")
    path = folder / ".".join([*own[:-3], host or own[-3], str(pid), own[-1]])
    path.write_bytes(b"half a tar")
    return path


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, str]:
    return contents(make_latents(tmp_path / "whole", 24, UNIT_SIZE))


def test_ranks_begin_with_their_own_units_and_finish_those_of_absent_ones(tmp_path, whole):
    made = []

    def noting(unit: Unit) -> Iterator[Sample | Drop]:
        made.append(int(unit.name[-6:]))
        return process(unit)

    run(tmp_path / "out", Ranks(1, 3), noting)
    assert made == [1, 4, 2, 3, 5, 0]
    assert contents(tmp_path / "out") == whole
    run(tmp_path / "out", Ranks(0, 3), noting)
    assert len(made) == 6


def test_what_another_process_is_making_is_left_to_it(tmp_path, whole):
    """Its unit is made only once its claim is no longer live: another machine's by age, this machine's by death."""
    out = tmp_path / "out"
    out.mkdir()
    sleeper = subprocess.Popen(["sleep", "300"])
    elsewhere = claim_of(out, 1, "another-host", 1)
    here = claim_of(out, 2, "", sleeper.pid)
    dead = claim_of(out, 3, "", 99999999)
    stage = threading.Thread(target=run, args=(out,))
    stage.start()
    try:
        wait_for(lambda: len(finished(out)) == 4)
        assert finished(out) == {"unit-000000", "unit-000003", "unit-000004", "unit-000005"}
        assert not dead.exists()
        time.sleep(0.7)
        assert stage.is_alive() and len(finished(out)) == 4
        old = time.time() - 700
        os.utime(elsewhere, (old, old))
        wait_for(lambda: "unit-000001" in finished(out))
        assert stage.is_alive() and "unit-000002" not in finished(out)
    finally:
        sleeper.kill()  # and not waited for yet: what is left of a killed child is no living process
        stage.join(60)
        sleeper.wait()
    assert not stage.is_alive()
    elsewhere.unlink()
    here.unlink()
    assert contents(out) == whole


def test_a_unit_that_another_process_finished_meanwhile_stays_as_it_is(tmp_path, whole):
    """Two processes may make one unit when a claim was wrongly taken for dead; their shards may differ."""
    out = tmp_path / "out"

    def overtaken(unit: Unit) -> Iterator[Sample | Drop]:
        for source in unit.items[:-1]:
            yield make_sample(source)
        for suffix in ("tar", "json"):
            shutil.copy(tmp_path / f"whole/{unit.name}.{suffix}", out)

    assert run(out, make=overtaken)["count"] == 24
    assert contents(out) == whole


SHARED_STAGE = """
import sys
from pathlib import Path
from tests.shard_folders import make_latents
make_latents(Path(sys.argv[1]), 24, 4)
"""


def test_a_vanished_tar_is_made_again_by_one_of_the_ranks(tmp_path, whole):
    out = make_latents(tmp_path / "out", 24, UNIT_SIZE)
    (out / "unit-000004.tar").unlink()
    (out / "unit-000005.json").unlink()
    finish(start_ranks(2, "-c", SHARED_STAGE, out))
    assert contents(out) == whole


def test_damage_is_summed_over_ranks(tmp_path):
    def broken(unit: Unit) -> Iterator[Sample | Drop]:
        for source in unit.items:
            yield Drop(source, "truncated", "damage") if int(Path(source).stem) % 4 == 0 else make_sample(source)

    out = tmp_path / "out"
    with pytest.raises(ShardError, match="4 of 24 inputs are damaged"):
        run_stage(UNITS, out, broken, origin(), max_damage=0.15, ranks=Ranks(0, 2))
    with pytest.raises(ShardError, match="4 of 24 inputs are damaged"):
        run_stage(UNITS, out, broken, origin(), max_damage=0.15, ranks=Ranks(1, 2))
    assert len((out / "quarantine.jsonl").read_text().splitlines()) == 4


def test_the_bar_counts_all_ranks_and_only_the_first_shows_it(capsys):
    with Progress("caption", {"a": 4, "b": 4, "c": 2}, shown=True) as progress:
        listed = progress.following(lambda: {"a"})
        assert listed() == {"a"}
        for _ in range(3):
            progress.tick()
        progress.note({"a", "c"})  # another rank has finished c
        assert progress._bar is not None and progress._bar.n == 4 + 3 + 2
        progress.tick()
        progress.following(lambda: {"a", "b", "c"})()
        assert progress._bar.n == 10
    assert "caption" in capsys.readouterr().err
    with Progress("caption", {"a": 4}, shown=False) as progress:
        progress.tick()
        progress.note({"a"})
    assert capsys.readouterr().err == ""


# --- kill -9 -------------------------------------------------------------------------------------------------------


def descendants(pid: int) -> list[int]:
    """Processes that a process of ours has started, and those that they have."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text("latin-1").rpartition(")")[2].split()[1])
        except OSError:
            continue  # gone meanwhile
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found[1:]


def ranks_of(launcher: Process, module: str) -> list[int]:
    """The processes of a launch that run the stage, by rank."""
    found = {}
    for pid in descendants(launcher.pid):
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = [entry for entry in environment if entry.startswith(b"RANK=")]
        if rank and module.encode() in words:
            found[int(rank[0][5:])] = pid
    return [pid for _, pid in sorted(found.items())]


def kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def is_launched(seed: int, stage: list[object]) -> bool:
    """One round of the default ones and all long ones go through `accelerate launch`; the others fork their ranks."""
    return seed >= 2 or (seed == 0 and stage[1] == "data.caption")


def rerun(seed: int, stage: list[object]) -> None:
    """Starts a stage again with this round's number of processes."""
    number = RESTARTS[str(stage[1])][seed]
    finish([launch(number, *stage)] if is_launched(seed, stage) else start_ranks(number, *stage))


def interrupted(seed: int, stage: list[object], out: Path, reference: dict[str, str]) -> int:
    """Runs a stage in two processes and kills one of them, or everything, at a random moment; returns how many units
    were finished by then."""
    draw = random.Random(seed)
    num_units = sum(name.startswith("unit-") and name.endswith(".json") for name in reference)
    after = draw.randrange(num_units * 2 // 3)
    launched = is_launched(seed, stage)
    started = [launch(2, *stage)] if launched else start_ranks(2, *stage)
    try:
        wait_for(lambda: out.is_dir() and len(finished(out)) >= after)
        time.sleep(draw.uniform(0, 0.05))
        victims = ranks_of(started[0], str(stage[1])) if launched else [rank.pid for rank in started]
        if draw.random() < 0.5 and len(victims) == 2:
            kill([draw.choice(victims)])
            if not launched:
                for rank in started:
                    rank.send(signal.SIGTERM)
            for process in started:
                process.poll(120)  # the launcher ends the other
        else:
            kill([started[0].pid, *descendants(started[0].pid), *victims])
            for process in started:
                process.poll(120)
    finally:
        for process in started:
            kill(descendants(process.pid))
            process.kill()
    there = contents(out)
    for unit in finished(out):  # whatever has its final name is whole
        for name in (f"{unit}.json", f"{unit}.tar"):
            assert there.get(name) == reference.get(name)
    return len(finished(out))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large pictures, good and bad, of which each takes some milliseconds."""
    folder = tmp_path_factory.mktemp("photographs")
    pictures = nasty_pictures()
    noise = np.random.default_rng(0).integers(0, 40, (500, 600, 3), np.uint8)
    for number in range(25):
        pixels = picture(600, 500, seed=number) // 2 + noise
        pictures[f"z{number:02d}.png"] = pictures["a_exif.jpg"]._replace(content=saved(pixels, compress_level=1))
    return write_folder(folder / "in", pictures)


CAPTION = {"resolution": SIDE, "min_size": SIDE, "unit_size": UNIT_SIZE, "max_damage": 0.5}


@pytest.fixture(scope="module")
def captioned(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed run of data.caption makes of them."""
    out = tmp_path_factory.mktemp("captioned") / "out"
    caption_folder(photographs, out, CaptionConfig(**CAPTION))
    return out


@pytest.fixture(scope="module")
def encoded(captioned: Path, tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What an undisturbed run of data.encode makes of those, in one thread as the launched ones."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("encoded") / "out"
    encode_shards(captioned, out, EncodeConfig(tiny_backbone, batch=3))
    yield out
    torch.set_num_threads(threads)


ROUNDS = [*range(2), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 13))]
"""Two rounds by default, eleven more in the long tests."""

RESTARTS = {
    "data.caption": (2, 1, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1),
    "data.encode": (2, 1, 1, 3, 2, 3, 1, 2, 3, 1, 2, 3, 1),
}
"""With how many processes each round starts again; one process is this one, whose start costs nothing."""


@pytest.mark.parametrize("seed", ROUNDS)
def test_captions_survive_kills(photographs, captioned, tmp_path, seed):
    reference = contents(captioned)
    out = tmp_path / "out"
    stage = words("data.caption", photographs, out, **CAPTION)
    interrupted(seed, stage, out, reference)
    if RESTARTS["data.caption"][seed] == 1:
        caption_folder(photographs, out, CaptionConfig(**CAPTION))
    else:
        rerun(seed, stage)
    assert contents(out) == reference


@pytest.mark.parametrize("seed", ROUNDS)
def test_latents_survive_kills(captioned, encoded, tiny_backbone, tmp_path, seed):
    reference = contents(encoded)
    out = tmp_path / "out"
    stage = words("data.encode", captioned, out, backbone=tiny_backbone, batch=3)
    interrupted(seed, stage, out, reference)
    if RESTARTS["data.encode"][seed] == 1:
        encode_shards(captioned, out, EncodeConfig(tiny_backbone, batch=3))
    else:
        rerun(seed, stage)
    assert contents(out) == reference


def test_the_others_finish_the_work_of_a_killed_rank(photographs, captioned, tmp_path):
    out = tmp_path / "out"
    children = start_ranks(3, *words("data.caption", photographs, out, **CAPTION))
    kill_when(lambda: out.is_dir() and len(finished(out)) >= 2, children[1])
    finish([children[0], children[2]])
    left = [path for path in out.rglob(".*.tmp") if f".{children[1].pid}.tmp" in path.name]
    for path in left:
        path.unlink()  # the next run would
    assert contents(out) == contents(captioned)


# --- a full disk ---------------------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from data.caption import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize(("limit", "num_units"), [(400, 0), (40_000, 2)], ids=["inventory", "third unit"])
def test_a_full_disk_is_said_and_a_rerun_goes_on(tmp_path, limit, num_units):
    draw = np.random.default_rng(0)
    pixels = [picture(seed=number) for number in range(8)]  # of some 600 bytes, and of noise, which takes 12,000
    pixels += [draw.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for _ in range(8)]
    pictures = {f"{number:02d}.png": Nasty(saved(image), b"a picture") for number, image in enumerate(pixels)}
    source = write_folder(tmp_path / "in", pictures)
    options = ["--resolution=64", "--unit-size=4"]
    for _ in range(2):  # again, and it says the same
        said = processes.run("-c", LIMITED, limit, source, tmp_path / "out", *options, status=1).stderr
        assert re.search(rf"data\.caption: {tmp_path / 'out'}\S* cannot take more: File too large", said)
        assert "make room there" in said and "Traceback" not in said
        assert not list((tmp_path / "out").rglob(".*.tmp")), "what was half written is removed"
        assert len(finished(tmp_path / "out")) == num_units
    before = read_sidecars(tmp_path / "out")
    processes.run("-m", "data.caption", source, tmp_path / "out", *options)
    caption_folder(source, tmp_path / "whole", CaptionConfig(resolution=SIDE, unit_size=4))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert before.items() <= read_sidecars(tmp_path / "out").items()


# --- clusters ------------------------------------------------------------------------------------------------------

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for rank in 0 1; do SLURM_PROCID=$rank SLURM_NTASKS=2 SLURM_LOCALID=$rank "$@" & done
wait
"""


@pytest.mark.parametrize("stage", ["caption", pytest.param("encode", marks=pytest.mark.long)])
def test_the_slurm_templates_run_their_stages(stage, photographs, captioned, tmp_path, request):
    """With a program in the place of srun that starts the tasks here."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/srun").write_text(SRUN)
    (tmp_path / "bin/srun").chmod(0o755)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    variables = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    variables |= {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_CPUS_PER_TASK": "1", "SLURM_JOB_ID": "1"}
    source, expected = photographs, captioned
    options = [f"--{name}={value}" for name, value in CAPTION.items()]
    if stage == "encode":
        source, expected = captioned, request.getfixturevalue("encoded")
        options = ["--backbone", request.getfixturevalue("tiny_backbone"), "--batch=3", "--device=cpu"]
    script = ROOT / f"scripts/cluster/{stage}.sbatch"
    done = processes.run(script, source, tmp_path / "out", *options, program="bash", **variables)
    assert done.stderr.count("samples; damaged") == 1, "only the first rank reports"
    assert contents(tmp_path / "out") == contents(expected)
