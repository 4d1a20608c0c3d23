"""Structure distance against a plain float64 computation, and what it sees and does not see."""

import numpy as np
import pytest
import torch

from eval.clip import ClipSimilarity
from eval.structure import SCALE, Structure
from models.backbone import Backbone
from tests.tiny_editing import save_tiny_judges


@pytest.fixture(scope="module")
def clip(tiny_sd_backbone, tmp_path_factory) -> ClipSimilarity:
    tokenizer = Backbone.load(tiny_sd_backbone, parts=["text"]).text.tokenizers[0]
    return ClipSimilarity(str(save_tiny_judges(tmp_path_factory.mktemp("judges"), tokenizer)[1]))


@torch.no_grad()
def test_it_is_the_error_of_the_keys_self_similarities(clip):
    structure = Structure(clip.model.vision_model, clip.pixels)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = structure.distance(images[:1], structure.similarity(images[1:]))
    hidden = clip.model.vision_model(pixel_values=clip.pixels(images), output_hidden_states=True).hidden_states[-2]
    layer = clip.model.vision_model.encoder.layers[-1]
    keys = layer.self_attn.k_proj(layer.layer_norm1(hidden)).numpy().astype(np.float64)
    maps = []
    for tokens in keys:
        unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
        maps.append(np.einsum("id,jd->ij", unit, unit))
    assert len(maps[0]) == 17  # 16 patches and the class token
    assert found.item() == pytest.approx(SCALE * np.mean((maps[0] - maps[1]) ** 2), rel=1e-3)


def test_a_picture_is_at_no_distance_from_itself_and_the_encoder_is_left_alone(clip):
    structure = Structure(clip.model.vision_model, clip.pixels)
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert structure.distance(images, structure.similarity(images)).abs().max() < 1e-6
    assert structure.distance(images, structure.similarity(images.roll(1, 0))).min() > 1e-3
    assert not clip.model.vision_model.encoder.layers[-1].self_attn.k_proj._forward_hooks
