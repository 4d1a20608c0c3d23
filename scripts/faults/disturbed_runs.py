"""Trainings that are disturbed at random and started again until they finish, beside undisturbed ones."""

import json
import random
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from scripts.faults.disturbances import DISTURBANCES, STEPS, Broken, Training, harm_shard

FOR_GOOD = "shard damaged for good"
"""Disturbance of a run that replaces bad samples, beside an undisturbed run on the same damaged shards."""


@dataclass
class RunOutcome:
    """A disturbed run: its disturbances with the starts that each took, and why it is not as it has to be."""

    disturbances: list[tuple[str, int]] = field(default_factory=list)
    starts: int = 0
    complaint: str = ""


def disturb_trainings(runs: int, seed: int) -> bool:
    """Disturb `runs` trainings, drawn by `seed`, and say whether all finished equal."""
    work = Path(tempfile.mkdtemp(prefix="chaos-"))
    undisturbed = [Training(work / f"undisturbed-{number}", work / "shards", number) for number in (1, 2)]
    undisturbed[0].finish()  # one process alone writes the shards
    outcomes = []
    for number in tqdm(range(runs), unit=" runs", desc="chaos"):
        draw = random.Random(f"{seed}/{number}")
        reference = undisturbed[draw.random() < 0.3]
        if not reference.starts:
            reference.finish()
        outcomes.append(_disturb(number, draw, reference, work / f"run-{number:03d}"))
        if outcomes[-1].complaint:
            tqdm.write(f"run {number}, {outcomes[-1].disturbances}: {outcomes[-1].complaint}")
    print(table(outcomes))
    equal = sum(not outcome.complaint for outcome in outcomes)
    print(f"{equal} of {runs} runs finished equal, after {sum(outcome.starts for outcome in outcomes)} starts")
    if equal == runs:
        shutil.rmtree(work)
    else:
        print(f"all runs lie in {work}")
    return equal == runs


def _disturb(number: int, draw: random.Random, undisturbed: Training, folder: Path) -> RunOutcome:
    """One run with one to three disturbances; by their numbers the runs begin with each kind in turn."""
    training = Training(folder / "run", folder / "shards", undisturbed.processes)
    shutil.copytree(undisturbed.shards, training.shards)
    kinds = list(DISTURBANCES)
    drawn = [kinds[number % len(kinds)], *draw.choices(kinds, k=draw.randint(0, 2))]
    outcome = RunOutcome()
    try:
        if draw.random() < 0.25:
            drawn = [name for name in drawn if name != "shards damaged"]
            undisturbed = _damage_for_good(training, draw, folder / "undisturbed")
            outcome.disturbances.append((FOR_GOOD, 0))
        for name in drawn:
            before = training.starts
            if DISTURBANCES[name](training, draw):
                outcome.disturbances.append((name, training.starts - before))
        training.finish()
        outcome.complaint = ", ".join(differences(training.folder, undisturbed.folder))
    except Broken as error:
        outcome.complaint = str(error)
    outcome.starts = training.starts
    return outcome


def _damage_for_good(training: Training, draw: random.Random, folder: Path) -> Training:
    """Damage a shard of a training that has not begun; returns a run that is left in peace with the same damage."""
    harm_shard(draw.choice(sorted(training.shards.glob("*.tar"))), draw, silently=True)
    training.max_bad_share = 1.0
    undisturbed = Training(folder, training.shards, training.processes, training.max_bad_share)
    undisturbed.finish()
    return undisturbed


def differences(run: Path, undisturbed: Path) -> list[str]:
    """Names of what differs between two finished runs: files, or fields of the progress."""
    checkpoint = f"checkpoints/step-{STEPS:06d}"
    names = ["metrics.jsonl", *(f"{checkpoint}/{name}.safetensors" for name in ("model", "ema"))]
    names += [f"{checkpoint}/optimizer.pt", *(f"samples/{path.name}" for path in (undisturbed / "samples").iterdir())]
    found = [name for name in names if _content(run / name) != (undisturbed / name).read_bytes()]
    progress, expected = (json.loads((r / checkpoint / "progress.json").read_text()) for r in (run, undisturbed))
    return found + [name for name in expected if name != "seconds" and progress[name] != expected[name]]


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def table(outcomes: Sequence[RunOutcome]) -> str:
    """A Markdown table: how often each disturbance came, in how many starts, in how many runs that finished equal."""
    rows: dict[str, list[tuple[int, bool]]] = defaultdict(list)
    for outcome in outcomes:
        for name, starts in outcome.disturbances:
            rows[name].append((starts, not outcome.complaint))
    lines = ["| disturbance | times | starts | run finished equal |", "|---|---|---|---|"]
    for name in (*DISTURBANCES, FOR_GOOD):
        found = rows[name]
        equal = sum(equal for _, equal in found)
        lines.append(f"| {name} | {len(found)} | {sum(starts for starts, _ in found)} | {equal} |")
    return "\n".join(lines)
