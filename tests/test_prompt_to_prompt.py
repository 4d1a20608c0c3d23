"""The two branches of Prompt-to-Prompt: which rows each share of attention changes, and when nothing may change."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.attention import Layer, Rule
from models.attention_edits import Alignment
from models.backbone import Backbone
from models.ddim import Ddim, ddim_pivots, matching
from models.local_blend import BlendWords, LocalBlend
from models.prompt_to_prompt import NOTHING, Sharing, Trajectory, edit, reconstruct, sample_pairs, whole_steps
from models.text import Prompt
from models.word_alignment import refine_alignment, word_schedule

SOURCES = ["a red star", "grass"]
TARGETS = ["a blue star", "a cat on grass"]
STEPS = 4
GUIDANCE = 3.0
SIDE = 8
ROWS = {"null source": slice(0, 2), "null target": slice(2, 4), "source": slice(4, 6), "target": slice(6, 8)}
close = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def backbone(any_backbone: str) -> Backbone:
    return Backbone.load(any_backbone)


@pytest.fixture(scope="module")
def ddim(backbone: Backbone) -> Ddim:
    return Ddim(backbone.schedule, STEPS)


@pytest.fixture(scope="module")
def trajectory(backbone: Backbone) -> Trajectory:
    start = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    prompt = backbone.encode_text(SOURCES)
    null = matching(backbone.encode_text([""]), prompt)
    return Trajectory(start, prompt, (null,) * STEPS)


@pytest.fixture(scope="module")
def alignment(backbone: Backbone) -> Alignment:
    return refine_alignment(backbone.text, SOURCES, TARGETS)


class Seen(Rule):
    """Keeps the maps of all layers, in the order of the evaluations."""

    def __init__(self, cross: bool) -> None:
        self.cross = cross
        self.found: list[dict[str, Tensor]] = []

    def touches(self, layer: Layer) -> bool:
        return layer.cross == self.cross

    def maps(self, layer: Layer, maps: Tensor) -> Tensor:
        if not self.found or layer.name in self.found[-1]:
            self.found.append({})
        self.found[-1][layer.name] = maps
        return maps

    def equal(self, one: str, other: str) -> list[bool]:
        """For every evaluation whether all maps of two groups of rows are bit for bit the same."""
        return [all(torch.equal(m[ROWS[one]], m[ROWS[other]]) for m in maps.values()) for maps in self.found]


def targets(backbone: Backbone) -> Prompt:
    return backbone.encode_text(TARGETS)


@pytest.mark.parametrize("sharing", [NOTHING, Sharing(), Sharing(1.0, 1.0, 1.0, 1.0)])
def test_the_sources_prompt_as_target_gives_the_reconstruction(
    backbone: Backbone, ddim: Ddim, trajectory: Trajectory, sharing: Sharing
):
    same = refine_alignment(backbone.text, SOURCES, SOURCES)
    found = edit(backbone, ddim, trajectory, trajectory.prompt, GUIDANCE, sharing, same)
    torch.testing.assert_close(found, reconstruct(backbone, ddim, trajectory, GUIDANCE)[-1], **close)


def test_reconstruction_starts_at_the_start_and_is_guided_sampling(
    backbone: Backbone, ddim: Ddim, trajectory: Trajectory
):
    found = reconstruct(backbone, ddim, trajectory, GUIDANCE)
    assert found.shape == (STEPS + 1, 2, 4, 16, 16)
    assert torch.equal(found[0], trajectory.start)
    x = trajectory.start
    for step, t in enumerate(ddim.timesteps):
        times = torch.full((2,), t)
        with torch.no_grad():
            unconditional, conditional = (
                backbone.schedule.predict_noise(x, backbone.predict(x, prompt, times), times)
                for prompt in (trajectory.nulls[step], trajectory.prompt)
            )
        x = ddim.move(x, unconditional + GUIDANCE * (conditional - unconditional), step, step + 1)
        torch.testing.assert_close(found[step + 1], x, **close)


def test_nothing_shared_is_sampling_of_the_target_alone(
    backbone: Backbone, ddim: Ddim, trajectory: Trajectory, alignment: Alignment
):
    target = targets(backbone)
    found = edit(backbone, ddim, trajectory, target, GUIDANCE, NOTHING, alignment)
    torch.testing.assert_close(
        found, reconstruct(backbone, ddim, replace(trajectory, prompt=target), GUIDANCE)[-1], **close
    )


def test_every_share_changes_the_edit_and_none_changes_the_source(
    backbone: Backbone, ddim: Ddim, trajectory: Trajectory, alignment: Alignment
):
    expected = reconstruct(backbone, ddim, trajectory, GUIDANCE)
    found = []
    for sharing in (NOTHING, *(replace(NOTHING, **{name: 1.0}) for name in ("cross", "self_", "unconditional"))):
        sources: list[Tensor] = []

        def look(step: int, source: Tensor, target: Tensor, sources: list[Tensor] = sources) -> Tensor:
            sources.append(source)
            return target

        found.append(edit(backbone, ddim, trajectory, targets(backbone), GUIDANCE, sharing, alignment, blend=look))
        torch.testing.assert_close(torch.stack(sources), expected[1:], **close)
    for i, one in enumerate(found):
        for other in found[:i]:
            assert not torch.allclose(one, other, **close)


def test_each_image_may_share_for_a_time_of_its_own(backbone: Backbone, ddim: Ddim, trajectory: Trajectory):
    """Rows of one call are those of calls with the share of each; the source branch is handed out beside them."""
    shares = (0.25, 1.0)
    source, found = sample_pairs(
        backbone, ddim, trajectory, targets(backbone), GUIDANCE, replace(NOTHING, self_=shares)
    )
    torch.testing.assert_close(source, reconstruct(backbone, ddim, trajectory, GUIDANCE)[-1], **close)
    for row, share in enumerate(shares):
        alone = edit(backbone, ddim, trajectory, targets(backbone), GUIDANCE, replace(NOTHING, self_=share))
        torch.testing.assert_close(found[row], alone[row], **close)
    with pytest.raises(ValueError, match=r"self_ is \(0.5, 1.5\)"):
        replace(NOTHING, self_=(0.5, 1.5))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_tau_u_takes_the_sources_maps_in_the_unconditional_rows_alone(
    backbone: Backbone, ddim: Ddim, trajectory: Trajectory, share: float
):
    seen = Seen(cross=False)
    sharing = Sharing(0.0, 0.0, unconditional=share, values=0.0)
    edit(backbone, ddim, trajectory, targets(backbone), GUIDANCE, sharing, rules=(seen,))
    # At the first step both branches have the same latent, so their unconditional maps are the same anyhow.
    assert seen.equal("null source", "null target") == [step < max(int(share * STEPS), 1) for step in range(STEPS)]
    assert not any(seen.equal("source", "target"))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_tau_s_takes_the_sources_maps_in_the_conditional_rows_alone(
    backbone: Backbone, ddim: Ddim, trajectory: Trajectory, share: float
):
    seen = Seen(cross=False)
    sharing = Sharing(0.0, share, unconditional=0.0, values=0.0)
    edit(backbone, ddim, trajectory, targets(backbone), GUIDANCE, sharing, rules=(seen,))
    assert seen.equal("source", "target") == [step < int(share * STEPS) for step in range(STEPS)]
    assert seen.equal("null source", "null target") == [step == 0 for step in range(STEPS)]


def test_shares_become_whole_steps_as_in_the_official_code():
    """Prompt-to-Prompt's ptp_utils and main: alpha has a row more than steps, so cross attention counts that one."""
    alpha_rows = {n: torch.zeros(n + 1) for n in (16, 30, 50)}
    for n, rows in alpha_rows.items():
        for share in (0.0, 0.2, 0.4, 0.5, 0.6, 0.99, 1.0):
            sharing = Sharing(cross=share)
            shared = sum(sharing.shares_cross(step, n) for step in range(n))
            assert shared == min(n, int(share * rows.shape[0]))
            assert whole_steps(share, n) == int(n * share)
    assert whole_steps(1 - 0.8, 50) == 10  # 9.999999999999998 steps


