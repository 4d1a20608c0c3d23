"""Words in the many-step editors: Prompt-to-Prompt's local blend and reweighting as PIE-Bench's runner has them."""

import pytest
import torch
from torch import Tensor

from eval.editors.blend_words import usable_words
from eval.editors.editor import EditRequest
from eval.editors.few_steps import decode_latents
from eval.editors.guided import GuidedEditor, blend_size, usual_sharing
from eval.editors.guided_ddim import DirectInversion, GuidedDdim
from eval.editors.negative_prompt import ProximalNegativePrompt
from eval.editors.stylediffusion import StyleDiffusion
from models.backbone import Backbone
from models.ddim import Ddim
from models.local_blend import BlendWords, LocalBlend
from models.prompt_to_prompt import edit
from models.unet_family import UNetBackbone
from models.word_alignment import refine_alignment, reweight

SOURCES, TARGETS = ("a red star", "grass and a dog"), ("a blue star", "grass and a cat")
WORDS = (BlendWords(("red",), ("blue",)), BlendWords(("dog",), ("cat",)))
STEPS, GUIDANCE = 5, 3.0


@pytest.fixture(scope="module")
def ddim(backbone: Backbone) -> Ddim:
    return Ddim(backbone.schedule, STEPS, steps_offset=0)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def edited(editor: GuidedEditor, images: Tensor, words, strength: float | None = None) -> Tensor:
    return editor.edit(editor.invert(images, SOURCES), EditRequest(TARGETS, words=words, strength=strength))


def test_words_of_no_prompt_are_left_out_with_a_reason(backbone):
    words = [BlendWords(("red", "green"), ("sky",)), None, BlendWords((), ("cat",), kept_source=("a dog", "bird"))]
    prompts = (*SOURCES, SOURCES[1]), (*TARGETS, TARGETS[1])
    usable, reasons = usable_words(backbone.text, *prompts, words)
    assert usable == [BlendWords(("red",)), BlendWords(), BlendWords((), ("cat",), ("a dog",))]
    assert [reason.split(";")[0] for reason in reasons] == [
        "the word 'green' is not in the prompt 'a red star'",
        "the word 'sky' is not in the prompt 'a blue star'",
        "the word 'bird' is not in the prompt 'grass and a dog'",
    ]
    with pytest.raises(ValueError, match="words of 1 pairs for 2 prompts"):
        usable_words(backbone.text, SOURCES, TARGETS, [None])


def test_words_behind_the_limit_are_left_out(backbone):
    long = "x" * 90 + " cat"
    usable, reasons = usable_words(backbone.text, [long], [long], [BlendWords(("cat",))])
    assert usable == [BlendWords()] and "behind the 77 tokens" in reasons[0]


def test_a_text_is_no_sequence_of_words():
    with pytest.raises(ValueError, match=r"target is 'cat', expected a sequence of words such as \('cat',\)"):
        BlendWords(("dog",), "cat")


def test_words_blend_and_double_the_targets_maps(backbone, ddim, images):
    editor = DirectInversion(backbone, ddim, GUIDANCE)
    inversion = editor.invert(images, SOURCES)
    alignment = refine_alignment(backbone.text, SOURCES, TARGETS)
    alignment = reweight(alignment, backbone.text, TARGETS, [{"blue": 2.0}, {"cat": 2.0}])
    blend = LocalBlend(backbone.text, SOURCES, TARGETS, WORDS, STEPS, size=(8, 8))
    target, sharing = backbone.encode_text(TARGETS), usual_sharing()
    assert (sharing.cross, sharing.self_) == (0.4, 0.6)
    expected = edit(
        backbone, ddim, inversion.state, target, GUIDANCE, sharing, alignment, blend=blend, rules=blend.rules
    )
    found = editor.edit(inversion, EditRequest(TARGETS, words=WORDS))
    torch.testing.assert_close(found, decode_latents(backbone, expected))
    plain = editor.edit(inversion, EditRequest(TARGETS))
    assert (found - plain).flatten(1).abs().amax(1).min() > 1e-3  # in both images


def test_size_of_the_maps_is_the_papers(backbone):
    assert blend_size(backbone, torch.zeros(4, 16, 16)) == (8, 8)  # a latent of 16 has no useful maps at its quarter
    assert blend_size(backbone, torch.zeros(4, 12, 20)) == (6, 10)
    backbone = UNetBackbone.__new__(UNetBackbone)
    backbone.network = type("Unet", (), {"config": type("Config", (), {"sample_size": 64})})
    assert blend_size(backbone, torch.zeros(4, 64, 64)) == (16, 16)
    assert blend_size(backbone, torch.zeros(4, 96, 64)) == (24, 16)


@pytest.mark.parametrize("strength", [None, 0.0, 1.0])
@pytest.mark.parametrize("kind", [DirectInversion, ProximalNegativePrompt])
def test_outside_the_words_the_picture_is_the_source(monkeypatch, backbone, ddim, images, kind, strength):
    """With a mask that is a half of the picture that half alone changes, at every strength."""
    half = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    half[..., :8] = True
    monkeypatch.setattr(LocalBlend, "mask", lambda self, size: half)
    editor = kind(backbone, ddim, GUIDANCE)
    ends = []
    monkeypatch.setattr("eval.editors.guided.decode_latents", lambda backbone, latent: ends.append(latent))
    edited(editor, images, WORDS, strength)
    source = editor.reconstruct(editor.invert(images, SOURCES))[-1]
    torch.testing.assert_close(ends[0][..., 8:], source[..., 8:], atol=1e-4, rtol=0)
    assert (ends[0][..., :8] - source[..., :8]).abs().max() > 1e-3


def test_an_image_without_words_is_edited_as_without(backbone, ddim, images):
    editor = DirectInversion(backbone, ddim, GUIDANCE)
    plain, some, all_ = (edited(editor, images, words) for words in (None, (None, WORDS[1]), WORDS))
    torch.testing.assert_close(some[:1], plain[:1], atol=1e-4, rtol=0)
    torch.testing.assert_close(some[1:], all_[1:], atol=1e-4, rtol=0)


def test_unusable_words_are_warned_of_and_ignored(backbone, ddim, images, caplog):
    editor = DirectInversion(backbone, ddim, GUIDANCE)
    wrong = (BlendWords(("wolf",), ("bear",)), None)
    assert torch.equal(edited(editor, images, wrong), edited(editor, images, None))
    assert "direct edits without it: the word 'wolf' is not in the prompt 'a red star'" in caplog.text
    assert "'bear'" in caplog.text


def test_methods_without_prompt_to_prompt_take_no_words(backbone, ddim, images):
    swap = GuidedDdim(backbone, ddim, GUIDANCE)
    assert torch.equal(edited(swap, images, WORDS), edited(swap, images, None))
    assert not StyleDiffusion.takes_words  # PIE-Bench's runner gives it none
    assert DirectInversion.takes_words
