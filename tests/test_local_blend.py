"""The mask of a local blend against its steps written with numpy and scipy, and when and where it blends."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.ndimage import maximum_filter
from torch import Tensor

from models.attention import Layer
from models.backbone import Backbone
from models.local_blend import BlendWords, LocalBlend
from models.text import ClipText, DualClipText

SOURCES = ["a red star on grass", "a blue circle"]
TARGETS = ["a blue star on grass", "a small circle and a star"]
WORDS = [BlendWords(["red", "star"], ["blue star"]), BlendWords(["circle"], ["star", "small"])]
POSITIONS = ([[2, 3], [3]], [[2, 3], [2, 6]])
"""Tokens of the words in the sources and in the targets."""
SIDE, LENGTH = 8, 48
SIZE = (32, 32)


@pytest.fixture(scope="module")
def text() -> ClipText | DualClipText:
    found = Backbone.load("models/miniature/teacher", parts=("text",)).text
    assert found is not None
    return found


def evaluations(count: int) -> Tensor:
    """Peaked maps [count, rows, heads, Q, L] of the eight rows of an evaluation with two pairs."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 8, 2, SIDE * SIDE, LENGTH, generator=generator).mul(3).softmax(-1)


def watch(blend: LocalBlend, maps: Tensor) -> None:
    """Show `maps` to the rules of a blend as the layers of a UNet would."""
    (rule,) = blend.rules
    layer = Layer("attn2", True, SIDE * SIDE)
    assert rule.touches(layer)
    for one in maps:
        assert torch.equal(rule.maps(layer, one), one)