def test_self_attention_above_the_largest_side_is_not_shared(backbone: Backbone, ddim: Ddim, trajectory: Trajectory):
    target = targets(backbone)
    found = edit(backbone, ddim, trajectory, target, GUIDANCE, Sharing(0.0, 1.0, 1.0, 0.0, max_scale=0.4))
    assert torch.equal(found, edit(backbone, ddim, trajectory, target, GUIDANCE, NOTHING))


def test_tau_c_takes_the_maps_of_the_words_that_both_prompts_have(
    backbone: Backbone, ddim: Ddim, trajectory: Trajectory, alignment: Alignment
):
    seen = Seen(cross=True)
    edit(backbone, ddim, trajectory, targets(backbone), GUIDANCE, Sharing(0.5, 0.0, 0.0, 0.0), alignment, rules=(seen,))
    for step, maps in enumerate(seen.found):
        for found in maps.values():
            for pair in range(2):
                source, target = found[4 + pair], found[6 + pair]
                moved = source @ alignment.matrix[pair]
                columns = alignment.share[pair].bool()
                assert columns.any() and not columns.all()
                same = torch.allclose(moved[..., columns], target[..., columns], rtol=1e-6, atol=1e-8)
                assert same == (step < 2), step


def test_an_alignment_may_depend_on_the_step(
    backbone: Backbone, ddim: Ddim, trajectory: Trajectory, alignment: Alignment
):
    target = targets(backbone)
    asked: list[int] = []

    def at(step: int) -> Alignment | None:
        asked.append(step)
        return alignment if step < 2 else None

    # Its own word counts, not the share of the steps.
    found = edit(backbone, ddim, trajectory, target, GUIDANCE, NOTHING, at)
    assert asked == list(range(STEPS))
    expected = edit(backbone, ddim, trajectory, target, GUIDANCE, replace(NOTHING, cross=0.5), alignment)
    assert torch.equal(found, expected)
    schedule = word_schedule(alignment, backbone.text, TARGETS, {}, 0.5, STEPS)
    assert torch.equal(edit(backbone, ddim, trajectory, target, GUIDANCE, NOTHING, schedule), expected)


