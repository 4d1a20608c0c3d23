"""InfEdit against its formulas written down in float64, and what they promise."""

import pytest
import torch
from torch import Tensor

from eval.editors.editor import EditRequest
from eval.editors.few_steps import decode_latents
from eval.editors.infedit import InfEdit
from eval.editors.randomness import image_keys, image_noise
from models.backbone import Backbone
from models.local_blend import BlendWords
from models.schedule import trailing_timesteps
from tests.plain_attention import LONG, SHORT, ExactGenerator, plain_attention, softmax_maps, with_columns
from tests.test_turboedit_pipeline import pictures

NEW = BlendWords(target=("xy",))
NEW_TOKENS = [3, 4]


@pytest.fixture(scope="module")
def backbone(any_backbone: str) -> Backbone:
    return Backbone.load(any_backbone, dtype=torch.float64)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def round_trip(backbone: Backbone, images: Tensor) -> Tensor:
    return decode_latents(backbone, backbone.encode_image(images))


class ThreeBranches:
    """Unified attention control as queries, keys and values are exchanged in rows of source, target and layout."""

    def __init__(self) -> None:
        self.early = True
        self.seen: list[Tensor] = []

    def __call__(self, name: str, cross: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if cross:
            source, target, layout = softmax_maps(q, k)
            if self.early:
                target = with_columns(target, source)
            self.seen.append(target.mean(0))
            return torch.stack([source, target, layout]) @ v
        order = ([0, 0, 0], [0, 0, 0], [0, 1, 0]) if self.early else ([0, 1, 1], [0, 1, 0], [0, 1, 0])
        return softmax_maps(q[order[0]], k[order[1]]) @ v[order[2]]


@pytest.mark.parametrize("words", [None, NEW])
def test_edit_is_algorithm_2_with_attention_control(backbone: Backbone, words: BlendWords | None):
    """Half of five steps, rounded down, hold the source's attention."""
    editor = InfEdit(backbone, num_steps=5, threshold=0.95)
    inversion = editor.invert(pictures(1), (SHORT,))
    found = editor.edit(inversion, EditRequest((LONG,), strength=0.5, words=(words,), seed=3))

    exact = ExactGenerator(backbone.unet, backbone.schedule.alphas_cumprod, backbone.schedule.prediction_type)
    x0 = backbone.encode_image(pictures(1)).double()
    keys, timesteps = image_keys(pictures(1)), trailing_timesteps(5)
    prompts = backbone.encode_text([SHORT, LONG, SHORT])
    z = image_noise(keys, "infedit", 3, x0).repeat(3, 1, 1, 1)
    attend, places = ThreeBranches(), []
    for i, t in enumerate(timesteps):
        attend.early = i < 2
        with plain_attention(backbone.unet, attend):
            _, noise = exact.x0_and_noise(z, prompts, t)
        a, b = exact.abar[t] ** 0.5, (1 - exact.abar[t]) ** 0.5
        consistent = (z[:1] - a * x0) / b
        estimates = (z - b * (noise - noise[:1] + consistent)) / a
        torch.testing.assert_close(estimates[:1], x0, atol=1e-6, rtol=0)
        if i + 1 < len(timesteps):
            s = timesteps[i + 1]
            fresh = image_noise(keys, f"infedit {s}", 3, x0)
            z = exact.abar[s] ** 0.5 * estimates + (1 - exact.abar[s]) ** 0.5 * fresh
        if words is not None and i:
            heat = torch.stack(attend.seen).mean(0)[:, NEW_TOKENS].sum(-1).view(8, 8)
            inside = (heat / heat.max() > max(0.95, 0.15 / a)).repeat_interleave(2, 0).repeat_interleave(2, 1)
            places.append(inside.double().mean().item())
            z[1] = torch.where(inside, z[1], z[2])
    torch.testing.assert_close(found, decode_latents(backbone, estimates[1:2].float()), atol=1e-4, rtol=0)
    assert words is None or any(0 < share < 1 for share in places[:-1])


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("words", [None, BlendWords(target=("cd",))])
def test_the_sources_own_prompt_gives_back_the_source(backbone: Backbone, strength: float, words: BlendWords | None):
    editor = InfEdit(backbone, num_steps=4)
    request = EditRequest((SHORT, LONG), strength=strength, words=(words, words))
    images = editor.edit(editor.invert(pictures(2), (SHORT, LONG)), request)
    torch.testing.assert_close(images, round_trip(backbone, pictures(2)), atol=1e-4, rtol=0)


def test_strength_is_the_share_of_free_steps(backbone: Backbone):
    """Shares between two steps count as the one with more of the source's attention."""
    editor = InfEdit(backbone, num_steps=4)
    inversion = editor.invert(pictures(1), (SHORT,))
    none, quarter, third, default, all_free = (
        editor.edit(inversion, EditRequest((LONG,), strength=s)) for s in (0.0, 0.25, 0.33, None, 1.0)
    )
    assert not torch.allclose(none, quarter, atol=1e-3) and not torch.allclose(quarter, all_free, atol=1e-3)
    assert not torch.equal(quarter, third) and torch.equal(third, default)


def test_words_concern_their_own_image_only(backbone: Backbone):
    """And one that its prompt lacks is no word."""
    editor = InfEdit(backbone, num_steps=3, threshold=0.95)
    inversion = editor.invert(pictures(2), (SHORT, SHORT))
    free, first, lost = (
        editor.edit(inversion, EditRequest((LONG, LONG), words=words))
        for words in (None, (NEW, None), (BlendWords(target=("star",)), None))
    )
    assert not torch.allclose(first[0], free[0], atol=1e-3)
    torch.testing.assert_close(first[1], free[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(lost, free, atol=1e-4, rtol=0)


def test_the_seed_decides(backbone: Backbone):
    editor = InfEdit(backbone, num_steps=2)
    inversion = editor.invert(pictures(1), (SHORT,))
    first, again, other = (editor.edit(inversion, EditRequest((LONG,), seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=1e-3)


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_a_strength_that_is_no_share_is_refused(backbone: Backbone, strength: float):
    editor = InfEdit(backbone)
    inversion = editor.invert(pictures(1), (SHORT,))
    with pytest.raises(ValueError, match=rf"strength is {strength}; expected a share of the 12 steps"):
        editor.edit(inversion, EditRequest((LONG,), strength=strength))