def reference(maps: Tensor, words: Sequence[Sequence[int]], pool: bool, threshold: float) -> list[np.ndarray]:
    """For maps [count, pairs, heads, Q, L] where each pair's words are above the threshold."""
    found = []
    for pair, positions in enumerate(words):
        heat = sum(maps[:, pair, :, :, j].double().sum((0, 1)) for j in positions) + torch.zeros(SIDE * SIDE)
        heat = heat.view(SIDE, SIDE).numpy()
        heat = maximum_filter(heat, 3, mode="constant") if pool else heat
        heat = np.kron(heat, np.ones((SIZE[0] // SIDE, SIZE[1] // SIDE)))
        found.append(heat / max(heat.max(), 1e-300) > threshold)
    return found


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.95])
def test_the_mask_is_the_papers(text: ClipText | DualClipText, threshold: float):
    blend = LocalBlend(text, SOURCES, TARGETS, WORDS, num_steps=10, size=(SIDE, SIDE), threshold=threshold)
    maps = evaluations(3)
    watch(blend, maps)
    places = blend.mask(SIZE)
    assert places.shape == (2, 1, *SIZE) and places.dtype == torch.bool
    sources = reference(maps[:, 4:6], POSITIONS[0], True, threshold)
    targets = reference(maps[:, 6:8], POSITIONS[1], True, threshold)
    for pair in range(2):
        expected = sources[pair] | targets[pair]
        assert np.array_equal(places[pair, 0].numpy(), expected)
    if threshold == 0.95:
        assert 0 < places.float().mean() < 1


def test_places_of_kept_words_are_taken_out_without_pooling(text: ClipText | DualClipText):
    maps = evaluations(2)
    words = [BlendWords(["red"], ["blue"], kept_target=["grass"]), BlendWords(["circle"], [], kept_source=["blue"])]
    blend = LocalBlend(text, SOURCES, TARGETS, words, num_steps=10, size=(SIDE, SIDE))
    watch(blend, maps)
    changed = [
        reference(maps[:, 4:6], [[2], [3]], True, 0.3),
        reference(maps[:, 6:8], [[2], []], True, 0.3),
    ]
    kept = [reference(maps[:, 4:6], [[], [2]], False, 0.3), reference(maps[:, 6:8], [[5], []], False, 0.3)]
    for pair in range(2):
        expected = (changed[0][pair] | changed[1][pair]) & ~(kept[0][pair] | kept[1][pair])
        assert np.array_equal(blend.mask(SIZE)[pair, 0].numpy(), expected)
        assert expected.any() and not expected.all()


def test_maps_are_summed_over_all_evaluations_so_far(text: ClipText | DualClipText):
    """One strong map outweighs many weak ones, wherever it stands among them."""
    maps = torch.full((4, 8, 2, SIDE * SIDE, LENGTH), 1e-3)
    maps[1, :, :, 20, 2:4] = 1.0
    blend = LocalBlend(text, SOURCES, TARGETS, WORDS, num_steps=10, size=(SIDE, SIDE))
    watch(blend, maps[:1])
    assert blend.mask((SIDE, SIDE)).all(), "a flat map is everywhere at its maximum"
    watch(blend, maps[1:])
    found = blend.mask((SIDE, SIDE))[0, 0]
    assert torch.nonzero(found).tolist() == [[y, x] for y in (1, 2, 3) for x in (3, 4, 5)]


def test_layers_of_other_sizes_and_self_attention_are_not_watched(text: ClipText | DualClipText):
    blend = LocalBlend(text, SOURCES, TARGETS, WORDS, num_steps=10, size=(SIDE, SIDE))
    (rule,) = blend.rules
    assert not rule.touches(Layer("attn1", False, SIDE * SIDE))
    assert not rule.touches(Layer("attn2", True, SIDE * SIDE // 4))
    with pytest.raises(ValueError, match="no cross-attention layer works at 8x8"):
        blend.mask(SIZE)


@pytest.mark.parametrize(("num_steps", "start", "first"), [(10, 0.2, 2), (50, 0.2, 10), (7, 0.2, 1), (10, 0.0, 0)])
def test_it_blends_from_its_start_on(text: ClipText | DualClipText, num_steps: int, start: float, first: int):
    blend = LocalBlend(text, SOURCES, TARGETS, WORDS, num_steps, size=(SIDE, SIDE), start=start, threshold=0.95)
    watch(blend, evaluations(1))
    source, target = torch.zeros(2, 4, *SIZE), torch.ones(2, 4, *SIZE)
    places = blend.mask(SIZE).expand(-1, 4, -1, -1).float()
    for step in range(num_steps):
        assert torch.equal(blend(step, source, target), target if step < first else places), step


def test_a_pair_without_words_may_change_everywhere_but_at_kept_ones(text: ClipText | DualClipText):
    words = [BlendWords(), BlendWords(kept_source=["circle"])]
    maps = evaluations(1)
    blend = LocalBlend(text, SOURCES, TARGETS, words, num_steps=10, size=(SIDE, SIDE))
    watch(blend, maps)
    assert blend.mask(SIZE)[0].all()
    kept = reference(maps[:, 4:6], [[], [3]], False, 0.3)[1]
    assert np.array_equal(blend.mask(SIZE)[1, 0].numpy(), ~kept) and kept.any()


def test_pairs_do_not_depend_on_each_other(text: ClipText | DualClipText):
    together = LocalBlend(text, SOURCES, TARGETS, WORDS, num_steps=10, size=(SIDE, SIDE), threshold=0.9)
    watch(together, evaluations(2))
    for pair in range(2):
        alone = LocalBlend(
            text,
            SOURCES[pair : pair + 1],
            TARGETS[pair : pair + 1],
            WORDS[pair : pair + 1],
            10,
            (SIDE, SIDE),
            threshold=0.9,
        )
        watch(alone, evaluations(2)[:, pair::2])
        assert torch.equal(alone.mask(SIZE)[0], together.mask(SIZE)[pair])


def test_a_word_named_twice_counts_once(text: ClipText | DualClipText):
    masks = []
    for words in (["red star", "star", "Red"], ["red", "star"]):
        blend = LocalBlend(text, SOURCES[:1], TARGETS[:1], [BlendWords(words)], 10, (SIDE, SIDE), threshold=0.9)
        watch(blend, evaluations(1)[:, ::2])
        masks.append(blend.mask(SIZE))
    assert torch.equal(*masks)


def test_what_cannot_be_is_refused(text: ClipText | DualClipText):
    with pytest.raises(ValueError, match="'ring' is not in the prompt 'a blue star on grass'"):
        LocalBlend(text, SOURCES, TARGETS, [BlendWords(["red"], ["ring"]), BlendWords()], 10)
    with pytest.raises(ValueError, match="2 sources, 2 targets, words of 1 pairs"):
        LocalBlend(text, SOURCES, TARGETS, WORDS[:1], 10)
    with pytest.raises(ValueError, match=r"start is 1\.2"):
        LocalBlend(text, SOURCES, TARGETS, WORDS, 10, start=1.2)
    with pytest.raises(ValueError, match="threshold is -1"):
        LocalBlend(text, SOURCES, TARGETS, WORDS, 10, threshold=-1)
