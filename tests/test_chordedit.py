"""ChordEdit against its equation written down in float64, one evaluation at a time."""

import pytest
import torch
from torch import Tensor

from eval.editors.chordedit import ChordEdit
from eval.editors.editor import EditRequest
from eval.editors.few_steps import decode_latents
from eval.editors.randomness import image_keys, image_noise
from models.backbone import Backbone
from tests.plain_attention import ExactGenerator
from tests.test_turboedit_pipeline import pictures

SOURCE, TARGET = "a red circle", "a blue star"
NOISY, CLEAN, REFINED = 899, 749, 300  # round(999 share) of 0.90, 0.90 - 0.15 and 0.30, as the official code rounds


@pytest.fixture(scope="module")
def backbone(any_backbone: str) -> Backbone:
    return Backbone.load(any_backbone, dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize(("refine", "scale"), [(True, None), (False, 0.5)])
def test_edit_is_the_papers_step(backbone: Backbone, refine: bool, scale: float | None):
    editor = ChordEdit(backbone, refine)
    found = editor.edit(editor.invert(pictures(1), (SOURCE,)), EditRequest((TARGET,), strength=scale, seed=3))

    exact = ExactGenerator(backbone.unet, backbone.schedule.alphas_cumprod, backbone.schedule.prediction_type)
    source, target = (backbone.encode_text([text]) for text in (SOURCE, TARGET))
    x0 = backbone.encode_image(pictures(1)).double()
    noise = image_noise(image_keys(pictures(1)), "chordedit", 3, x0)

    def noised(x: Tensor, t: int) -> Tensor:
        return exact.abar[t] ** 0.5 * x + (1 - exact.abar[t]) ** 0.5 * noise

    def field(t: int) -> Tensor:
        wanted, seen = (exact.x0_and_noise(noised(x0, t), prompt, t)[0] for prompt in (target, source))
        return wanted - seen

    step = (0.90 * field(CLEAN) + 0.15 * field(NOISY)) / (0.90 + 0.15)
    x = x0 + (1.0 if scale is None else scale) * step
    if refine:
        x = exact.x0_and_noise(noised(x, REFINED), target, REFINED)[0]
    torch.testing.assert_close(found, decode_latents(backbone, x.float()), atol=1e-3, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("target", "scale"), [(SOURCE, 1.0), (TARGET, 0.0)])
def test_transport_to_the_same_prompt_or_of_no_length_is_the_picture(backbone: Backbone, target: str, scale: float):
    editor = ChordEdit(backbone, refine=False)
    found = editor.edit(editor.invert(pictures(2), (SOURCE,) * 2), EditRequest((target,) * 2, strength=scale))
    expected = decode_latents(backbone, backbone.encode_image(pictures(2)))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
