"""Pictures of several shapes: their buckets, the shards that hold them, and the batches of one bucket each."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.encode import EncodeConfig, encode_shards
from data.inspect import main as inspect
from data.pictures.buckets import bucket_sizes, nearest_bucket
from data.shards.dataset import ShardDataset
from data.shards.loader import batches
from data.shards.order import BatchOrder, SampleOrder
from data.shards.shard import read_samples, read_sidecars
from models.backbone import Backbone
from models.shapes import WantedShape, shapes

FACTOR = 4
"""Pixels of a latent's element, of the tiny VAE."""

SHAPES = [(90, 60), (60, 90), (64, 64), (130, 70), (200, 100), (64, 66)]


@pytest.mark.parametrize(
    ("size", "bucket"),
    [((4000, 3000), (576, 448)), ((3000, 4000), (448, 576)), ((500, 500), (512, 512)), ((9000, 100), (1024, 256))],
)
def test_a_bucket_is_the_shape_in_which_the_pipeline_edits(size: tuple[int, int], bucket: tuple[int, int]):
    assert nearest_bucket(size, 512) == bucket
    assert WantedShape(512, 64).of([size[::-1]]) == bucket[::-1]
    assert bucket in bucket_sizes(512) and (512, 512) in bucket_sizes(512)


def test_those_of_the_miniature_are_its_pipelines():
    backbone = Backbone.load("models/miniature/student", parts=("network", "vae"))
    assert {size[::-1] for size in bucket_sizes(64)} == set(shapes(backbone.image_size, backbone.multiple))


