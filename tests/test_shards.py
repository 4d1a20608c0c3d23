"""Shards and stages: what is written, what stock webdataset reads, and that nothing half-done looks finished."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data.jobs.errors import ShardError
from data.jobs.files import temporary_path
from data.jobs.sharing import remove_leftovers
from data.shards.sample import SCHEMA, SampleInfo, check_key, key_of
from data.shards.shard import MANIFEST, Drop, Sample, file_digest, npy_bytes, read_manifest, read_sidecars
from data.shards.stage import Unit, divide, run_stage
from tests.processes import finish, kill_when, start
from tests.shard_folders import latent_of, make_latents, make_sample, origin, sources


def read_finished(folder: Path) -> dict[str, dict]:
    """Sidecars by unit of a folder whose stage has finished."""
    read_manifest(folder)
    return read_sidecars(folder)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in folder.iterdir()}


def process(unit: Unit) -> Iterator[Sample | Drop]:
    return (make_sample(source) for source in unit.items)


def test_info_survives_the_round_trip():
    info = SampleInfo("k", "blå", " blå\n", (640, 480), (80, 0, 480, 480), "ab", "x/y.png", {"scene": {"n": [1, None]}})
    assert SampleInfo.from_json(info.to_json()) == info


def test_a_file_name_that_is_not_utf8_survives():
    source = os.fsdecode(b"bild-\xff.png")
    info = SampleInfo(key_of(source), "c", "c", (8, 8), (0, 0, 8, 8), "ab", source)
    info.to_json().decode("utf-8")
    assert SampleInfo.from_json(info.to_json()).source == source


@pytest.mark.parametrize("change", [{"schema": SCHEMA + 1}, {"schema": None}, {"colour": "red"}])
def test_another_schema_is_refused(change):
    found = json.loads(make_sample("pictures/00001.png").members["json"]) | change
    with pytest.raises(ValueError, match=r"schema version|unknown fields \['colour'\]"):
        SampleInfo.from_json(json.dumps(found))


def test_keys_are_distinct_and_fit_a_tar():
    paths = [
        "a/b.png",
        "a_b.png",
        "a-b.png",
        "a/b.jpg",
        "a.b.png",
        "ä.png",
        "ö.png",
        "x" * 300 + ".png",
        "...",
        "-.png",
    ]
    keys = [key_of(path) for path in paths]
    assert len(set(keys)) == len(paths)
    for key in keys:
        check_key(key)
    with pytest.raises(ValueError, match="sample key"):
        check_key("a.b")


def test_units_cover_all_inputs_in_order():
    units = divide(sources(10), sources(10), 4)
    assert [unit.name for unit in units] == ["unit-000000", "unit-000001", "unit-000002"]
    assert [item for unit in units for item in unit.items] == sources(10)
    with pytest.raises(ShardError, match="sorted"):
        divide(["b", "a"], ["b", "a"], 4)
    with pytest.raises(ShardError, match="unit-size"):
        divide(["a"], ["a"], 0)


def test_stock_webdataset_reads_the_shards(tmp_path):
    folder = make_latents(tmp_path / "shards", 10, 4)
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["json"]["source"] for sample in found] == sources(10)
    assert [sample["__key__"] for sample in found] == [key_of(source) for source in sources(10)]
    for number, sample in enumerate(found):
        assert np.array_equal(sample["latent.npy"], latent_of(number))


def test_sidecar_offsets_point_at_the_members(tmp_path):
    folder = make_latents(tmp_path / "shards", 6, 4)
    for unit, sidecar in read_finished(folder).items():
        tar = (folder / f"{unit}.tar").read_bytes()
        assert len(tar) == sidecar["bytes"] and file_digest(folder / f"{unit}.tar") == sidecar["sha256"]
        for row, key in enumerate(sidecar["keys"]):
            offset, size = sidecar["members"]["json"][row]
            assert SampleInfo.from_json(tar[offset : offset + size]).key == key


def test_the_same_input_makes_the_same_bytes(tmp_path):
    assert contents(make_latents(tmp_path / "a", 10, 4)) == contents(make_latents(tmp_path / "b", 10, 4))


def test_finished_units_are_skipped_and_damaged_ones_made_again(tmp_path):
    folder = make_latents(tmp_path / "shards", 10, 4)
    before = contents(folder)
    (folder / "unit-000001.tar").unlink()
    (folder / "unit-000002.json").unlink()
    (folder / MANIFEST).unlink()
    made = []

    def noting(unit: Unit) -> Iterator[Sample | Drop]:
        made.append(unit.name)
        return process(unit)

    run_stage(divide(sources(10), sources(10), 4), folder, noting, origin(), max_damage=0)
    assert sorted(made) == ["unit-000001", "unit-000002"]  # each process starts at a place of its own
    assert contents(folder) == before


def test_another_config_input_or_stage_is_refused(tmp_path):
    folder = make_latents(tmp_path / "shards", 10, 4)
    units = divide(sources(10), sources(10), 4)
    with pytest.raises(ShardError, match=r"another config:\n  option: 1 -> 2"):
        run_stage(units, folder, process, origin(option=2), max_damage=0)
    with pytest.raises(ShardError, match=r"input of unit-000002 .* has changed"):
        run_stage(divide(sources(9), sources(9), 4), folder, process, origin(), max_damage=0)
    with pytest.raises(ShardError, match=r"holds shards of data\.encode"):
        run_stage(units, folder, process, type(origin())("caption", {}, {}), max_damage=0)


def test_drops_are_counted_by_reason_and_damage_is_listed(tmp_path):
    def dropping(unit: Unit) -> Iterator[Sample | Drop]:
        for source in unit.items:
            number = int(Path(source).stem)
            if number in (1, 5):
                yield Drop(source, "truncated", "damage", "at byte 7")
            elif number in (2, 3, 4, 6, 7):
                yield Drop(source, "too small", "policy")
            else:
                yield make_sample(source)

    units = divide(sources(10), sources(10), 4)
    manifest = run_stage(units, tmp_path, dropping, origin(), max_damage=0.2)
    assert manifest["drops"] == {"damage": {"truncated": 2}, "policy": {"too small": 5}}
    assert manifest["count"] == 3
    listed = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [line["source"] for line in listed] == ["pictures/00001.png", "pictures/00005.png"]
    assert {line["detail"] for line in listed} == {"at byte 7"}
    # The unit of which nothing is left has a sidecar and no tar.
    assert [path.stem for path in sorted(tmp_path.glob("*.tar"))] == ["unit-000000", "unit-000002"]
    assert run_stage(units, tmp_path, dropping, origin(), max_damage=0.2) == manifest


def test_too_much_damage_stops_the_stage_and_a_higher_limit_goes_on(tmp_path):
    def broken(unit: Unit) -> Iterator[Sample | Drop]:
        for source in unit.items:
            yield Drop(source, "truncated", "damage") if int(Path(source).stem) % 2 else make_sample(source)

    units = divide(sources(12), sources(12), 4)
    with pytest.raises(ShardError, match=r"2 of 12 inputs are damaged .*truncated.*--max-damage 0.1"):
        run_stage(units, tmp_path, broken, origin(), max_damage=0.1)
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 2
    with pytest.raises(ShardError, match="has not finished"):
        read_finished(tmp_path)
    with pytest.raises(ShardError, match="6 of 12 inputs are damaged"):  # no unit alone has too much of it
        run_stage(units, tmp_path, broken, origin(), max_damage=0.4)
    assert run_stage(units, tmp_path, broken, origin(), max_damage=0.5)["count"] == 6


def test_nothing_left_is_an_error(tmp_path):
    def nothing(unit: Unit) -> Iterator[Sample | Drop]:
        return (Drop(source, "no caption", "policy") for source in unit.items)

    with pytest.raises(ShardError, match=r"no sample is left of 4 inputs.*'no caption': 4"):
        run_stage(divide(sources(4), sources(4), 4), tmp_path, nothing, origin(), max_damage=0)


def test_arrays_of_one_unit_must_agree(tmp_path):
    def uneven(unit: Unit) -> Iterator[Sample | Drop]:
        for number, source in enumerate(unit.items):
            made = make_sample(source)
            yield Sample(made.key, {"json": made.members["json"], "latent.npy": npy_bytes(np.zeros(number + 1))})

    with pytest.raises(ValueError, match=r"latent\.npy is .*the samples before it"):
        run_stage(divide(sources(4), sources(4), 4), tmp_path, uneven, origin(), max_damage=0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: [path.unlink() for path in folder.iterdir()], "holds no shards"),
        (lambda folder: (folder / "unit-000001.json").unlink(), "unit-000001.tar: foreign tars, or a stage"),
        (lambda folder: [path.unlink() for path in folder.glob("*.json")], "tars without a sidecar"),
        (lambda folder: (folder / MANIFEST).unlink(), "its stage has not finished"),
        (lambda folder: [path.unlink() for path in folder.glob("unit-000001.*")], r"not there: \['unit-000001'\]"),
        (lambda folder: (folder / "unit-000001.json").write_text("{}"), "not the sidecar of a shard"),
    ],
    ids=["empty", "no sidecar", "only tars", "no manifest", "unit gone", "bad sidecar"],
)
def test_unfinished_folders_are_refused(tmp_path, spoil, message):
    folder = make_latents(tmp_path / "shards", 10, 4)
    spoil(folder)
    with pytest.raises(ShardError, match=message):
        read_finished(folder)


def test_another_sample_schema_is_refused(tmp_path):
    folder = make_latents(tmp_path / "shards", 10, 4)
    path = folder / "unit-000001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_schema": SCHEMA + 1}))
    with pytest.raises(ShardError, match="schema"):
        read_finished(folder)


SLOW_STAGE = """
import sys, time
from pathlib import Path
from data.shards.stage import divide, run_stage
from tests.shard_folders import make_sample, origin, sources

