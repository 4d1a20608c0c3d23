"""Pictures with several captions: shards hold all of them, and each epoch of a training takes another."""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.captioning.tokens import TokenLimits
from data.encode import encode_shards
from data.inspection.checks import inspect_shards, terminal_report
from data.inspection.config import InspectConfig
from data.inspection.page import write_page
from data.shards.dataset import ShardDataset
from data.shards.encode_config import EncodeConfig
from data.shards.loader import batches, tell_captions
from data.shards.order import caption_number
from data.shards.sample import SCHEMA, OtherCaption, SampleInfo
from data.shards.shard import Drop, Sample, npy_bytes, read_manifest, read_samples, read_sidecars
from data.shards.sides import SplitConfig
from data.shards.stage import Unit, divide, run_stage
from data.split import split_shards
from models.backbone import Backbone
from models.shapes import SizeConditioning
from tests.shard_folders import latent_of, origin
from tests.test_caption_checks import GOOD
from tests.tiny_training import TinyTask, tiny_config, train
from train.rng import StepRandom
from train.task import Batch, StepLoss

STUDENT = "models/miniature/student"
COUNT, SEVERAL = 20, 3
PINNED = [3, 1, 2, 0, 3, 2, 0, 1]


def texts_of(number: int) -> list[str]:
    """The captions of sample `number`: one of every fourth, three of the others."""
    return [f"{number} in words {turn}" for turn in range(1 if number % 4 == 0 else SEVERAL)]


def make(folder: Path, shapes: bool = False) -> Path:
    """A finished folder of samples with these captions; every fifth is wide where they have `shapes`."""

    def sample(name: str) -> Sample:
        number, texts = int(name), texts_of(int(name))
        others = tuple(OtherCaption(text, text) for text in texts[1:])
        checks = {"captions": len(texts)} if others else {}
        info = SampleInfo(name, texts[0], texts[0], (64, 64), (0, 0, 64, 64), name, name, {}, checks, SCHEMA, others)
        wide = shapes and number % 5 == 0
        latent = np.zeros((4, 4, 16), np.float16) if wide else latent_of(number)
        members = {"json": info.to_json(), "latent.npy": npy_bytes(latent)}
        return Sample(name, members, checks, ((128, 32) if wide else (64, 64)) if shapes else None)

    def process(unit: Unit) -> Iterator[Sample | Drop]:
        return map(sample, unit.items)

    names = [f"{number:04d}" for number in range(COUNT)]
    run_stage(divide(names, names, 8), folder, process, origin(), max_damage=0)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("several") / "shards")


def stream(folder: Path, num_batches: int, **options: Any) -> list[dict[str, Any]]:
    sizes = dict(seed=5, global_batch=6, micro_batch=6, rank=0, world_size=1, window=2) | options
    return list(islice(batches(ShardDataset(folder), **sizes), num_batches))


