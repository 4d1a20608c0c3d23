"""Alignments of the tokens of two prompts, against another way to find them, and their weights by word and step."""

import random
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from models.attention_edits import Alignment
from models.backbone import Backbone
from models.text import ClipText, DualClipText
from models.word_alignment import common_subsequence, refine_alignment, replace_alignment, reweight, word_schedule
from models.words import named_tokens, read_tokens

LENGTH = 48


@pytest.fixture(scope="module", params=["teacher", "student"])
def text(request: pytest.FixtureRequest) -> ClipText | DualClipText:
    """The miniature's text encoders: one as in Stable Diffusion, two as in SDXL."""
    found = Backbone.load(f"models/miniature/{request.param}", parts=("text",)).text
    assert found is not None
    return found


def entries(matrix: Tensor) -> dict[tuple[int, int], float]:
    """The weights of one matrix [Ls, Lt] that are not zero, by position."""
    return {(i, j): matrix[i, j].item() for i, j in torch.nonzero(matrix).tolist()}


def one_to_one(*pairs: tuple[int, int]) -> dict[tuple[int, int], float]:
    return dict.fromkeys(pairs, 1.0)


def padding(start: int) -> dict[tuple[int, int], float]:
    return one_to_one(*((i, i) for i in range(start, LENGTH)))


# The refine mapper


def best_score(x: list[int], y: list[int]) -> int:
    """The highest score of any global alignment (gap 0, match 1, mismatch -1), by trying all of them."""

    @cache
    def score(i: int, j: int) -> int:
        if i == len(x) or j == len(y):
            return 0
        return max(score(i + 1, j), score(i, j + 1), score(i + 1, j + 1) + (1 if x[i] == y[j] else -1))

    return score(0, 0)


def official_path(x: list[int], y: list[int]) -> list[tuple[int, int]]:
    """From the end on: leave out a token of y if nothing is lost by it, else one of x, else pair the two."""
    pairs: list[tuple[int, int]] = []
    while x and y:
        best = best_score(x, y)
        if best_score(x, y[:-1]) == best:
            y = y[:-1]
        elif best_score(x[:-1], y) == best:
            x = x[:-1]
        else:
            x, y = x[:-1], y[:-1]
            pairs.insert(0, (len(x), len(y)))
    return pairs


def test_refine_pairs_equal_tokens_in_order_with_the_best_score():
    random.seed(0)
    for _ in range(100):
        x, y = ([random.randrange(4) for _ in range(random.randrange(8))] for _ in range(2))
        pairs = common_subsequence(x, y)
        assert all(x[i] == y[j] for i, j in pairs)
        assert all(a < c and b < d for (a, b), (c, d) in pairwise(pairs))
        assert len(pairs) == best_score(x, y)
        assert pairs == official_path(x, y)


def test_refine_keeps_common_words_and_leaves_new_ones(text: ClipText | DualClipText):
    # 0 start, 1 a, 2 red, 3 circle, 4 on, 5 grass, 6 end -> 0 start, 1 a, 2 small, 3 blue, 4 circle, 5 on ...
    found = refine_alignment(text, ["a red circle on grass"], ["a small blue circle on grass"])
    expected = one_to_one((0, 0), (1, 1), (3, 4), (4, 5), (5, 6), (6, 7)) | padding(8)
    assert entries(found.matrix[0]) == expected
    assert found.share[0].tolist() == [float(j not in (2, 3)) for j in range(LENGTH)]
    assert torch.equal(found.scale, torch.ones(1, LENGTH))


def test_refine_gives_no_word_of_the_source_to_the_targets_padding(text: ClipText | DualClipText):
    found = refine_alignment(text, ["a small blue circle on grass"], ["a circle"])
    assert entries(found.matrix[0]) == one_to_one((0, 0), (1, 1), (4, 2), (7, 3)) | padding(8)
    assert found.share[0].tolist() == [float(j <= 3 or j >= 8) for j in range(LENGTH)]