def test_pivots_keep_the_source_where_it_was(
    backbone: Backbone, ddim: Ddim, trajectory: Trajectory, alignment: Alignment
):
    pivots = ddim_pivots(backbone, ddim, trajectory.start, trajectory.prompt)
    held = replace(trajectory, start=pivots[0], pivots=pivots)
    assert torch.equal(reconstruct(backbone, ddim, held, GUIDANCE), pivots)
    steps: list[int] = []

    def look(step: int, source: Tensor, target: Tensor) -> Tensor:
        assert torch.equal(source, pivots[step + 1])
        steps.append(step)
        return target

    found = edit(backbone, ddim, held, targets(backbone), GUIDANCE, Sharing(), alignment, blend=look)
    assert steps == list(range(STEPS))
    free = edit(backbone, ddim, replace(held, pivots=None), targets(backbone), GUIDANCE, Sharing(), alignment)
    assert not torch.allclose(found, free, **close)


def test_a_local_blend_keeps_the_places_outside(
    backbone: Backbone, ddim: Ddim, trajectory: Trajectory, alignment: Alignment
):
    words = [BlendWords(["red"], ["blue"]), BlendWords(["grass"], ["cat"])]
    blend = LocalBlend(backbone.text, SOURCES, TARGETS, words, STEPS, size=(SIDE, SIDE), start=0.25, threshold=0.999)
    sources: list[Tensor] = []

    def watched(step: int, source: Tensor, target: Tensor) -> Tensor:
        sources.append(source)
        return blend(step, source, target)

    found = edit(
        backbone, ddim, trajectory, targets(backbone), GUIDANCE, Sharing(), alignment, blend=watched, rules=blend.rules
    )
    inside = blend.mask((16, 16)).expand_as(found)
    assert all(0 < part.float().mean() < 1 for part in inside)
    assert torch.equal(found[~inside], sources[-1][~inside])
    assert not torch.allclose(found[inside], sources[-1][inside], **close)
    torch.testing.assert_close(sources[-1], reconstruct(backbone, ddim, trajectory, GUIDANCE)[-1], **close)


