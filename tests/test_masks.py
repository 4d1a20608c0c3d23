"""Which words differ, which tokens they are, and how a mask is blurred and resized."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from transformers import CLIPTokenizer

from models.masks import changed_words, gaussian_blur, soft_mask, word_mask, word_tokens


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    """CLIP's tokenizer that knows "red" and "ca" and spells everything else."""
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = [chr(code) for code in range(33, 127)]
    merges = [("r", "e"), ("re", "d</w>"), ("c", "a")]
    words = [*letters, *(f"{x}</w>" for x in letters), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]))
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12)


def tokens(tokenizer: CLIPTokenizer, text: str, words: list[int]) -> list[str]:
    ids = tokenizer(text, truncation=True, max_length=tokenizer.model_max_length).input_ids
    return [tokenizer.convert_ids_to_tokens(ids[position]) for position in word_tokens(tokenizer, text, words)]


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("a red circle", "a blue circle", ([1], [1])),
        ("a red circle", "a red circle", ([], [])),
        ("a circle", "a small red circle", ([], [1, 2])),
        ("a circle and a star", "a circle", ([2, 3, 4], [])),
        ("a circle, on grass.", "A circle on grass", ([], [])),
        ("a red star and a red ring", "a red star and a blue ring", ([5], [5])),
        ("", "a star", ([], [0, 1])),
        ("a  star\non   grass", "a ring on grass", ([1], [1])),
    ],
)
def test_changed_words(source: str, target: str, expected: tuple[list[int], list[int]]):
    assert changed_words(source, target) == expected
    assert changed_words(target, source) == expected[::-1]


def test_a_word_of_several_tokens_has_them_all(tokenizer: CLIPTokenizer):
    assert tokens(tokenizer, "a red cat", [1]) == ["red</w>"]
    assert tokens(tokenizer, "a red cat", [2]) == ["ca", "t</w>"]
    assert word_tokens(tokenizer, "a red cat", [0, 1, 2]) == [1, 2, 3, 4]
    assert word_tokens(tokenizer, "a red cat", []) == []


def test_punctuation_and_capitals_belong_to_their_word(tokenizer: CLIPTokenizer):
    assert tokens(tokenizer, "Red, cat.", [0]) == ["red</w>", ",</w>"]
    assert tokens(tokenizer, "Red, cat.", [1]) == ["ca", "t</w>", ".</w>"]


def test_repeated_words_are_told_apart(tokenizer: CLIPTokenizer):
    assert word_tokens(tokenizer, "red ed red", [0]) == [1]
    assert word_tokens(tokenizer, "red ed red", [1]) == [2, 3]
    assert word_tokens(tokenizer, "red  ed\tred", [2]) == [4]


def test_words_behind_the_length_limit_have_no_tokens(tokenizer: CLIPTokenizer):
    text = "red " * 9 + "cat red"
    assert word_tokens(tokenizer, text, [8]) == [9]
    assert word_tokens(tokenizer, text, [9]) == [10]
    assert word_tokens(tokenizer, text, [10]) == []


def test_special_tokens_belong_to_no_word(tokenizer: CLIPTokenizer):
    text = "a red cat"
    assert word_tokens(tokenizer, text, [0, 1, 2]) == list(range(1, len(tokenizer(text).input_ids) - 1))


def test_word_mask_is_where_the_changed_words_are_looked_at(tokenizer: CLIPTokenizer):
    maps = torch.full((2, 16, 12), 0.01)
    maps[0, 5, 2] = 0.9
    maps[0, 6, 2] = 0.5
    maps[:, 9, 1] = 1.0
    mask = word_mask(maps, tokenizer, ["a red cat"] * 2, ["a blue cat", "a red cat"], threshold=0.6)
    assert mask.shape == (2, 1, 4, 4)
    assert torch.nonzero(mask).tolist() == [[0, 0, 1, 1]]
    mask = word_mask(maps, tokenizer, ["a red cat"] * 2, ["a blue cat", "a red cat"], threshold=0.5)
    assert torch.nonzero(mask).tolist() == [[0, 0, 1, 1], [0, 0, 1, 2]]


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.0, 2.7])
def test_blur_is_scipys(sigma: float):
    image = noise(2, 1, 9, 12)
    expected = np.stack([gaussian_filter(plane, sigma, mode="nearest", truncate=3.0) for plane in image[:, 0].numpy()])
    torch.testing.assert_close(gaussian_blur(image, sigma)[:, 0], torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_soft_mask_at_the_latents_size_is_a_blur():
    mask = (noise(1, 1, 16, 16) > 0.6).float()
    expected = gaussian_filter(mask[0, 0].numpy(), 0.5, mode="nearest", truncate=3.0)
    torch.testing.assert_close(soft_mask(mask, (16, 16), 0.5)[0, 0], torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_blur_is_measured_in_latent_pixels():
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 20:44, 20:44] = 1
    expected = gaussian_filter(mask[0, 0].numpy(), 4 * 0.75, mode="nearest", truncate=3.0)
    averaged = soft_mask(mask, (16, 16), 0.75)
    sharp = torch.nn.functional.interpolate(torch.from_numpy(expected)[None, None], (16, 16), mode="area")
    torch.testing.assert_close(averaged, sharp, rtol=0, atol=0.03)


@pytest.mark.parametrize("size", [4, 8, 16, 64])
def test_soft_mask_keeps_all_and_nothing_and_its_range(size: int):
    ones = torch.ones(1, 1, size, size)
    assert soft_mask(ones, (16, 16), 0.5).sub(1).abs().max() < 1e-6
    assert soft_mask(0 * ones, (16, 16), 0.5).abs().max() == 0
    mask = soft_mask((noise(1, 1, size, size) > 0.5).float(), (16, 16), 0.5)
    assert mask.shape == (1, 1, 16, 16) and mask.min() >= 0 and mask.max() <= 1


def test_no_blur_leaves_a_mask_of_the_latents_size_alone():
    mask = (noise(1, 1, 16, 16) > 0.5).float()
    assert torch.equal(soft_mask(mask, (16, 16), 0.0), mask)


def test_soft_mask_of_a_boolean_mask():
    assert soft_mask(torch.ones(1, 1, 16, 16, dtype=torch.bool), (16, 16), 0.5).dtype == torch.float32


def test_tokenizer_files_are_read_back(tokenizer: CLIPTokenizer, tmp_path: Path):
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert word_tokens(again, "a red cat", [2]) == [3, 4]