def test_refine_pairs_tokens_not_words(text: ClipText | DualClipText):
    ids, _ = read_tokens(text, "a zebra, ze bra")
    assert len(ids) > 2 + 5, "zebra should have several tokens"
    found = refine_alignment(text, ["a zebra on grass"], ["a Zebra on Grass."])
    count = len(read_tokens(text, "a zebra on grass")[0])
    pairs = [*((i, i) for i in range(count - 1)), (count - 1, count)]
    assert entries(found.matrix[0]) == one_to_one(*pairs) | padding(count + 1)


def test_refine_of_a_prompt_with_itself_is_the_identity(text: ClipText | DualClipText):
    prompts = ["a red circle", "", "zebra's red, red ring", "red " * 60]
    found = refine_alignment(text, prompts, prompts)
    assert torch.equal(found.matrix, torch.eye(LENGTH).expand(4, -1, -1))
    assert torch.equal(found.share, torch.ones(4, LENGTH))


def test_prompts_longer_than_the_limit_are_aligned_as_far_as_they_are_read(text: ClipText | DualClipText):
    found = refine_alignment(text, ["red " * 60], ["blue " + "red " * 60])
    assert found.share[0].tolist() == [float(j != 1) for j in range(LENGTH)]


@pytest.mark.parametrize("align", [refine_alignment, replace_alignment])
def test_pairs_of_a_batch_are_aligned_each_for_itself(text: ClipText | DualClipText, align):
    sources = ["a red circle on grass", "a ring", "two red zebras"]
    targets = ["a blue circle on water", "a star", "two big cats"]
    together = align(text, sources, targets)
    for row, pair in enumerate(zip(sources, targets)):
        alone = align(text, pair[:1], pair[1:])
        assert torch.equal(alone.matrix[0], together.matrix[row])
        assert torch.equal(alone.share[0], together.share[row])
    with pytest.raises(ValueError, match="zip"):
        align(text, sources, targets[:2])


# The replace mapper


def test_replace_swaps_words_of_one_token(text: ClipText | DualClipText):
    found = replace_alignment(text, ["a red circle on grass"], ["a blue star on grass"])
    assert entries(found.matrix[0]) == padding(0)
    assert torch.equal(found.share, torch.ones(1, LENGTH))


def test_replace_spreads_a_word_over_the_tokens_of_the_new_one(text: ClipText | DualClipText):
    # 0 start, 1 a, 2 red, 3 circle, 4 end -> 0 start, 1 a, 2..6 zebra, 7 circle, 8 end
    assert named_tokens(text, "a zebra circle", "zebra") == [2, 3, 4, 5, 6]
    found = replace_alignment(text, ["a red circle"], ["a zebra circle"])
    spread = {(2, j): pytest.approx(1 / 5) for j in range(2, 7)}
    assert entries(found.matrix[0]) == one_to_one((0, 0), (1, 1), (3, 7), (4, 8)) | spread | padding(9)
    assert torch.equal(found.share, torch.ones(1, LENGTH))


def test_replace_gives_a_short_word_all_tokens_of_the_old_one(text: ClipText | DualClipText):
    found = replace_alignment(text, ["a zebra circle"], ["a red circle"])
    gathered = one_to_one(*((i, 2) for i in range(2, 7)))
    assert entries(found.matrix[0]) == one_to_one((0, 0), (1, 1), (7, 3), (8, 4)) | gathered | padding(9)
    assert found.share[0].tolist() == [float(j <= 4 or j >= 9) for j in range(LENGTH)]


def test_replace_is_the_official_mapper_where_the_numbers_of_tokens_are_equal(text: ClipText | DualClipText):
    source, target = "a zxqvk, red ring", "a kqzxv, blue ring"
    assert [len(named_tokens(text, *pair)) for pair in ((source, "zxqvk"), (target, "kqzxv"))] == [5, 5]
    found = replace_alignment(text, [source], [target])
    assert entries(found.matrix[0]) == padding(0)


