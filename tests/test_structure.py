"""Structure distance against plain float64 computations, what it sees and does not see, and which models it takes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel, ViTConfig, ViTModel

from eval.metrics.clip import ClipSimilarity
from eval.metrics.networks import load_structures
from eval.metrics.structure import SCALE, DinoPixels, Structure, similarity_distance
from models.backbone import Backbone
from tests.slow_metrics import MINIATURE_CLIP, slow_self_similarity
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


@pytest.fixture(scope="module")
def dino(tmp_path_factory) -> Path:
    """A random ViT of 96 pixels, so that its position embeddings have to be interpolated to 224."""
    folder = tmp_path_factory.mktemp("dino")
    size = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTModel(ViTConfig(**size, image_size=96, patch_size=32))
        for weight in model.parameters():
            weight.data += 0.3 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("height", "width"), [(64, 64), (300, 300), (96, 130)])
def test_dino_s_keys_in_both_forms(dino, height, width):
    structures, words = load_structures(str(dino))
    assert "ViT" in words and str(dino) in words
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 12, 12, generator=draw) * 255
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    pictures = (smooth + 20 * torch.randn(smooth.shape, generator=draw)).clamp(0, 255).to(torch.uint8)
    found = {form: structure.similarity(pictures / 127.5 - 1) for form, structure in structures.items()}
    assert (found["published"] - found["corrected"]).abs().max() > 0.01
    for form, similarities in found.items():
        for picture, similarity in zip(pictures, similarities, strict=True):
            expected = slow_self_similarity(dino, picture.permute(1, 2, 0).numpy(), form == "published")
            torch.testing.assert_close(similarity.double(), torch.from_numpy(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new"),
    [((512, 512), (224, 224)), ((64, 96), (224, 336)), ((900, 300), (480, 160)), ((224, 300), (224, 300))],
)
def test_dino_gets_torchvision_s_sizes(old, new):
    """Resize(224, max_size=480)."""
    assert DinoPixels()(torch.zeros(1, 3, *old)).shape[-2:] == new


def test_dino_s_pixels_are_normalised():
    grey = torch.full((1, 3, 224, 224), 0.2)
    expected = (0.6 - 0.485) / 0.229, (0.6 - 0.456) / 0.224, (0.6 - 0.406) / 0.225
    assert DinoPixels()(grey)[0, :, 0, 0].tolist() == pytest.approx(expected, rel=1e-5)
    expected = (153 - 0.485) / 0.229, (153 - 0.456) / 0.224, (153 - 0.406) / 0.225
    assert DinoPixels(published=True)(grey)[0, :, 0, 0].tolist() == pytest.approx(expected, rel=1e-5)


def test_weights_with_the_names_of_old_transformers_are_read(dino, tmp_path):
    """As facebook/dino-vitb8 has them, without a pooler."""
    state = ViTModel.from_pretrained(dino).state_dict()
    renamed = {}
    for name, values in state.items():
        for new, old in OLD_NAMES.items():
            name = re.sub(new, old, name)
        if not name.startswith("pooler"):
            renamed[name] = values.contiguous()
    assert "encoder.layer.1.attention.attention.key.weight" in renamed
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((dino / "config.json").read_text())
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    found, expected = (load_structures(str(folder))[0]["corrected"].similarity(images) for folder in (tmp_path, dino))
    torch.testing.assert_close(found, expected)


OLD_NAMES = {
    r"^layers\.": "encoder.layer.",
    r"attention\.q_proj": "attention.attention.query",
    r"attention\.k_proj": "attention.attention.key",
    r"attention\.v_proj": "attention.attention.value",
    r"attention\.o_proj": "attention.output.dense",
    r"mlp\.fc1": "intermediate.dense",
    r"mlp\.fc2": "output.dense",
}


def test_incomplete_and_other_models_are_refused(dino, tmp_path):
    state = load_file(dino / "model.safetensors")
    save_file({k: v for k, v in state.items() if ".1." not in k}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((dino / "config.json").read_text())
    with pytest.raises(ValueError, match="lacks weights of a ViTModel"):
        load_structures(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="'bert', expected 'vit'"):
        load_structures(str(tmp_path))


def test_a_clip_s_vision_encoder_alone_serves_too(tmp_path):
    CLIPVisionModel.from_pretrained(MINIATURE_CLIP).save_pretrained(tmp_path)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    alone, whole = (load_structures(str(folder))[0] for folder in (tmp_path, MINIATURE_CLIP))
    assert alone["published"] is alone["corrected"]
    a, b = (structures["corrected"].similarity(images) for structures in (alone, whole))
    torch.testing.assert_close(a, b)
    assert whole["corrected"].distance(images, b.roll(1, 0)).tolist() == pytest.approx(
        (SCALE * similarity_distance(b, b.roll(1, 0))).tolist()
    )
