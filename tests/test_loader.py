"""The loader: one global order whatever the ranks and workers, exact resume, and every kind of damage."""

import io
import json
import pickle
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.shards.dataset import ShardDataset, UnreadableSample, parse_array
from data.shards.health import LoaderHealth
from data.shards.loader import batches
from data.shards.order import SampleOrder
from data.shards.sample import SCHEMA, key_of
from data.shards.shard import npy_bytes, read_sidecar
from tests.shard_folders import latent_of, make_latents, sources

COUNT, UNIT = 44, 8  # six shards, the last one shorter
PINNED = [3, 13, 0, 2, 12, 1, 8, 11, 7, 9, 6, 4, 5, 10, 6, 12, 5, 13, 4, 7, 1, 10, 0, 11, 9, 2, 3, 8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_latents(tmp_path_factory.mktemp("loader") / "shards", COUNT, UNIT)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder that the test may damage."""
    return make_latents(tmp_path / "shards", COUNT, UNIT)


def stream(folder: Path, num_batches: int, **options: Any) -> list[dict[str, Any]]:
    """The first micro batches of rank 0, 12 samples each unless said otherwise."""
    sizes = dict(seed=5, global_batch=12, micro_batch=12, rank=0, world_size=1, window=2) | options
    return list(islice(batches(ShardDataset(folder), **sizes), num_batches))


def keys(found: list[dict[str, Any]]) -> list[str]:
    return [key for batch in found for key in batch["key"]]


def over_ranks(folder: Path, world_size: int, num_global: int, **options: Any) -> list[list[str]]:
    """Keys of each global batch, rows put together from all ranks."""
    micro = options.pop("micro_batch", 12 // world_size)
    per_rank = 12 // world_size // micro
    rows: list[dict[int, str]] = [{} for _ in range(num_global)]
    for rank in range(world_size):
        found = stream(folder, num_global * per_rank, micro_batch=micro, rank=rank, world_size=world_size, **options)
        for number, batch in enumerate(found):
            rows[number // per_rank].update(zip(batch["rows"].tolist(), batch["key"], strict=True))
    return [[batch[row] for row in range(12)] for batch in rows]


# --- order ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[8, 8, 8, 8, 8, 4], [1], [3, 0, 5], [7] * 20])
@pytest.mark.parametrize("window", [1, 2, 3, 100])
def test_each_epoch_holds_each_sample_once(sizes, window):
    order, total = SampleOrder(sizes, 3, window), sum(sizes)
    epochs = [[order.index(epoch * total + offset) for offset in range(total)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(total))
    if total > 10:
        assert epochs[0] != epochs[1] != epochs[2]


def test_order_is_a_pure_function_of_seed_and_position():
    sizes = [8] * 10
    forward = SampleOrder(sizes, 3, 4)
    expected = [forward.index(position) for position in range(300)]
    backward = SampleOrder(sizes, 3, 4)
    assert [backward.index(position) for position in reversed(range(300))] == expected[::-1]
    assert [SampleOrder(sizes, 4, 4).index(position) for position in range(300)] != expected


def test_order_is_pinned():
    """A resumed run of an older version must go on in the same order: change these numbers never."""
    order = SampleOrder([4, 4, 4, 2], 7, 2)
    assert [order.index(position) for position in range(28)] == PINNED


def test_reads_stay_inside_a_window_of_shards():
    order = SampleOrder([10] * 12, 0, 3)
    for start in range(0, 120, 30):
        assert len({order.index(start + offset) // 10 for offset in range(30)}) == 3


def test_shards_and_samples_are_mixed_evenly():
    firsts = Counter(SampleOrder([2] * 4, seed, 2).index(0) for seed in range(800))
    assert set(firsts) == set(range(8))
    assert max(firsts.values()) < 2 * min(firsts.values())


def test_bad_orders_are_refused():
    with pytest.raises(ValueError, match="empty"):
        SampleOrder([], 0, 1)
    with pytest.raises(ValueError, match="seed is -1"):
        SampleOrder([1], -1, 1)
    with pytest.raises(ValueError, match=r"data\.window is 0"):
        SampleOrder([1], 0, 0)


# --- what is read --------------------------------------------------------------------------------------------------


def test_samples_hold_what_was_written(folder):
    dataset = ShardDataset(folder, ("latent", "caption", "info"))
    assert len(dataset) == COUNT and dataset.sizes == [8, 8, 8, 8, 8, 4]
    for number in range(COUNT):
        sample = dataset[number]
        assert sample["key"] == dataset.key(number) == key_of(sources(COUNT)[number])
        assert sample["caption"] == f"picture {number}" == sample["info"]["caption"]
        assert sample["latent"].dtype == torch.float32
        assert np.array_equal(sample["latent"].numpy(), latent_of(number).astype(np.float32))
    with pytest.raises(IndexError):
        dataset[COUNT]


def test_batches_are_stacked(folder):
    (batch,) = stream(folder, 1, global_batch=12, micro_batch=4)
    assert batch["latent"].shape == (4, 4, 8, 8) and batch["latent"].dtype == torch.float32
    assert batch["rows"].dtype == torch.int64 and batch["rows"].tolist() == [0, 1, 2, 3]
    assert len(batch["caption"]) == len(batch["key"]) == 4 and batch["substituted"] == []
    for row, key in enumerate(batch["key"]):
        number = int(batch["caption"][row].split()[1])
        assert key == key_of(sources(COUNT)[number])
        assert np.array_equal(batch["latent"][row].numpy(), latent_of(number).astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_are_read_as_they_were_stored(dtype):
    stored = np.random.default_rng(0).standard_normal((3, 5)).astype(dtype)
    read = parse_array(memoryview(bytearray(npy_bytes(stored))), (3, 5))
    assert np.array_equal(read.numpy(), stored) and read.numpy().dtype == dtype
    largest = np.full((3, 5), np.finfo(np.float16).max, np.float16)  # their sum is beyond float16
    assert np.array_equal(parse_array(memoryview(bytearray(npy_bytes(largest))), (3, 5)).numpy(), largest)


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (np.full(4, 1e300), "not finite"),  # in float32
        (np.array([1, np.inf, -np.inf, 0], np.float16), "not finite"),
        (np.ones(4, ">f4"), "bad npy"),
        (np.ones(4, np.int32), "bad npy"),
        (np.ones(5, np.float16), "shape (5,) instead of (4,)"),
    ],
)
def test_arrays_that_training_cannot_use_are_refused(stored, reason):
    with pytest.raises(UnreadableSample) as caught:
        parse_array(memoryview(bytearray(npy_bytes(stored))), (4,))
    assert str(caught.value) == reason


# --- ranks, workers, resume ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 3), (2, 6), (2, 3), (3, 2), (4, 1), (4, 3)])
def test_ranks_share_the_global_batches_of_one(folder, world_size, micro_batch):
    alone = over_ranks(folder, 1, 8)
    assert over_ranks(folder, world_size, 8, micro_batch=micro_batch) == alone


def test_an_epoch_over_ranks_is_everything_once(folder):
    flat = [key for batch in over_ranks(folder, 2, 11) for key in batch]  # 132 positions = three epochs
    for epoch in range(3):
        assert sorted(flat[epoch * COUNT : (epoch + 1) * COUNT]) == sorted(key_of(s) for s in sources(COUNT))


def test_workers_change_nothing(folder):
    alone, helped = stream(folder, 8), stream(folder, 8, workers=2)
    assert keys(alone) == keys(helped)
    for one, other in zip(alone, helped, strict=True):
        assert one.keys() == other.keys()
        assert torch.equal(one["latent"], other["latent"]) and torch.equal(one["rows"], other["rows"])
        assert one["caption"] == other["caption"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [1, 2, 3, 4, 7])  # an epoch ends inside batch 3
def test_resume_is_exact_also_across_an_epochs_edge(folder, done, workers):
    whole = stream(folder, 10)
    resumed = stream(folder, 10 - done, consumed=12 * done, workers=workers)
    assert keys(whole)[12 * done :] == keys(resumed)
    assert torch.equal(whole[-1]["latent"], resumed[-1]["latent"])


def test_resume_of_a_resume_on_other_numbers_of_ranks(folder):
    alone = over_ranks(folder, 1, 9)
    first = over_ranks(folder, 2, 3)
    second = over_ranks(folder, 1, 2, consumed=36)
    third = over_ranks(folder, 4, 4, consumed=60)
    assert first + second + third == alone


def test_reading_leaves_the_global_generator_alone(folder):
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    stream(folder, 2)
    stream(folder, 2, workers=1)
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_spawned_worker_can_read(folder):
    dataset = ShardDataset(folder)
    expected = dataset[3]["latent"]  # opens a file, which must not travel
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3]["latent"], expected)


def test_many_shards_do_not_run_out_of_files(tmp_path):
    dataset = ShardDataset(make_latents(tmp_path / "shards", 150, 1), ("caption",))
    assert [dataset[number]["caption"] for number in range(150)] == [f"picture {number}" for number in range(150)]
    assert len(dataset._handles) <= 64
    assert dataset[0]["caption"] == "picture 0"


# --- wrong use -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_batch": 48, "micro_batch": 48}, r"44 samples, fewer than one global batch of 48.*run\.global_batch"),
        ({"micro_batch": 5}, r"12 does not divide into micro batches of 5 on 1 ranks"),
        ({"micro_batch": 4, "world_size": 2}, r"does not divide"),
        ({"rank": 1}, r"rank 1 of 1"),
        ({"consumed": -12}, r"after -12 samples"),
    ],
)
def test_wrong_sizes_are_refused_at_the_call(folder, options, message):
    with pytest.raises(ValueError, match=message):
        batches(ShardDataset(folder), **(dict(seed=0, global_batch=12, micro_batch=12, rank=0, world_size=1) | options))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("image", r"hold no 'image'.*--keep-images true"),
        ("prompt", r"hold no 'prompt'.*--prompts true"),
        ("colour", r"unknown field 'colour', expected some of image, latent"),
    ],
)
def test_fields_that_are_not_there_are_refused(folder, field, message):
    with pytest.raises(ValueError, match=message):
        ShardDataset(folder, (field,))


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no folder of shards at .*nowhere"):
        ShardDataset(tmp_path / "nowhere")


def test_shards_of_two_vaes_do_not_mix(own):
    path = own / "unit-000003.json"
    sidecar = read_sidecar(path)
    sidecar["properties"]["vae_fingerprint"] = "another"
    path.write_text(json.dumps(sidecar))
    with pytest.raises(ValueError, match="differ in properties"):
        ShardDataset(own)


# --- damage --------------------------------------------------------------------------------------------------------


def edit_member(folder: Path, number: int, suffix: str, change: Callable[[bytearray], bytes]) -> None:
    """Changes the bytes of a member in place; the length stays."""
    unit, row = divmod(number, UNIT)
    sidecar = read_sidecar(folder / f"unit-{unit:06d}.json")
    offset, size = sidecar["members"][suffix][row]
    with (folder / f"unit-{unit:06d}.tar").open("r+b") as tar:
        tar.seek(offset)
        changed = change(bytearray(tar.read(size)))
        assert len(changed) == size
        tar.seek(offset)
        tar.write(changed)


def edit_sidecar(folder: Path, unit: int, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / f"unit-{unit:06d}.json"
    sidecar = read_sidecar(path)
    change(sidecar)
    path.write_text(json.dumps(sidecar))


def npy_like(content: bytearray, array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue().ljust(len(content), b"\0")


def with_nan(content: bytearray) -> bytes:
    content[-2:] = np.float16("nan").tobytes()
    return bytes(content)


def without(suffix: str) -> Callable[[dict[str, Any]], None]:
    def remove(sidecar: dict[str, Any]) -> None:
        sidecar["members"][suffix][2] = [-1, 0]

    return remove


DAMAGE = {
    "not finite": lambda folder: edit_member(folder, 10, "latent.npy", with_nan),
    "bad npy": lambda folder: edit_member(folder, 10, "latent.npy", lambda content: bytes(len(content))),
    "shape (4, 64) instead of (4, 8, 8)": lambda folder: edit_member(
        folder, 10, "latent.npy", lambda content: npy_like(content, np.zeros((4, 64), np.float16))
    ),
    "bad json": lambda folder: edit_member(folder, 10, "json", lambda content: b"{" * len(content)),
    "wrong schema": lambda folder: edit_member(
        folder, 10, "json", lambda content: bytes(content).replace(b'"schema": %d' % SCHEMA, b'"schema": 9')
    ),
    "another sample's json": lambda folder: edit_member(
        folder, 10, "json", lambda content: bytes(content).replace(b'"key": "pic', b'"key": "cip')
    ),
    "missing member: latent": lambda folder: edit_sidecar(folder, 1, without("latent.npy")),
    "missing member: json": lambda folder: edit_sidecar(folder, 1, without("json")),
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_an_unreadable_sample_is_replaced_counted_and_listed(own, tmp_path, reason):
    expected = keys(stream(own, 4))
    DAMAGE[reason](own)
    damaged, substitute = (key_of(source) for source in sources(COUNT)[10:12])
    with pytest.raises(UnreadableSample) as caught:
        ShardDataset(own)[10]
    assert str(caught.value) == reason
    health = LoaderHealth(max_bad_share=0.5, quarantine=tmp_path / "run" / "quarantine.jsonl")
    found = stream(own, 4, health=health)
    assert keys(found) == [substitute if key == damaged else key for key in expected]
    assert [pair for batch in found for pair in batch["substituted"]] == [(damaged, reason)] * expected.count(damaged)
    assert health.reasons == {reason: expected.count(damaged)} and health.num_samples == 48
    lines = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert lines == [{"key": damaged, "reason": reason}]
    # The same with workers; and what is listed is not listed again.
    again = LoaderHealth(max_bad_share=0.5, quarantine=tmp_path / "run" / "quarantine.jsonl")
    assert keys(stream(own, 4, health=again, workers=2)) == keys(found)
    assert (tmp_path / "run" / "quarantine.jsonl").read_text().count("\n") == 1


def test_whatever_bit_of_an_array_s_header_is_turned_only_the_sample_is_bad():
    for position, bit in product(range(128), range(8)):
        content = bytearray(npy_bytes(np.ones(4, np.float16)))
        content[position] ^= 1 << bit
        with suppress(UnreadableSample):
            assert parse_array(memoryview(content), (4,)).tolist() == [1] * 4


def test_a_truncated_shard_gives_its_readable_samples(own):
    tar = own / "unit-000002.tar"
    sidecar = read_sidecar(own / "unit-000002.json")
    offset, size = sidecar["members"]["latent.npy"][5]
    with tar.open("r+b") as stream_:
        stream_.truncate(offset + size - 1)
    dataset = ShardDataset(own)
    batch = dataset.read_batch(range(16, 24))
    good = sidecar["keys"][:5]
    assert batch["key"] == [*good, good[0], good[0], good[0]]
    assert batch["substituted"] == [(key, "truncated shard") for key in sidecar["keys"][5:]]


def test_a_lost_shard_is_replaced_by_the_next(own):
    dataset = ShardDataset(own)
    (own / "unit-000005.tar").unlink()
    batch = dataset.read_batch([40, 41])
    assert batch["key"] == [dataset.key(0)] * 2
    assert [reason for _, reason in batch["substituted"]] == ["shard cannot be opened: No such file or directory"] * 2


def test_nothing_readable_is_an_error(own):
    dataset = ShardDataset(own)
    for tar in own.glob("*.tar"):
        tar.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no sample of .* can be read.*truncated shard"):
        dataset.read_batch([0])


def test_too_many_bad_samples_stop_the_run(own):
    for number in (3, 30):
        edit_member(own, number, "latent.npy", with_nan)
    with pytest.raises(ValueError, match=r"2 of \d+ samples could not be read.*data\.max_bad_share 0\.01"):
        stream(own, 20, health=LoaderHealth(max_bad_share=0.01))
    assert len(stream(own, 20, health=LoaderHealth(max_bad_share=0.06))) == 20


@pytest.mark.parametrize(("share", "passed"), [(0.0, 0), (0.01, 1), (0.02, 2)])
def test_the_first_samples_are_judged_as_a_hundred(share, passed):
    bad = {"key": ["a"], "substituted": [("a", "bad npy")]}
    health = LoaderHealth(share)
    for _ in range(passed):
        health.record(bad)
    with pytest.raises(ValueError, match=f"{passed + 1} of {passed + 1} samples could not be read"):
        health.record(bad)


def test_a_line_of_the_quarantine_that_was_cut_off_stays_alone(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    path.write_text('{"key": "a", "reason": "bad npy"}\n{"key": "b", "rea')
    for _ in range(2):
        health = LoaderHealth(1.0, path)
        health.record({"key": ["a", "c"], "substituted": [("a", "bad npy"), ("c", "bad npy")]})
    assert path.read_text().splitlines()[2:] == ['{"key": "c", "reason": "bad npy"}']