def pairs(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [pair for batch in found for pair in zip(batch["key"], batch["caption"], strict=True)]


# --- the loader ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shapes", [False, True])
def test_each_caption_comes_once_before_one_comes_again(tmp_path: Path, shapes: bool):
    """Against the plain way: the caption of a sample follows from how often it came before. Also with buckets."""
    found = pairs(stream(make(tmp_path / "shards", shapes), 20 * 2 * SEVERAL // 6))
    heard = defaultdict(list)
    for key, caption in found:
        texts = texts_of(int(key))
        assert caption == texts[caption_number(5, len(heard[key]), key, len(texts))]
        heard[key].append(caption)
    rounds = [(texts_of(int(key)), captions[:SEVERAL]) for key, captions in heard.items() if int(key) % 4]
    assert len(rounds) == 15 and all(sorted(texts) == sorted(first) for texts, first in rounds)
    assert len({tuple(map(texts.index, first)) for texts, first in rounds}) > 3  # the order is each sample's own


def test_the_first_epochs_caption_is_drawn_by_the_seed():
    drawn = [[caption_number(seed, 0, str(key), SEVERAL) for key in range(300)] for seed in (1, 2)]
    assert min(Counter(drawn[0]).values()) > 70 and len(Counter(drawn[0])) == SEVERAL
    assert 150 < sum(a != b for a, b in zip(*drawn, strict=True)) < 250
    assert [caption_number(7, epoch, "key", 4) for epoch in range(8)] == PINNED


@pytest.mark.parametrize("shapes", [False, True])
def test_ranks_workers_and_a_resume_take_the_same_captions(tmp_path: Path, shapes: bool):
    folder = make(tmp_path / "shards", shapes)
    whole = pairs(stream(folder, 12))
    assert pairs(stream(folder, 12, workers=2)) == whole
    assert pairs(stream(folder, 7, consumed=30, workers=1)) == whole[30:]  # 30 is inside the second epoch
    halves = [stream(folder, 12, rank=rank, world_size=2, micro_batch=3) for rank in (0, 1)]
    assert pairs([batch for both in zip(*halves, strict=True) for batch in both]) == whole
    if not shapes:
        assert pairs(stream(folder, 7, consumed=30, global_batch=5, micro_batch=5)) == whole[30:65]


def test_without_an_epoch_the_first_caption_is_read(folder: Path):
    dataset = ShardDataset(folder)
    first = [texts_of(number)[0] for number in range(COUNT)]
    assert dataset.num_several == 15
    assert [dataset[number]["caption"] for number in range(COUNT)] == dataset.read_batch(range(COUNT))["caption"]
    assert dataset.read_batch(range(COUNT))["caption"] == first


@pytest.mark.parametrize("others", [{}, None, ["a text"], [{"caption": 3, "caption_raw": "", "checks": {}}]])
def test_other_captions_that_are_none_are_refused(others: Any):
    text = SampleInfo("k", "one", "one", (8, 8), (0, 0, 8, 8), "", "").to_json()
    with pytest.raises(ValueError, match=r"KEY\.json has the other captions"):
        SampleInfo.from_json(json.dumps(json.loads(text) | {"other_captions": others}))


class ListeningTask(TinyTask):
    """The tiny task, which writes down what it is told."""

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        """As the tiny task's."""
        with (Path(self.config.run.folder) / "told.txt").open("a") as stream:
            stream.writelines(f"{key}: {caption}\n" for key, caption in pairs([batch]))
        return super().loss(model, batch, rng)


def test_a_training_goes_on_with_the_captions_of_its_epoch(folder: Path, tmp_path: Path):
    words = ("--run.global_batch=6", "--run.micro_batch=6", "--log.preview_every=0")
    for run, steps in (("whole", 8), ("parts", 5), ("parts", 8)):
        config = tiny_config(folder, tmp_path / run, *words, f"--run.steps={steps}", "--log.checkpoint_every=5")
        train(config, ListeningTask)
    told = [(tmp_path / run / "told.txt").read_text() for run in ("whole", "parts")]
    assert told[0] == told[1] and len(set(told[0].splitlines())) > 40  # of 48: hardly one comes twice


# --- shards of before ----------------------------------------------------------------------------------------------

BEFORE = (
    '{"caption": "a cat", "caption_raw": "a cat\\n", "checks": {}, "content_hash": "ab", "crop": [8, 0, 64, 64], '
    '"extra": {}, "key": "k", "original_size": [80, 64], "schema": 2, "source": "k.png"}'
)
"""KEY.json as earlier versions wrote it."""


def test_one_caption_is_stored_as_before():
    info = SampleInfo.from_json(BEFORE)
    assert info.caption == "a cat" and info.other_captions == ()
    assert info.to_json().decode() == BEFORE


# --- data.caption, data.encode, data.inspect -----------------------------------------------------------------------

LISTS = {
    "a.png": ["The image features a red cat.", None, "I'm sorry, I cannot do that.", f"It is so: {GOOD[0]}", "a  dog"],
    "b.png": ["no " * 9, "a bird"],
    "c.png": "a fish",
    "d.png": ["I'm sorry, I cannot.", "no " * 9],
}


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("captioned")
    for number, name in enumerate(LISTS):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        (root / "in").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / "in" / name)
    rows = [json.dumps({"file_name": name, "text": text}) for name, text in LISTS.items()]
    (root / "in/metadata.jsonl").write_text("\n".join(rows))
    caption_folder(
        root / "in", root / "out", CaptionConfig(several="random", resolution=64, clean=True, backbone=STUDENT)
    )
    return root / "out"


@pytest.fixture(scope="module")
def encoded(captioned: Path, tiny_backbone: str) -> Path:
    out = captioned.parent / "encoded"
    encode_shards(captioned, out, EncodeConfig(tiny_backbone, prompts=True))
    return out


def infos(folder: Path) -> dict[str, SampleInfo]:
    samples = [sample for sidecar in read_sidecars(folder).values() for sample in read_samples(folder, sidecar)]
    found = [SampleInfo.from_json(sample.members["json"]) for sample in samples if isinstance(sample, Sample)]
    return {info.source: info for info in found}


def test_each_caption_of_a_list_is_cleaned_and_counted_and_bad_ones_are_left_out(captioned: Path):
    found = infos(captioned)
    cat, bird, fish, dog = found["a.png"], found["b.png"], found["c.png"], TokenLimits.load(STUDENT).count("a dog")
    assert cat.caption == "A red cat." and [other.caption for other in cat.other_captions][1:] == ["a dog"]
    assert cat.checks["opening_stripped"] == "The image features" and cat.other_captions[1].caption_raw == "a  dog"
    assert cat.checks["captions"] == 3 and cat.checks["captions_left_out"] == {"refusal": 1}
    assert cat.other_captions[0].checks["truncated"] and cat.other_captions[1].checks["tokens"] == dog
    assert (bird.caption, bird.other_captions, bird.checks["captions_left_out"]) == ("a bird", (), {"repetition": 1})
    assert fish.caption == "a fish" and "captions_left_out" not in fish.checks
    (sidecar,) = read_sidecars(captioned).values()
    assert sidecar["drops"] == {"damage": {}, "policy": {"caption: refusal": 1}} and sidecar["count"] == 3
    assert sidecar["checks"]["truncated"] == {"count": 5, "true": 1}
    assert sidecar["checks"]["captions"] == {"count": 1, "sum": 3, "max": 3}
    assert sidecar["checks"]["captions_left_out.refusal"] == {"count": 1, "sum": 1, "max": 1}
    assert {name: value for name, value in sidecar["config"].items() if "several" in name} == {"several": "random"}


def test_stored_prompts_are_of_the_first_caption_and_it_is_said(
    captioned: Path, encoded: Path, tiny_backbone: str, caplog: pytest.LogCaptureFixture
):
    dataset = ShardDataset(encoded, ("prompt", "caption"))
    assert infos(encoded) == infos(captioned) and dataset.num_several == 1
    backbone = Backbone.load(tiny_backbone, parts=["text"])
    for batch in islice(batches(dataset, 0, 3, 3, 0, 1), 4):
        expected = backbone.encode_text(batch["caption"], SizeConditioning.uncropped(64, 64)).embeds
        torch.testing.assert_close(batch["prompt"], expected, atol=2e-3, rtol=0)
        assert {"A red cat.", "a bird", "a fish"} == set(batch["caption"])
    with caplog.at_level(logging.INFO):
        encode_shards(captioned, encoded, EncodeConfig(tiny_backbone, prompts=True))
        tell_captions(dataset)
        tell_captions(ShardDataset(encoded))
    said = [message for message in caplog.messages if "several captions" in message]
    assert "1 of 3 samples have several captions: the stored prompts are of the first alone" in said[0]
    assert "every epoch takes the first" in said[1] and "generator.cached_prompts false" in said[1]
    assert said[2].endswith("1 of 3 samples in " + f"{encoded} have several captions: each epoch takes another")


def test_an_inspection_counts_them(captioned: Path, encoded: Path, tmp_path: Path):
    for folder in (captioned, encoded):
        found = inspect_shards(folder, InspectConfig())
        assert not found.findings.problems and found.sampled is not None
        assert (found.sampled.captions.num_samples, found.sampled.captions.count) == (3, 5)
        said = terminal_report(found)
        assert "several captions: 1 of 3 samples, 3.0 on average, at most 3" in said
        assert ("the stored prompt and pooled are of the first" in said) == (folder == encoded)
        page = write_page(found, tmp_path / folder.name).read_text()
        assert "2 more</summary>" in page and "<li>a dog</li>" in page


@pytest.mark.parametrize("kind", ["captioned", "encoded"])
def test_the_sides_of_a_split_say_of_all_captions_what_the_whole_says(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
):
    whole: Path = request.getfixturevalue(kind)
    sides = split_shards(whole, tmp_path / kind, SplitConfig(validation=2)).values()

    def counts(manifest: dict[str, Any]) -> dict[str, int]:
        return {name: figures["count"] for name, figures in manifest["checks"].items()}

    found = [counts(side) for side in sides]
    summed = {name: sum(side.get(name, 0) for side in found) for name in {*found[0], *found[1]}}
    assert summed == counts(read_manifest(whole)) and summed
