"""Many short trainings, disturbed at random and started again until they finish, beside one that is left in peace.

    python -m scripts.chaos --runs 20 --seed 0

Ranks are killed, checkpoints and shards damaged, the disk filled (scripts/faults/disturbances.py). Weights, averages
and optimizer of a run that finishes, its metrics and pictures have to be those of the undisturbed run, bit for bit.
Ends with status 1 if a run differs, does not finish, or fails without the message that it owes.
"""

import sys
from collections.abc import Sequence

from data.jobs.command import run


def chaos(runs: int = 20, seed: int = 0) -> bool:
    """Disturb trainings and say whether all finished equal.

    Args:
        runs: Trainings to disturb.
        seed: Seed by which their disturbances are drawn.

    Raises:
        ValueError: There is less than one run.
    """
    if runs < 1:
        raise ValueError(f"--runs is {runs}, expected at least 1")
    from scripts.faults.disturbed_runs import disturb_trainings

    return disturb_trainings(runs, seed)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    sys.exit(0 if run("scripts.chaos", chaos, argv) else 1)


if __name__ == "__main__":
    main()
