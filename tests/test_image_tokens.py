"""Image tokens against transformers' own outputs, from folders of either class, and what identifies them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from eval.metrics.clip import ClipSimilarity
from models.backbone import assert_frozen
from models.clip import ClipPixels, ImageTokens
from models.fingerprints import clip_fingerprint, same_weights

MINIATURE = str(Path(__file__).resolve().parents[1] / "models/miniature/clip")
SIDE, PATCH, WIDTH = 32, 8, 16
TOKENS = (SIDE // PATCH) ** 2 + 1


@pytest.fixture(scope="module")
def clip() -> CLIPModel:
    """A random CLIP of which every weight, norms included, differs from its initial value."""
    size = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**size, "vocab_size": 50, "max_position_embeddings": 8},
        vision_config={**size, "image_size": SIDE, "patch_size": PATCH},
        projection_dim=WIDTH,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(config).eval()
        for weight in model.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
    return model


@pytest.fixture(scope="module")
def folder(clip: CLIPModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CLIP with OpenAI's normalisation."""
    folder = tmp_path_factory.mktemp("clip")
    clip.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(folder)
    return folder


def pictures(side: int = SIDE) -> Tensor:
    """Uint8 [2, 3, side, side]."""
    return torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def scaled(images: Tensor) -> Tensor:
    return images / 127.5 - 1


def test_tokens_are_those_of_transformers_behind_the_final_norm(clip, folder):
    tokens = ImageTokens.load(str(folder))
    found = tokens(scaled(pictures()))
    assert found.shape == (2, *tokens.shape) == (2, TOKENS, WIDTH) and found.dtype == torch.float32
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    pixels = processor(list(pictures()), return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = clip.vision_model(pixel_values=pixels)
        embedding = clip.get_image_features(pixel_values=pixels).pooler_output
        torch.testing.assert_close(found[:, 0], expected.pooler_output, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(clip.visual_projection(found[:, 0]), embedding, atol=1e-5, rtol=1e-4)
        norm = clip.vision_model.post_layernorm
        torch.testing.assert_close(found, norm(expected.last_hidden_state), atol=1e-5, rtol=1e-4)
        assert (found - expected.last_hidden_state).abs().max() > 0.1  # the norm is not the identity


def test_larger_pictures_are_resized_as_the_processor_does(folder):
    """Up to the processor's rounding to 8 bits and another implementation of the same filter."""
    smooth = torch.nn.functional.interpolate(pictures(8).float(), (80, 80), mode="bilinear").round().to(torch.uint8)
    ours = ClipPixels.load(str(folder), SIDE)(scaled(smooth))
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    theirs = processor(list(smooth), return_tensors="pt").pixel_values
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)


@pytest.mark.parametrize("half", [False, True])
def test_both_classes_of_folders_give_the_same_tokens(clip, folder, tmp_path, half):
    vision = CLIPVisionModel.from_pretrained(folder)
    (vision.half() if half else vision).save_pretrained(tmp_path)
    CLIPImageProcessorPil.from_pretrained(folder).save_pretrained(tmp_path)
    whole, alone = ImageTokens.load(str(folder)), ImageTokens.load(str(tmp_path))
    assert alone.model.dtype == torch.float32 and alone.shape == whole.shape
    tolerance = 0.05 if half else 0
    torch.testing.assert_close(alone(scaled(pictures())), whole(scaled(pictures())), atol=tolerance, rtol=0)
    assert same_weights(clip_fingerprint(alone), clip_fingerprint(whole))


def test_the_fingerprint_is_that_of_weights_and_normalisation(folder):
    first, again, other = (ImageTokens.load(str(folder)) for _ in range(3))
    assert clip_fingerprint(first) == clip_fingerprint(again)
    other.model.post_layernorm.bias.data += 1
    assert clip_fingerprint(other) != clip_fingerprint(first)
    shifted = ImageTokens(first.model, ClipPixels(SIDE, (0.5,) * 3, first.pixels.std))
    assert clip_fingerprint(shifted) != clip_fingerprint(first)


def test_the_encoder_is_frozen(folder):
    tokens = ImageTokens.load(str(folder))
    assert_frozen(tokens.model)
    assert not tokens(scaled(pictures()).requires_grad_()).requires_grad


def test_the_miniature_takes_pictures_as_they_are():
    tokens = ImageTokens.load(MINIATURE)
    assert tokens.shape == (65, 128)
    images = scaled(pictures(64))
    torch.testing.assert_close(tokens.pixels(images), images)
    assert tokens.pixels == ClipSimilarity(MINIATURE).pixels


def test_other_models_are_refused(tmp_path):
    text = CLIPTextConfig(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    CLIPTextModel(text).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a model of type 'clip_text_model', expected 'clip' or"):
        ImageTokens.load(str(tmp_path))
    with pytest.raises(OSError):
        ImageTokens.load(str(tmp_path / "nowhere"))


def test_sizes_of_the_official_encoder():
    model = CLIPVisionModel(CLIPVisionConfig(image_size=224, patch_size=16, num_hidden_layers=1, intermediate_size=8))
    assert ImageTokens(model, ClipPixels(224, (0.5,) * 3, (0.5,) * 3)).shape == (197, 768)
