"""MasaCtrl and Plug-and-Play: whose inputs each layer sees and when, and what is left when nothing is taken."""

from contextlib import nullcontext

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from eval.editors.decoder_layers import decoder_attention
from eval.editors.editor import EditRequest, InvertedImages
from eval.editors.few_steps import decode_latents
from eval.editors.masactrl import MasaCtrl
from eval.editors.plug_and_play import PlugAndPlay
from eval.editors.source_branch import Branches, SourceBranchEditor
from models.attention import attention_layers, controlled
from models.attention_edits import SelfInjection
from models.backbone import Backbone
from models.ddim import Ddim, ddim_pivots, matching, predict_noise
from models.prompt_to_prompt import Trajectory, reconstruct

SOURCES, TARGETS = ("a red star", "grass"), ("a blue star", "a cat on grass")
STEPS, GUIDANCE = 3, 3.0
ROWS = Branches(2)
close = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def backbone(any_backbone: str) -> Backbone:
    return Backbone.load(any_backbone)


@pytest.fixture(scope="module")
def ddim(backbone: Backbone) -> Ddim:
    return Ddim(backbone.schedule, STEPS)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def editors(backbone: Backbone, ddim: Ddim) -> list[SourceBranchEditor]:
    return [kind(backbone, ddim, GUIDANCE, held=held) for kind in (MasaCtrl, PlugAndPlay) for held in (False, True)]


@pytest.fixture(scope="module")
@torch.no_grad()
def inversions(editors: list[SourceBranchEditor], images: Tensor) -> list[InvertedImages]:
    """Each editor's, for any number of edits."""
    return [editor.invert(images, SOURCES) for editor in editors]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def evaluate(backbone: Backbone, seed: int = 0) -> Tensor:
    """The UNet's output for rows of a source and its target twice."""
    x = torch.randn(6, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    prompt = backbone.encode_text(["", "", "", "", *TARGETS])
    return backbone.predict(x, prompt, torch.full((6,), 500))


def in_float64(name: str, backbone: Backbone, hidden: Tensor, taken: tuple[str, ...]) -> Tensor:
    """Attention of hidden states [6, Q, D] with some inputs of the targets' rows from their source's."""
    attn = attention_layers(backbone.unet)[name]
    hidden = hidden.double()
    other = hidden[[0, 1, 0, 1, 0, 1]]

    def heads(projection: torch.nn.Linear, x: Tensor) -> Tensor:
        bias = 0 if projection.bias is None else projection.bias.double()
        return (x @ projection.weight.double().T + bias).unflatten(-1, (attn.heads, -1)).transpose(1, 2)

    query, key, value = (
        heads(projection, other if what in taken else hidden)
        for what, projection in (("queries", attn.to_q), ("keys", attn.to_k), ("values", attn.to_v))
    )
    mixed = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1) @ value
    out = attn.to_out[0]
    return mixed.transpose(1, 2).flatten(2) @ out.weight.double().T + out.bias.double()