def test_replace_wants_equally_many_words(text: ClipText | DualClipText):
    message = "'a red circle' and 'a circle' have 3 and 2 words; .* refine_alignment"
    with pytest.raises(ValueError, match=message):
        replace_alignment(text, ["a ring", "a red circle"], ["a star", "a circle"])


# Weights


def aligned(text: ClipText | DualClipText) -> tuple[Alignment, list[str]]:
    targets = ["a blue star and a blue circle", "a small blue star"]
    return refine_alignment(text, ["a red star and a red circle", "a red star"], targets), targets


def test_reweighting_scales_the_words_of_each_prompt(text: ClipText | DualClipText):
    alignment, targets = aligned(text)
    found = reweight(alignment, text, targets, {"blue": 2.0, "star": -1.0})
    scale = torch.ones(2, LENGTH)
    scale[0, [2, 6]], scale[1, 3] = 2.0, 2.0
    scale[0, 3], scale[1, 4] = -1.0, -1.0
    assert torch.equal(found.scale, scale)
    assert found.matrix is alignment.matrix and found.share is alignment.share
    assert torch.equal(alignment.scale, torch.ones(2, LENGTH)), "the alignment that was given has changed"


def test_reweighting_takes_other_words_for_each_prompt(text: ClipText | DualClipText):
    alignment, targets = aligned(text)
    found = reweight(alignment, text, targets, [{"blue circle": 3.0}, {}])
    scale = torch.ones(2, LENGTH)
    scale[0, [6, 7]] = 3.0
    assert torch.equal(found.scale, scale)
    with pytest.raises(ValueError, match="1 mappings of words for 2 prompts"):
        reweight(alignment, text, targets, [{"blue": 3.0}])


def test_a_word_that_is_not_in_a_prompt_is_named(text: ClipText | DualClipText):
    alignment, targets = aligned(text)
    with pytest.raises(ValueError, match="'circle' is not in the prompt 'a small blue star'"):
        reweight(alignment, text, targets, {"circle": 2.0})
    with pytest.raises(ValueError, match="'red' is not in the prompt"):
        word_schedule(alignment, text, targets, {"red": 0.5}, default=1.0, num_steps=10)


def test_words_leave_the_alignment_after_their_share_of_the_steps(text: ClipText | DualClipText):
    alignment, targets = aligned(text)
    alignment = reweight(alignment, text, targets, {"star": 4.0, "blue": 2.0})
    at = word_schedule(alignment, text, targets, {"blue": 0.2, "star": 0.6}, default=0.4, num_steps=5)
    for step in range(5):
        found = at(step)
        if step >= 3:
            assert found is None
            continue
        active = torch.full((2, LENGTH), float(step < 2))
        active[0, [2, 6]] = active[1, 3] = float(step < 1)
        active[0, 3] = active[1, 4] = 1.0
        assert found is not None and found.matrix is alignment.matrix
        assert torch.equal(found.share, alignment.share * active)
        assert torch.equal(found.scale, torch.where(active.bool(), alignment.scale, 1.0))


@pytest.mark.parametrize("num_steps", [1, 7, 10, 50])
@pytest.mark.parametrize("default", [0.0, 0.1, 0.3, 0.6, 0.7, 1.0])
def test_a_schedule_without_words_ends_where_sharing_would(
    text: ClipText | DualClipText, num_steps: int, default: float
):
    alignment, targets = aligned(text)
    at = word_schedule(alignment, text, targets, {}, default, num_steps)
    assert [at(step) is not None for step in range(num_steps)] == [
        step < default * num_steps for step in range(num_steps)
    ]


@pytest.mark.parametrize(("shares", "default", "named"), [({"blue": 1.1}, 0.5, "blue"), ({}, -0.1, "default")])
def test_a_share_that_cannot_be_is_refused(
    text: ClipText | DualClipText, shares: dict[str, float], default: float, named: str
):
    alignment, targets = aligned(text)
    with pytest.raises(ValueError, match=f"the share of '{named}' is"):
        word_schedule(alignment, text, targets, shares, default, num_steps=10)
