"""Which form a data set of edits has, by what lies there."""

from collections.abc import Iterator
from pathlib import Path

from data.world.pie_layout import MAPPING
from eval.benchmarks.entries import BadAnnotation, Entry
from eval.benchmarks.mapping import read_mapping
from eval.benchmarks.parquet import read_parquet
from eval.benchmarks.target_lists import read_target_list

_LISTS = (".yaml", ".yml")


def read_entries(data: Path) -> Iterator[Entry | BadAnnotation]:
    """The entries of a data set, and what cannot be read of it.

    Args:
        data: a folder with mapping_file.json, with Parquet files at any depth, or with one list in YAML, of which the
            first that is there counts; or one such file, beside or below which its pictures lie.

    Raises:
        ValueError: there is nothing of the kind, or it is not of the right shape.
    """
    if data.is_file():
        return _of_file(data)
    if (data / MAPPING).is_file():
        return read_mapping(data / MAPPING)
    if tables := [path for path in data.rglob("*.parquet") if path.is_file()]:
        return read_parquet(tables, data)
    lists = sorted(path for path in data.iterdir() if path.suffix in _LISTS)
    if len(lists) > 1:
        names = ", ".join(path.name for path in lists)
        raise ValueError(f"{data} has several lists of edits, {names}; give one of them, --data {lists[0]}")
    if lists:
        return read_target_list(lists[0])
    raise ValueError(
        f"{data} is not a PIE-Bench folder: it has no {MAPPING}, no Parquet files and no list in YAML; unpack the "
        "benchmark there, or make one of scenes with `python -m data.scene_pie_bench`"
    )


def _of_file(path: Path) -> Iterator[Entry | BadAnnotation]:
    if path.suffix == ".json":
        return read_mapping(path)
    if path.suffix == ".parquet":
        return read_parquet([path], path.parent)
    if path.suffix in _LISTS:
        return read_target_list(path)
    raise ValueError(f"{path} is no data set of edits; expected a folder, or a file .json, .parquet or .yaml")
