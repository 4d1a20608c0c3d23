"""The attribute reader: its loss ignores what is absent, it learns, and survives a save."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.world.description import ATTRIBUTE_VALUES, attribute_targets
from data.world.render import render
from data.world.splits import sample_scene
from eval.metrics.attributes import AttributeReader, AttributeReaderConfig, agreement, matches, stack_targets

TINY = AttributeReaderConfig(widths=(16, 32, 32), strides=(2, 2, 2))


def scenes_batch(num: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    scenes = [sample_scene("train", 0, index) for index in range(num)]
    images = torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2)
    return (images.float() / 127.5 - 1).contiguous(), stack_targets(attribute_targets(scene) for scene in scenes)


def test_default_size_and_heads():
    reader = AttributeReader()
    assert 0.5e6 < sum(parameter.numel() for parameter in reader.parameters()) < 0.7e6
    logits = reader(torch.zeros(2, 3, 64, 64))
    assert {name: tuple(scores.shape) for name, scores in logits.items()} == {
        name: (2, len(values)) for name, values in ATTRIBUTE_VALUES.items()
    }


def test_loss_is_the_sum_of_means_over_valid_targets():
    torch.manual_seed(0)
    _, targets = scenes_batch(6)
    targets["b_shape"].fill_(-1)  # a head without any target adds nothing
    logits = {name: torch.randn(6, len(values)) for name, values in ATTRIBUTE_VALUES.items()}
    expected = torch.zeros(())
    for name, target in targets.items():
        valid = target >= 0
        if valid.any():
            expected = expected + torch.nn.functional.cross_entropy(logits[name][valid], target[valid])
    torch.testing.assert_close(AttributeReader(TINY).loss(logits, targets), expected)


def test_it_learns():
    torch.manual_seed(0)
    images, targets = scenes_batch(32)
    reader = AttributeReader(TINY)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        loss = reader.loss(reader(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_reading_marks_what_is_absent_as_targets_do():
    images, _ = scenes_batch(32)
    reader = AttributeReader(TINY)
    with pytest.raises(ValueError, match="eval"):
        reader.read(images)
    read = reader.eval().read(images)
    for number in range(len(images)):
        pair = "+" in ATTRIBUTE_VALUES["layout"][read["layout"][number]]
        assert all((read[name][number] >= 0) == pair for name in ("b_shape", "b_colour", "b_fill"))
        is_circle = ATTRIBUTE_VALUES["a_shape"][read["a_shape"][number]] == "circle"
        assert (read["a_pose"][number] < 0) == is_circle


def test_agreement_merges_slots_and_ignores_absent_targets():
    _, targets = scenes_batch(40)
    assert set(agreement(targets, targets).values()) == {1.0}
    read = {name: target.clone() for name, target in targets.items()}
    read["b_colour"] = torch.where(targets["b_colour"] >= 0, (targets["b_colour"] + 1) % 6, 3)
    absent = int((targets["b_colour"] < 0).sum())
    assert 0 < absent < 40
    assert agreement(read, targets)["colour"] == pytest.approx(40 / (80 - absent))
    assert int(matches(read, targets)["b_colour"].isnan().sum()) == absent
    with pytest.raises(ValueError, match="at least one"):
        stack_targets([])


def test_saved_reader_reads_the_same(tmp_path: Path):
    torch.manual_seed(0)
    images, _ = scenes_batch(8)
    reader = AttributeReader(TINY)
    reader(images)  # moves the running statistics
    reader.eval().save(tmp_path)
    again = AttributeReader.load(tmp_path)
    assert not again.training and next(again.parameters()).dtype == torch.float32
    for name, logits in reader(images).items():
        torch.testing.assert_close(again(images)[name], logits, atol=1e-2, rtol=1e-2)


def test_reader_of_another_world_is_refused(tmp_path: Path):
    AttributeReader(TINY).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["values"]["style"] = ["natural"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="train the reader again"):
        AttributeReader.load(tmp_path)
    with pytest.raises(ValueError, match="expected as many"):
        AttributeReaderConfig(widths=(8,), strides=(1, 2))
