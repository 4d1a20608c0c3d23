"""Style transfer: whose features are used where, and that without any it is plain sampling."""

import pytest
import torch

from models.backbone import Backbone
from models.ddim import Ddim, ddim_pivots, matching
from models.prompt_to_prompt import Trajectory, reconstruct
from models.style_transfer import decoder_layers, features_of, transfer_style
from models.value_mapper import Modulation

STEPS = 3


@pytest.fixture(scope="module")
def world(tiny_sd_backbone):
    backbone = Backbone.load(tiny_sd_backbone)
    ddim = Ddim(backbone.schedule, STEPS)
    x0 = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    content, style = backbone.encode_text(["a circle", "grass"]), backbone.encode_text(["a star", "paint"])
    null = matching(backbone.encode_text([""]), content)
    values = [Modulation(torch.ones_like(style.embeds), 0.3 * torch.ones_like(style.embeds))] * STEPS
    return backbone, ddim, ddim_pivots(backbone, ddim, x0, content), content, style, null, values


def test_without_features_it_is_sampling_with_the_styles_values(world):
    backbone, ddim, pivots, content, style, null, values = world
    found = transfer_style(backbone, ddim, pivots, content, style, null, values, 3.0, share=0.0)
    trajectory = Trajectory(pivots[0], style, (null,) * STEPS, tuple(values))
    torch.testing.assert_close(found, reconstruct(backbone, ddim, trajectory, 3.0)[-1], rtol=1e-4, atol=1e-4)


def test_features_bring_the_result_nearer_to_the_content(world):
    backbone, ddim, pivots, content, style, null, values = world

    def distance(share: float) -> float:
        found = transfer_style(backbone, ddim, pivots, content, style, null, values, 3.0, (0, 1), share)
        return (found - pivots[-1]).square().mean().item()

    assert distance(1.0) < distance(0.0)


def test_features_are_those_of_the_source_rows(world):
    backbone = world[0]
    layers = decoder_layers(backbone.unet, (0,))
    seen = []
    with features_of(layers, slice(0, 1)):
        hook = layers[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
        x = torch.randn(3, 4, 16, 16)
        backbone.predict(x, backbone.encode_text(["a", "b", "c"]), torch.tensor([9, 9, 9]))
        hook.remove()
    assert torch.equal(seen[0][1], seen[0][0]) and torch.equal(seen[0][2], seen[0][0])
    assert not any(layer._forward_hooks for layer in layers)


def test_what_cannot_be_is_refused(world):
    backbone, ddim, pivots, content, style, null, values = world
    with pytest.raises(ValueError, match=r"blocks \[7\]"):
        transfer_style(backbone, ddim, pivots, content, style, null, values, 3.0, blocks=(7,))
    with pytest.raises(ValueError, match="share is 2"):
        transfer_style(backbone, ddim, pivots, content, style, null, values, 3.0, share=2)