@pytest.mark.parametrize("taken", [("keys", "values"), ("queries", "keys"), ("values",)])
def test_injected_attention_is_the_formula_in_float64(backbone, taken):
    names = [name for name in attention_layers(backbone.unet) if name.endswith("attn1")]
    seen = {}
    layers = attention_layers(backbone.unet)
    hooks = [
        layers[name].register_forward_hook(
            lambda module, inputs, options, output, name=name: seen.update({name: (inputs[0], output)}),
            with_kwargs=True,
        )
        for name in names
    ]
    with controlled(backbone.unet, [SelfInjection(ROWS.sources, ROWS.targets, names[:-1], taken)]):
        evaluate(backbone)
    for hook in hooks:
        hook.remove()
    for name in names:
        hidden, output = seen[name]
        expected = in_float64(name, backbone, hidden, taken if name in names[:-1] else ())
        torch.testing.assert_close(output.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_source_that_gives_to_itself_changes_nothing(backbone):
    names = list(attention_layers(backbone.unet))
    rows = [*range(6)]
    with controlled(backbone.unet, [SelfInjection(rows, rows, names, ("queries", "keys", "values"))]):
        found = evaluate(backbone)
    torch.testing.assert_close(found, evaluate(backbone), **close)


@pytest.mark.parametrize("negative", ["", "ugly"])
def test_at_strength_one_it_is_guided_sampling_of_the_target(
    monkeypatch, backbone, ddim, images, editors, inversions, negative
):
    target = backbone.encode_text(TARGETS)
    pivots = ddim_pivots(backbone, ddim, backbone.encode_image(images), backbone.encode_text(["", ""]))
    trajectory = Trajectory(pivots[0], target, (matching(backbone.encode_text([negative]), target),) * STEPS)
    expected = decode_latents(backbone, reconstruct(backbone, ddim, trajectory, GUIDANCE)[-1])
    for editor, inversion in zip(editors, inversions, strict=True):
        monkeypatch.setattr(editor, "negative", negative)
        found = editor.edit(inversion, EditRequest(TARGETS, strength=1.0))
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_the_empty_prompt_as_target_gives_the_source(backbone, ddim, images):
    """All rows are then one, whatever is taken: of a sampled source's branch the target's is the reconstruction."""
    for editor in (MasaCtrl(backbone, ddim, GUIDANCE), PlugAndPlay(backbone, ddim, GUIDANCE, negative="")):
        inversion = editor.invert(images, SOURCES)
        expected = decode_latents(backbone, editor.reconstruct(inversion)[-1])
        for strength in (0.0, 0.4):
            found = editor.edit(inversion, EditRequest(("", ""), strength=strength))
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_what_is_taken_changes_the_edit(monkeypatch, editors, inversions):
    for editor, inversion in zip(editors, inversions, strict=True):
        all_of_it, some, none = (editor.edit(inversion, EditRequest(TARGETS, strength=s)) for s in (0.0, 0.4, 1.0))
        assert (all_of_it - none).abs().max() > 1e-3 and (some - none).abs().max() > 1e-3
        assert not torch.allclose(all_of_it, some, atol=1e-4)
        monkeypatch.setattr(editor, "default_strength", 0.4)
        torch.testing.assert_close(editor.edit(inversion, EditRequest(TARGETS)), some)


def test_the_held_source_is_on_its_pivots(backbone, images, editors, inversions):
    for editor, inversion in zip(editors, inversions, strict=True):
        seen = []
        hook = backbone.unet.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0][:2]))
        editor.edit(inversion, EditRequest(TARGETS))
        hook.remove()
        on_pivots = [torch.allclose(x, p, atol=1e-4) for x, p in zip(seen, inversion.state, strict=False)]
        assert on_pivots == [True] * STEPS if editor.held else not all(on_pivots)
        latent = backbone.encode_image(images)
        assert torch.allclose(editor.reconstruct(inversion)[-1], latent, atol=1e-4) == editor.held


class Watched:
    """How often the rules of an editor are in force."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
        self.attention: list[bool] = []
        self.features: list[bool] = []
        monkeypatch.setattr(f"{module}.controlled", lambda unet, rules: self._note(self.attention, rules))
        if module.endswith("plug_and_play"):
            monkeypatch.setattr(f"{module}.features_of", lambda layers, rows: self._note(self.features, layers))

    def _note(self, into: list[bool], active: list) -> nullcontext:
        into.append(bool(active))
        return nullcontext()


@pytest.mark.parametrize(("num_steps", "expected"), [(50, 4), (25, 2), (20, 2), (10, 1)])
def test_mutual_attention_begins_at_step_4_of_50(monkeypatch, backbone, num_steps, expected):
    watched = Watched(monkeypatch, "eval.editors.masactrl")
    editor = MasaCtrl(backbone, Ddim(backbone.schedule, num_steps))
    for step in range(num_steps):
        editor.control(step, editor.default_strength, ROWS)
    assert watched.attention == [False] * expected + [True] * (num_steps - expected)


@pytest.mark.parametrize(("num_steps", "features", "attention"), [(50, 40, 25), (20, 16, 10), (10, 8, 5)])
def test_features_last_four_fifths_and_attention_a_half(monkeypatch, backbone, num_steps, features, attention):
    watched = Watched(monkeypatch, "eval.editors.plug_and_play")
    editor = PlugAndPlay(backbone, Ddim(backbone.schedule, num_steps))
    for step in range(num_steps):
        with editor.control(step, editor.default_strength, ROWS):
            pass
    assert watched.features == [True] * features + [False] * (num_steps - features)
    assert watched.attention == [True] * attention + [False] * (num_steps - attention)


def test_plug_and_plays_feature_is_what_the_resnet_adds(backbone, ddim):
    """The residual of the second layer of the coarsest block that attends is the source's in all rows."""
    editor = PlugAndPlay(backbone, ddim)
    resnet, outputs = backbone.unet.up_blocks[0].resnets[1], []
    with editor.control(0, 0.2, ROWS):
        hook = resnet.conv2.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        evaluate(backbone)
        hook.remove()
    source, *others = outputs[0].split(2)
    assert all(torch.equal(source, other) for other in others)
    assert not torch.equal(source[0], source[1])


