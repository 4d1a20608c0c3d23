"""Edits whose first steps take the source's attention: against plain attention written down in float64."""

import pytest
import torch
from torch import Tensor

from models.attention_edits import Alignment, CrossEdit, SelfReplacement
from models.frozen_attention import frozen_attention, partial
from models.text import interpolate
from models.turboedit_pipeline import TurboEditInversion, TurboEditPipeline
from tests.plain_attention import LONG, SHORT, ExactGenerator, plain_attention, softmax_maps, with_columns
from tests.test_turboedit_pipeline import assert_near, latent, pictures
from tests.tiny_editing import tiny_pipeline

SOURCE, TARGET = SHORT, LONG


@pytest.fixture(scope="module")
def pipeline(either_backbone: str) -> TurboEditPipeline:
    """In float64, as a batch with the source in it rounds differently, and four steps amplify that."""
    return tiny_pipeline(either_backbone).to(torch.float64)


@pytest.fixture(scope="module")
def inversion(pipeline: TurboEditPipeline) -> TurboEditInversion:
    return pipeline.invert(pictures(1), SOURCE)


class Kept:
    """Plain attention that keeps its maps."""

    def __init__(self) -> None:
        self.maps: dict[str, Tensor] = {}

    def __call__(self, name: str, cross: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.maps[name] = softmax_maps(q, k)
        return self.maps[name] @ v


class Frozen:
    """Plain attention with the maps of another evaluation, mixed with the source's own as the embeddings are."""

    def __init__(self, source: Kept, strength: float) -> None:
        self.source, self.strength = source, strength

    def __call__(self, name: str, cross: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        source = self.source.maps[name]
        if not cross:
            return source @ v
        frozen = with_columns(softmax_maps(q, k), source)
        return (self.strength * frozen + (1 - self.strength) * source) @ v


@pytest.mark.parametrize(("frozen_steps", "strength"), [(1, 1.0), (3, 1.0), (2, 0.4)])
@torch.no_grad()
def test_frozen_steps_have_the_sources_maps(
    pipeline: TurboEditPipeline, inversion: TurboEditInversion, frozen_steps: int, strength: float
):
    found = pipeline.edit(inversion, TARGET, strength=strength, frozen_steps=frozen_steps).inversion
    target = interpolate(inversion.prompt, [pipeline.backbone.encode_text([TARGET])], [strength])
    scheduler = pipeline.scheduler
    exact = ExactGenerator(pipeline.unet, scheduler.alphas_cumprod, scheduler.config.prediction_type)
    edited = kept = torch.zeros(1, 4, 16, 16, dtype=torch.float64)
    for i, t in enumerate(inversion.timesteps):
        source = Kept()
        attend = Frozen(source, strength) if i < frozen_steps else Kept()
        a, noise = exact.abar[t] ** 0.5, (1 - exact.abar[t]) ** 0.5 * inversion.noises[i].double()
        with plain_attention(pipeline.unet, source):
            kept, _ = exact.x0_and_noise(a * kept + noise, inversion.prompt, t)
        with plain_attention(pipeline.unet, attend):
            edited, _ = exact.x0_and_noise(a * edited + noise, target, t)
        assert_near(inversion.reconstructions[i], kept, 1e-4)
        assert_near(found.reconstructions[i], edited, 1e-4)
    free = pipeline.edit(inversion, TARGET, strength=strength).inversion
    assert not torch.allclose(latent(free), latent(found), rtol=1e-2), "freezing changes the edit"


@pytest.mark.parametrize(("prompt", "strength"), [(SOURCE, 1.0), (TARGET, 0.0)])
@pytest.mark.parametrize("frozen_steps", [1, 4])
def test_the_sources_own_prompt_gives_back_the_reconstruction(
    pipeline: TurboEditPipeline, inversion: TurboEditInversion, prompt: str, strength: float, frozen_steps: int
):
    """Also at strength 0, where the tokens are the source's though the target's stand at other places."""
    edited = pipeline.edit(inversion, prompt, strength=strength, frozen_steps=frozen_steps).inversion
    assert_near(latent(edited), latent(inversion), 1e-4)


def test_a_frozen_step_evaluates_the_source_as_well(pipeline: TurboEditPipeline):
    sizes: list[int] = []
    hook = pipeline.unet.register_forward_hook(lambda _, args, output: sizes.append(len(args[0])))
    inversion = pipeline.invert(pictures(2), SOURCE, attention=True)
    sizes.clear()
    output = pipeline.edit(inversion, TARGET, frozen_steps=1, mask="attention")
    hook.remove()
    assert sizes == [4, 2, 2, 2]
    assert output.inversion.attention.shape == inversion.attention.shape and output.mask.shape == (2, 1, 16, 16)


def test_a_frozen_batch_is_its_images_one_by_one(pipeline: TurboEditPipeline):
    sources, targets = [SOURCE, "star"], [TARGET, "a star"]
    both = pipeline.edit(pipeline.invert(pictures(2), sources), targets, frozen_steps=2).inversion
    for i in range(2):
        single = pipeline.invert(pictures(2)[i : i + 1], sources[i])
        alone = pipeline.edit(single, targets[i], frozen_steps=2).inversion
        assert_near(latent(both)[i : i + 1], latent(alone), 1e-4)


def test_few_steps_can_be_frozen_too(pipeline: TurboEditPipeline):
    inversion = pipeline.invert(pictures(1), SOURCE, num_steps=1)
    assert not torch.equal(
        latent(pipeline.edit(inversion, TARGET, frozen_steps=1).inversion),
        latent(pipeline.edit(inversion, TARGET).inversion),
    )


@pytest.mark.parametrize("frozen_steps", [-1, 5])
def test_impossible_frozen_steps_are_refused(
    pipeline: TurboEditPipeline, inversion: TurboEditInversion, frozen_steps: int
):
    with pytest.raises(ValueError, match=f"frozen_steps is {frozen_steps}; expected 0 to 4"):
        pipeline.edit(inversion, TARGET, frozen_steps=frozen_steps)


def test_several_edits_at_once_cannot_be_frozen(pipeline: TurboEditPipeline, inversion: TurboEditInversion):
    with pytest.raises(ValueError, match="one edit at a time, but prompt has 2"):
        pipeline.edit(inversion, {TARGET: 0.5, "ab": 0.5}, frozen_steps=1)
    one = pipeline.edit(inversion, {TARGET: 0.5}, frozen_steps=1).inversion
    assert torch.equal(latent(one), latent(pipeline.edit(inversion, TARGET, strength=0.5, frozen_steps=1).inversion))


def test_partial_alignment_mixes_the_maps():
    draw = torch.Generator().manual_seed(0)
    matrix = torch.tensor([[[1.0, 0, 0], [0, 0, 1], [0, 0, 0]]])
    alignment = Alignment(matrix, torch.tensor([[1.0, 0, 1]]), torch.ones(1, 3))
    source, target = (torch.rand(1, 2, 5, 3, generator=draw) for _ in range(2))
    full = alignment.apply(source, target)
    for strength, weight in ((0.0, 0.0), (0.3, 0.3), (1.0, 1.0), (-0.5, 0.0), (1.5, 1.0)):
        mixed = partial(alignment, [strength]).apply(source, target)
        torch.testing.assert_close(mixed, (1 - weight) * source + weight * full)


def test_rules_name_their_rows(pipeline: TurboEditPipeline):
    cross, own = frozen_attention(pipeline.backbone.text, [SOURCE] * 3, [TARGET] * 3, [1.0] * 3, max_queries=64)
    assert isinstance(cross, CrossEdit) and isinstance(own, SelfReplacement) and own.max_queries == 64
    rows = list(range(6))
    assert all(rows[rule.source] == [0, 1, 2] and rows[rule.target] == [3, 4, 5] for rule in (cross, own))