def slowly(unit):
    for source in unit.items:
        time.sleep(0.01)
        yield make_sample(source)

run_stage(divide(sources(40), sources(40), 4), Path(sys.argv[1]), slowly, origin(), max_damage=0)
"""


@pytest.mark.parametrize("units_before", [0, 1, 4])
def test_a_killed_stage_leaves_nothing_that_looks_finished(tmp_path, units_before):
    whole = contents(make_latents(tmp_path / "whole", 40, 4))
    folder = tmp_path / "shards"

    def has_begun() -> bool:
        made = len(list(folder.glob("unit-*.json"))) if folder.is_dir() else -1
        return made >= units_before and list(folder.glob(".*.tmp")) != []

    kill_when(has_begun, start("-c", SLOW_STAGE, folder))
    with pytest.raises(ShardError):
        read_finished(folder)
    for path in folder.glob("unit-*.json"):  # whatever is there under its final name is whole
        assert file_digest(path) == whole[path.name]
        assert file_digest(path.with_suffix(".tar")) == whole[path.with_suffix(".tar").name]
    make_latents(folder, 40, 4)
    assert contents(folder) == whole


def test_two_runs_at_once_make_the_same_shards(tmp_path):
    whole = contents(make_latents(tmp_path / "whole", 40, 4))
    folder = tmp_path / "shards"
    finish([start("-c", SLOW_STAGE, folder) for _ in range(2)])
    assert contents(folder) == whole


def test_leftovers_of_living_processes_stay(tmp_path):
    own = temporary_path(tmp_path, "unit-000000.tar")  # this process has just begun: it is an earlier one's
    living, dead = (own.with_name(own.name.replace(f".{os.getpid()}.", f".{pid}.")) for pid in (os.getppid(), 99999999))
    elsewhere, old = (own.with_name(f".unit-00000{n}.tar.another-host.{os.getpid()}.tmp") for n in range(2))
    for path in (own, living, dead, elsewhere, old):
        path.touch()
    os.utime(old, (0, 0))
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([living.name, elsewhere.name])