def test_images_of_a_batch_do_not_depend_on_each_other(
    backbone: Backbone, ddim: Ddim, trajectory: Trajectory, alignment: Alignment
):
    sharing = Sharing(0.5, 0.75, 0.5, 0.0)
    together = edit(backbone, ddim, trajectory, targets(backbone), GUIDANCE, sharing, alignment)
    for row in range(2):
        part = slice(row, row + 1)
        one = Alignment(alignment.matrix[part], alignment.share[part], alignment.scale[part])
        alone = Trajectory(
            trajectory.start[part], trajectory.prompt[part], tuple(null[part] for null in trajectory.nulls)
        )
        found = edit(backbone, ddim, alone, targets(backbone)[part], GUIDANCE, sharing, one)
        torch.testing.assert_close(found, together[part], **close)


def test_guidance_may_be_a_function_of_step_and_noises(backbone: Backbone, ddim: Ddim, trajectory: Trajectory):
    steps: list[int] = []

    def guidance(step: int, unconditional: Tensor, conditional: Tensor) -> Tensor:
        steps.append(step)
        assert unconditional.shape == conditional.shape == (4, 4, 16, 16)
        return unconditional + GUIDANCE * (conditional - unconditional)

    found = edit(backbone, ddim, trajectory, targets(backbone), guidance)
    assert torch.equal(found, edit(backbone, ddim, trajectory, targets(backbone), GUIDANCE))
    assert steps == list(range(STEPS))


def test_mapped_values_reach_the_source_always_and_the_target_for_their_share(
    backbone: Backbone, ddim: Ddim, trajectory: Trajectory
):
    target = targets(backbone)
    plain = edit(backbone, ddim, trajectory, target, GUIDANCE)
    same = replace(trajectory, values=(lambda embeds: embeds.clone(),) * STEPS)
    torch.testing.assert_close(edit(backbone, ddim, same, target, GUIDANCE, Sharing(0, 0, 0, 1)), plain, **close)
    other = replace(trajectory, values=(lambda embeds: embeds.flip(1),) * STEPS)
    torch.testing.assert_close(edit(backbone, ddim, other, target, GUIDANCE, NOTHING), plain, **close)
    reached = edit(backbone, ddim, other, target, GUIDANCE, Sharing(0, 0, 0, 1))
    assert not torch.allclose(reached, plain, **close)
    changed = replace(other, prompt=target)
    torch.testing.assert_close(reached, reconstruct(backbone, ddim, changed, GUIDANCE)[-1], **close)


def test_the_unet_has_its_processors_back(backbone: Backbone, ddim: Ddim, trajectory: Trajectory, alignment: Alignment):
    before = dict(backbone.unet.attn_processors)
    edit(backbone, ddim, trajectory, targets(backbone), GUIDANCE, Sharing(1.0, 1.0, 1.0), alignment)
    assert all(processor is before[name] for name, processor in backbone.unet.attn_processors.items())


@pytest.mark.parametrize("name", ["cross", "self_", "unconditional", "values"])
@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_that_cannot_be_is_refused(name: str, share: float):
    with pytest.raises(ValueError, match=f"{name} is {share}, expected a share"):
        Sharing(**{name: share})