STABLE_DIFFUSION_1 = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (8, 8, 8, 8),
}
SDXL = {
    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
    "block_out_channels": (8, 8, 8),
    "transformer_layers_per_block": (1, 2, 10),
}


def unet(**shape) -> UNet2DConditionModel:
    """A UNet with the layers of a known one, and hardly any channels."""
    return UNet2DConditionModel(
        layers_per_block=2, attention_head_dim=1, norm_num_groups=2, cross_attention_dim=4, sample_size=64, **shape
    )


class Bare:
    """As much of a backbone as an editor's construction looks at."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.network = self.unet = unet
        self.schedule = None


def test_layers_are_the_papers_in_stable_diffusion():
    """MasaCtrl's 10 to 15 of 16 in the order of their calls; Plug-and-Play's decoder layers 4 to 11."""
    bare = Bare(unet(**STABLE_DIFFUSION_1))
    calls = []
    for name, layer in attention_layers(bare.unet).items():
        if name.endswith("attn1"):
            layer.register_forward_hook(lambda module, inputs, output, name=name: calls.append(name))
    bare.unet(torch.zeros(1, 4, 64, 64), 1, torch.zeros(1, 2, 4))
    assert len(calls) == 16
    assert MasaCtrl(bare, None).layers == tuple(calls[10:])
    expected = [f"up_blocks.{block}.attentions.{layer}" for block in (1, 2, 3) for layer in (0, 1, 2)][1:]
    assert [name.split(".transformer")[0] for name in PlugAndPlay(bare, None).layers] == expected


def test_layers_of_sdxl_are_those_of_the_official_code():
    """64 to 69 of 70, one of the three choices of MasaCtrl's script for SDXL."""
    bare = Bare(unet(**SDXL))
    own, blocks = MasaCtrl(bare, None).layers, decoder_attention(bare.unet)
    assert [len(layer) for block in blocks for layer in block] == [10, 10, 10, 2, 2, 2]
    assert len(own) == 6 and all(name.startswith("up_blocks.1.") for name in own)
    assert len(PlugAndPlay(bare, None).layers) == 26


def test_what_cannot_be_is_refused(backbone, ddim, images):
    editor = MasaCtrl(backbone, ddim)
    with pytest.raises(ValueError, match=r"strength is 1\.5; expected a share of the 3 steps"):
        editor.edit(editor.invert(images, SOURCES), EditRequest(TARGETS, strength=1.5))
    plain = Bare(unet(down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), block_out_channels=(8,)))
    with pytest.raises(ValueError, match="decoder has no attention"):
        PlugAndPlay(plain, None)


def test_sampling_of_the_source_is_unguided(backbone, ddim, images):
    editor = MasaCtrl(backbone, ddim, GUIDANCE)
    inversion = editor.invert(images, SOURCES)
    x, null = inversion.state[0], backbone.encode_text(["", ""])
    for step, t in enumerate(ddim.timesteps):
        x = ddim.move(x, predict_noise(backbone, x, t, null), step, step + 1)
    torch.testing.assert_close(editor.reconstruct(inversion)[-1], x, **close)
