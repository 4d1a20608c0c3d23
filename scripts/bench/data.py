"""The data path beside webdataset, Pillow and the memory that shards take."""

import gc
import io
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.pictures import images
from data.shards.dataset import ShardDataset
from data.shards.loader import batches
from data.shards.sample import SampleInfo
from data.shards.shard import Origin, Sample, npy_bytes, read_sidecars, write_manifest, write_shard
from scripts.bench.photographs import photograph, write_photographs

LATENT, PROMPT, POOLED = (4, 64, 64), (77, 2048), (1280,)
"""SDXL's shapes at 512 pixels."""
SMALL_LATENT = (4, 16, 16)
"""The miniature's; the memory test counts samples, not bytes."""

UNIT = 256
RESOLUTION = 512
SIZES = ((640, 480), (1600, 1200))
"""Width and height of photographs: COCO's, and a camera's at two megapixels."""
GOAL_MS = 10.0
"""What the caption stage may take outside its model for a picture of COCO's size."""

CAPTION = (
    "The image features a woman in an orange suit who stands in front of a flag and a model of a space shuttle. She "
    "smiles at the camera, her hair is brown and curly, and the light falls from the left. The background is dark."
)


def measure_data_path(
    parts: Sequence[str],
    samples: int,
    prompt_samples: int,
    batch: int,
    workers: int,
    rounds: int,
    flat_samples: int,
    pictures: int,
) -> list[dict[str, Any]]:
    """Measure the data path on random shards and made photographs, in a temporary folder.

    Raises:
        ValueError: Sizes that do not fit together.
    """
    if workers * UNIT > min(samples, prompt_samples):
        raise ValueError(f"workers {workers}: webdataset needs a shard of {UNIT} samples for each; add samples")
    torch.set_num_threads(1)  # on either side
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if "loader" in parts:
            results += bench_loader(folder, samples, prompt_samples, batch, workers, rounds)
        if "memory" in parts:
            results += bench_memory(folder, flat_samples, batch, workers)
        if "decode" in parts:
            results += [bench_decode(size, pictures, rounds) for size in SIZES]
        if "stage" in parts:
            results += [result for size in SIZES for result in bench_stage(folder, size, pictures, rounds)]
    return results


# --- the loader beside webdataset ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FieldsRead:
    """Fields of samples that both sides read.

    Args:
        name: Suffix of the results' names.
        fields: Fields of our dataset.
        members: Members of the tar for webdataset, KEY.json for the caption.
        shapes: Shapes of the arrays that the shards hold.
        num: Samples in the shards.
    """

    name: str
    fields: tuple[str, ...]
    members: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    num: int


def bench_loader(
    folder: Path, samples: int, prompt_samples: int, batch: int, workers: int, rounds: int
) -> list[dict[str, Any]]:
    """Samples a second over whole epochs, and bytes read against bytes used.

    webdataset runs as its documentation has it: shards and samples shuffled, decoded and batched. It gives float16
    as stored and checks nothing; the loader gives checked float32 in an exact order.
    """
    readings = [
        FieldsRead("", ("latent", "caption"), ("latent.npy", "json"), {"latent.npy": LATENT}, samples),
        FieldsRead(
            "_prompts",
            ("latent", "prompt", "pooled", "caption"),
            ("latent.npy", "prompt.npy", "pooled.npy", "json"),
            {"latent.npy": LATENT, "prompt.npy": PROMPT, "pooled.npy": POOLED},
            prompt_samples,
        ),
    ]
    results = []
    for reading in readings:
        shards = write_array_shards(folder / f"loader{reading.name}", reading.num, reading.shapes)
        rates: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            rates[0].append(_rate(our_batches(shards, reading, batch, workers)))
            rates[1].append(_rate(their_batches(shards, reading, batch, workers)))
        _print_rounds(f"loader / webdataset{reading.name}, {workers} workers", *rates)
        results.append(_compared(f"loader_vs_webdataset{reading.name}", "samples/s", *rates))
        results += _bytes_read(shards, reading, batch)
    return results


