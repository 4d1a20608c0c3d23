"""The cost of a PIE-Bench evaluation before most of it is spent: a few cases of every row are timed, and kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.editors.inversions import inversion_key
from eval.pie.cases import PieCase
from eval.pie.edits import PieRow, read_record

TIMED = 2
"""Cases of each row that are timed: the first one also pays for what is made once."""

WORTH_TIMING = 20
"""Cases of an evaluation whose cost is said beforehand."""


@dataclass(frozen=True)
class RowGroup:
    """A row and the later ones that share its inversions: they have the same prompts, and invert alike."""

    row: PieRow
    others: tuple[PieRow, ...]


def in_groups(rows: Sequence[PieRow]) -> list[RowGroup]:
    """Every row with those after it that share its inversions."""
    keys = [(row.editor and inversion_key(row.editor), row.prompts, row.needs_prompts) for row in rows]
    return [
        RowGroup(row, tuple(other for other, theirs in zip(rows[i + 1 :], keys[i + 1 :], strict=True) if theirs == key))
        for i, (row, key) in enumerate(zip(rows, keys, strict=True))
    ]


@dataclass(frozen=True)
class RowCost:
    """Expected cost of a row.

    Args:
        name: name of the row.
        seconds: seconds a case, without the inversion where an earlier row has it.
        missing: number of cases that are not there yet.
        sharing: the row whose inversions it takes, or None.
    """

    name: str
    seconds: float
    missing: int
    sharing: str | None

    @property
    def hours(self) -> float:
        """Hours of one process that are left."""
        return self.seconds * self.missing / 3600


def expected_costs(groups: Sequence[RowGroup], cases: Sequence[PieCase], folder: Path) -> list[RowCost]:
    """The costs of all rows by those of their cases in `folder` that were made, warm ones if there are such."""
    leaders = {other.name: group.row.name for group in reversed(groups) for other in group.others}
    costs = []
    for group in groups:
        name = group.row.name
        there = [case.key for case in cases if (folder / name / f"{case.key}.json").is_file()]
        records = [record for record in (read_record(folder / name, key) for key in there) if "costs" in record]
        records = [record for record in records if record["warm"]] or records
        parts = ("edit",) if name in leaders else ("invert", "edit")
        seconds = [sum(record["costs"][part]["seconds"] for part in parts) for record in records]
        mean = sum(seconds) / len(seconds) if seconds else 0.0
        costs.append(RowCost(name, mean, len(cases) - len(there), leaders.get(name)))
    return costs


def cost_words(costs: Sequence[RowCost], processes: int) -> str:
    """What is left to edit, the longest rows first, and in all."""
    left = sorted((cost for cost in costs if cost.missing), key=lambda cost: -cost.hours)
    hours = sum(cost.hours for cost in left)
    lines = [
        f"  {cost.name}: {cost.hours:.2g} h ({cost.missing} cases of {cost.seconds:.2g} s"
        + (f"; inversions are those of {cost.sharing})" if cost.sharing else ")")
        for cost in left
    ]
    shared = f", {hours / processes:.2g} h for each of {processes} processes" if processes > 1 else ""
    head = f"editing takes about {hours:.2g} h more in one process{shared}, by the timed cases; --editors chooses rows"
    return "\n".join([head, *lines])