@pytest.mark.parametrize("side", [64, 128, 192, 256, 320, 384, 512, 640, 768, 1024])
def test_buckets_are_the_shapes_of_a_pipeline_of_any_size(side: int):
    """For a VAE and a UNet of three levels, as the miniature's, which halve by 16."""
    backbone = Backbone.load("models/miniature/student", parts=("network", "vae"))
    backbone.unet.register_to_config(sample_size=side * backbone.unet.config.sample_size // backbone.image_size)
    assert backbone.image_size == side and backbone.multiple % 16 == 0
    assert {size[::-1] for size in bucket_sizes(side)} == set(shapes(side, backbone.multiple))
    assert (side, side) in bucket_sizes(side)
    for size in ((4000, 3000), (700, 1500), (500, 500)):
        wanted = WantedShape(backbone.image_size, backbone.multiple).of([size[::-1]])
        assert nearest_bucket(size, side) == wanted[::-1]


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of buckets of about 64 pixels: 36 pictures of six shapes, and one that is too small."""
    root = tmp_path_factory.mktemp("buckets")
    draw = np.random.default_rng(0)
    (root / "pictures").mkdir()
    for number in range(36):
        width, height = SHAPES[number % len(SHAPES)]
        pixels = draw.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(root / "pictures" / f"{number:02d}.png")
        (root / "pictures" / f"{number:02d}.txt").write_text(f"picture {number}")
    Image.new("RGB", (70, 40)).save(root / "pictures" / "small.png")
    caption_folder(root / "pictures", root / "captioned", CaptionConfig(resolution=64, shapes="buckets", unit_size=8))
    return root / "captioned"


@pytest.fixture(scope="module")
def encoded(captioned: Path, tiny_backbone: str) -> Path:
    config = EncodeConfig(backbone=tiny_backbone, keep_images=True, prompts=True, batch=4)
    encode_shards(captioned, captioned.parent / "encoded", config)
    return captioned.parent / "encoded"


def test_a_picture_keeps_its_aspect_and_says_what_was_cut(captioned: Path):
    dataset = ShardDataset(captioned, ("image", "info"))
    assert len(dataset) == 36 and (64, 64) in dataset.buckets
    for index in range(len(dataset)):
        sample = dataset[index]
        width, height = sample["info"]["original_size"]
        expected = nearest_bucket((width, height), 64)
        assert sample["image"].shape == (3, expected[1], expected[0])
        assert dataset.buckets[dataset.bucket_of[index]] == expected
        left, top, kept_width, kept_height = sample["info"]["crop"]
        assert left >= 0 and left + kept_width <= width and top >= 0 and top + kept_height <= height
        assert kept_width == width or kept_height == height
        assert kept_width / kept_height == pytest.approx(expected[0] / expected[1], rel=0.02)
    drops = [drop for sidecar in read_sidecars(captioned).values() for drop in sidecar["dropped"]]
    assert [(drop["source"], drop["reason"]) for drop in drops] == [("small.png", "too small")]


def test_latents_have_the_shape_of_their_picture(encoded: Path):
    dataset = ShardDataset(encoded, ("latent", "image", "prompt"))
    for index in range(len(dataset)):
        sample, (width, height) = dataset[index], dataset.buckets[dataset.bucket_of[index]]
        assert sample["image"].shape == (3, height, width)
        assert sample["latent"].shape == (4, height // FACTOR, width // FACTOR)


def test_latents_are_those_of_the_picture_alone(encoded: Path, tiny_backbone: str):
    dataset, backbone = ShardDataset(encoded, ("latent", "image")), Backbone.load(tiny_backbone, parts=["vae"])
    for index in range(0, len(dataset), 7):
        sample = dataset[index]
        torch.testing.assert_close(
            sample["latent"], backbone.encode_image(sample["image"][None])[0], rtol=1e-2, atol=1e-2
        )


def test_shards_come_back_with_their_sizes(encoded: Path):
    for sidecar in read_sidecars(encoded).values():
        sizes = [sample.size for sample in read_samples(encoded, sidecar)]
        assert sizes == [tuple(size) for size in sidecar["sizes"]] and len(set(sizes)) > 1


def stream(folder: Path, count: int, rank: int = 0, world_size: int = 1, **options: int) -> list[dict]:
    source = batches(
        ShardDataset(folder, ("latent",)), 3, 4, options.pop("micro_batch", 4), rank, world_size, **options
    )
    return [next(source) for _ in range(count)]


def keys(found: list[dict]) -> list[str]:
    return [key for batch in found for key in batch["key"]]


def test_a_batch_has_one_shape_and_all_samples_come_alike(encoded: Path):
    found = stream(encoded, 9 * 6)  # six epochs of 36 samples
    assert {len({tuple(latent.shape) for latent in batch["latent"]}) for batch in found} == {1}
    assert len({batch["latent"].shape for batch in found}) == len(ShardDataset(encoded).buckets)
    times = Counter(keys(found))
    assert len(times) == 36 and set(times.values()) <= {5, 6, 7}


def test_ranks_workers_and_a_resume_change_nothing(encoded: Path):
    whole = stream(encoded, 24)
    assert keys(stream(encoded, 24, workers=2)) == keys(whole)
    assert keys(stream(encoded, 10, consumed=14 * 4)) == keys(whole)[14 * 4 :]
    halves = [stream(encoded, 24, rank=rank, world_size=2, micro_batch=2) for rank in (0, 1)]
    assert [key for pair in zip(*halves, strict=True) for key in keys(list(pair))] == keys(whole)
    with pytest.raises(ValueError, match="6 samples are no whole number of batches of 4: with pictures of several"):
        stream(encoded, 1, consumed=6)


@pytest.mark.parametrize("counts", [(50, 7, 3), (8, 8), (100, 1)])
def test_batches_are_those_of_a_queue_for_each_bucket(counts: tuple[int, ...]):
    """Against the plain way: samples go into the queue of their bucket, and a full queue is a batch."""
    bucket_of = np.repeat(np.arange(len(counts)), counts).astype(np.uint8)[
        np.random.default_rng(1).permutation(sum(counts))
    ]
    order = SampleOrder([10] * (len(bucket_of) // 10) + [len(bucket_of) % 10 or 10][: len(bucket_of) % 10 > 0], 5, 2)
    queues: list[list[int]] = [[] for _ in counts]
    expected = []
    for position in range(7 * len(bucket_of)):
        sample = order.index(position)
        queue = queues[bucket_of[sample]]
        queue.append(sample)
        if len(queue) == 6:
            expected.append(queue.copy())
            queue.clear()
    found = BatchOrder(order, bucket_of, 6)
    assert [found.samples(6 * number).tolist() for number in range(len(expected))] == expected
    backwards = BatchOrder(order, bucket_of, 6)
    assert backwards.samples(6 * (len(expected) - 1)).tolist() == expected[-1]


class CountedOrder(SampleOrder):
    """An order that counts how often each epoch is permuted."""

    def epoch(self, number: int) -> np.ndarray:
        self.times = getattr(self, "times", Counter()) + Counter([number])
        return super().epoch(number)


@pytest.mark.parametrize("first", [0, 200])
def test_a_rare_shape_makes_no_epoch_be_permuted_twice(first: int):
    """Also after a resume, where the batches of both rare shapes begin in epochs long past."""
    bucket_of = np.repeat([0, 1, 2], (50, 2, 1)).astype(np.uint8)[np.random.default_rng(1).permutation(53)]
    counted = CountedOrder([10] * 5 + [3], 5, 2)
    found, plain = BatchOrder(counted, bucket_of, 6), SampleOrder([10] * 5 + [3], 5, 2)
    rare = 0
    for number in range(first, first + 150):
        batch = found.samples(6 * number)
        rare += bool(bucket_of[batch[0]])
        assert len(set(bucket_of[batch])) == 1
        assert batch.tolist() == BatchOrder(plain, bucket_of, 6).samples(6 * number).tolist()
    assert rare > 5 and set(counted.times.values()) == {1}


def test_one_shape_has_the_order_of_the_samples_themselves():
    order = SampleOrder([5, 5, 3], 1, 2)
    found = BatchOrder(order, np.zeros(13, np.uint8), 4)
    assert [int(s) for n in range(9) for s in found.samples(4 * n)] == [order.index(i) for i in range(36)]
    assert found.samples(3).tolist() == [order.index(i) for i in range(3, 7)]


def test_an_inspection_lists_the_shapes(encoded: Path, captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    for folder in (encoded, captioned):
        inspect([str(folder), "--out", str(tmp_path / folder.name), "--global-batch", "8"])
        said, page = capsys.readouterr().out, (tmp_path / folder.name / "index.html").read_text()
        assert "shapes: 64x64 12, 96x48 12, 80x48 6, 48x80 6" in said and "Ready" in said
        assert (
            "a shape has fewer samples than one global batch" in said
            and "holds each several times" in said
            and ">Shapes</h2>" in page
        )
        assert "64 × 64" in page and "of it 64 × 64 at 0, 1" in page


def test_an_inspection_finds_a_wrong_size(encoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    copied = tmp_path / "copy"
    shutil.copytree(encoded, copied)
    sidecar = read_sidecars(copied)["unit-000000"]
    first, other = sidecar["sizes"][0], next(size for size in sidecar["sizes"] if size != sidecar["sizes"][0])
    sidecar["sizes"][0] = other
    (copied / "unit-000000.json").write_text(json.dumps(sidecar))
    with pytest.raises(SystemExit, match="1"):
        inspect([str(copied), "--out", str(tmp_path / "page")])
    said = capsys.readouterr().out
    assert f"is {first[0]}x{first[1]} instead of {other[0]}x{other[1]} px" in said
    assert "an array is not what the loader reads" in said