def our_batches(shards: Path, reading: FieldsRead, batch: int, workers: int) -> Iterator[int]:
    """Sizes of the loader's batches of one epoch."""
    dataset = ShardDataset(shards, reading.fields)
    with closing(batches(dataset, 0, batch, batch, rank=0, world_size=1, workers=workers)) as stream:  # type: ignore[type-var]
        for _ in range(len(dataset) // batch):
            yield len(next(stream)["key"])


def their_batches(shards: Path, reading: FieldsRead, batch: int, workers: int) -> Iterator[int]:
    """Sizes of webdataset's batches of one epoch."""
    tars = sorted(str(path) for path in shards.glob("*.tar"))
    dataset = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0, empty_check=False)
    dataset = dataset.shuffle(1000).decode().to_tuple(*reading.members).batched(batch, partial=False)
    stream = webdataset.WebLoader(dataset, batch_size=None, num_workers=workers) if workers else dataset
    yield from (len(found[0]) for found in stream)


def _rate(sizes: Iterator[int]) -> float:
    """Samples a second after the first batch, which pays for the start of workers."""
    next(sizes)
    gc.collect()
    start = time.perf_counter()
    read = sum(sizes)
    return read / (time.perf_counter() - start)


def _bytes_read(shards: Path, reading: FieldsRead, batch: int) -> list[dict[str, Any]]:
    """Bytes that the loader asks the system for in an epoch, a sample, against those of the members that it needs."""
    counter = Path("/proc/self/io")
    if not counter.is_file():
        print("bytes read are not measured: this system has no /proc/self/io")
        return []

    def read_so_far() -> int:
        return int(counter.read_text().split()[1])  # "rchar: 123": what read and pread returned

    stream = our_batches(shards, reading, batch, workers=0)
    read = next(stream)
    before = read_so_far()
    read = sum(stream)
    total = read_so_far() - before
    sidecars = read_sidecars(shards).values()
    used = sum(size for sidecar in sidecars for suffix in reading.members for _, size in sidecar["members"][suffix])
    return [_result(f"loader_bytes_read{reading.name}", total / read, "bytes/sample", used / reading.num)]


def write_array_shards(folder: Path, num: int, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """Finished shards of `num` samples, float16 arrays by suffix; returns `folder`."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).standard_normal(1 << 20, np.float32).astype(np.float16)
    origin = Origin("bench", {}, {}, {"resolution": RESOLUTION})

    def sample(number: int) -> Sample:
        key = f"random{number:07d}"
        info = SampleInfo(key, CAPTION, CAPTION, (640, 480), (80, 0, 480, 480), f"{number:064x}", f"{key}.jpg")
        # Arrays differ from sample to sample, without the cost of a million draws for each.
        arrays = {suffix: np.roll(noise, number)[: np.prod(shape)].reshape(shape) for suffix, shape in shapes.items()}
        return Sample(key, {"json": info.to_json(), **{suffix: npy_bytes(array) for suffix, array in arrays.items()}})

    sidecars = {}
    for first in range(0, num, UNIT):
        unit = f"unit-{first // UNIT:06d}"
        outcomes = (sample(number) for number in range(first, min(first + UNIT, num)))
        sidecars[unit] = write_shard(folder, unit, outcomes, origin, inputs="")
    write_manifest(folder, sidecars)
    return folder


# --- memory --------------------------------------------------------------------------------------------------------


def bench_memory(folder: Path, flat_samples: int, batch: int, workers: int) -> list[dict[str, Any]]:
    """Memory of this process and its workers after all samples, against that after the first tenth."""
    if not Path("/proc/self/smaps_rollup").is_file():
        print("memory is not measured: this system has no /proc/self/smaps_rollup")
        return []
    num = max(flat_samples // 5, 2 * batch)  # five epochs
    dataset = ShardDataset(write_array_shards(folder / "flat", num, {"latent.npy": SMALL_LATENT}))
    stream = batches(dataset, 0, batch, batch, rank=0, world_size=1, workers=workers)
    for _ in range(flat_samples // 10 // batch):
        next(stream)
    early = _resident_bytes()
    for _ in range(flat_samples // batch - flat_samples // 10 // batch):
        next(stream)
    late = _resident_bytes()
    stream.close()  # type: ignore[attr-defined]
    return [_result("loader_memory_after_all_samples", late / 1e6, "MB", early / 1e6)]


def _resident_bytes() -> int:
    """Memory of this process and its workers; what they share counts once."""
    gc.collect()
    processes = ["self", *(str(child.pid) for child in multiprocessing.active_children())]
    found = [Path(f"/proc/{process}/smaps_rollup").read_text().split("Pss:")[1].split()[0] for process in processes]
    return 1024 * sum(int(kilobytes) for kilobytes in found)


# --- the caption stage ---------------------------------------------------------------------------------------------


def bench_decode(size: tuple[int, int], pictures: int, rounds: int) -> dict[str, Any]:
    """Decoding and cropping as the stage does it, against Pillow alone, in turns; CPU milliseconds a picture."""
    contents = [photograph(number, size) for number in range(pictures)]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        seconds = [0.0, 0.0]
        for content in contents:
            for side, take in enumerate((_our_square, _pillow_square)):
                start = time.thread_time()
                take(content)
                seconds[side] += time.thread_time() - start
        for side in (0, 1):
            times[side].append(1000 * seconds[side] / pictures)
    name = f"decode_and_resize_{size[0]}x{size[1]}"
    _print_rounds(f"{name}, ours / Pillow alone, {np.mean([len(c) for c in contents]) / 1000:.0f} KB each", *times)
    return _compared(name, "ms/image", *times)


def _our_square(content: bytes) -> Image.Image:
    return images.centre_square(images.decode(content), RESOLUTION)[0]


def _pillow_square(content: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(content))
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    return picture.convert("RGB").resize((RESOLUTION, RESOLUTION), Image.Resampling.LANCZOS, box=box)


def bench_stage(folder: Path, size: tuple[int, int], pictures: int, rounds: int) -> list[dict[str, Any]]:
    """data.caption with captions that are there: all that the stage does outside a captioning model, ms a picture.

    Its threads share the cores, so the CPU time is reported beside the time that passes.
    """
    name = f"caption_stage_{size[0]}x{size[1]}"
    source = write_photographs(folder / name, pictures, size, CAPTION)
    config = CaptionConfig(engine="existing", resolution=RESOLUTION, min_size=min(size))
    times, cpu_times = [], []
    for number in range(rounds):
        out = folder / f"{name}_out{number}"
        start, cpu_start = time.perf_counter(), time.process_time()
        caption_folder(source, out, config)
        times.append(1000 * (time.perf_counter() - start) / pictures)
        cpu_times.append(1000 * (time.process_time() - cpu_start) / pictures)
    print(f"{name}, ms an image, round by round: {' '.join(f'{found:.2f}' for found in times)}")
    goal = GOAL_MS if size == SIZES[0] else None
    return [
        _result(name, statistics.median(times), "ms/image", goal),
        _result(f"{name}_cpu", statistics.median(cpu_times), "ms/image", goal),
    ]


# --- results -------------------------------------------------------------------------------------------------------


def _print_rounds(what: str, ours: Sequence[float], theirs: Sequence[float]) -> None:
    ratios = " ".join(f"{mine / reference:.2f}" for mine, reference in zip(ours, theirs, strict=True))
    print(f"{what}, round by round: {ratios}")


def _compared(name: str, unit: str, ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    return _result(name, statistics.median(ours), unit, statistics.median(theirs))


def _result(name: str, value: float, unit: str, reference: float | None) -> dict[str, Any]:
    ratio = None if reference is None else round(value / reference, 4)
    rounded = None if reference is None else round(reference, 4)
    return {"name": name, "value": round(value, 4), "unit": unit, "reference": rounded, "ratio": ratio}
