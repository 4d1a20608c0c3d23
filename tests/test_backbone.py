"""The frozen backbone against the stock pipelines whose parts it loads."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import Tensor

from models.backbone import Backbone
from models.families import family_of
from models.text import DualClipText, Prompt, concatenate, interpolate, load_tokenizer

TEXTS = ["a red circle on a green hill", "", "a very long caption " * 10]


@pytest.fixture
def backbone(any_backbone: str) -> Backbone:
    return Backbone.load(any_backbone)


def pictures(count: int) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_everything_is_frozen(backbone: Backbone):
    backbone.assert_frozen()
    assert len(backbone.modules()) == (4 if isinstance(backbone.text, DualClipText) else 3)
    for module in backbone.modules():
        assert not any(weight.requires_grad for weight in module.parameters())


def test_a_trainable_weight_is_caught(backbone: Backbone):
    backbone.unet.conv_in.weight.requires_grad_(True)
    with pytest.raises(AssertionError, match=r"UNet2DConditionModel has trainable weights: \['conv_in.weight'\]"):
        backbone.assert_frozen()


def test_training_mode_is_caught(backbone: Backbone):
    backbone.vae.encoder.train()
    with pytest.raises(AssertionError, match="frozen AutoencoderKL is in training mode"):
        backbone.assert_frozen()


def test_text_is_encoded_as_by_the_stock_sdxl_pipeline(tiny_backbone: str):
    stock = DiffusionPipeline.from_pretrained(tiny_backbone)
    embeds, _, pooled, _ = stock.encode_prompt(TEXTS, do_classifier_free_guidance=False, device="cpu")
    time_ids = stock._get_add_time_ids((64, 64), (0, 0), (64, 64), embeds.dtype, pooled.shape[-1])
    prompt = Backbone.load(tiny_backbone).encode_text(TEXTS)
    assert prompt.pooled is not None and prompt.time_ids is not None
    assert torch.equal(prompt.embeds, embeds)
    assert torch.equal(prompt.pooled, pooled)
    assert torch.equal(prompt.time_ids, time_ids.expand(len(TEXTS), 6))


def test_text_is_encoded_as_by_the_stock_sd_pipeline(tiny_sd_backbone: str):
    stock = DiffusionPipeline.from_pretrained(tiny_sd_backbone)
    embeds, _ = stock.encode_prompt(TEXTS, "cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    prompt = Backbone.load(tiny_sd_backbone).encode_text(TEXTS)
    assert torch.equal(prompt.embeds, embeds)
    assert prompt.pooled is None and prompt.time_ids is None


def test_a_tokenizer_without_its_files_is_refused(tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """transformers gives one that reads nothing, be it a folder or, offline, a hub id that is not in the cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = shutil.copytree(tiny_backbone, tmp_path / "backbone")
    for path in folder.glob("tokenizer_2/*"):
        if path.name != "tokenizer_config.json":
            path.unlink()
    with pytest.raises((ValueError, OSError), match="backbone"):
        Backbone.load(str(folder))
    with pytest.raises(ValueError, match=r"nobody/nothing/tokenizer has no vocabulary: .* has to lie in the cache"):
        load_tokenizer("nobody/nothing", "tokenizer")


def test_prediction_is_that_of_the_stock_unet(tiny_backbone: str):
    backbone = Backbone.load(tiny_backbone)
    unet = DiffusionPipeline.from_pretrained(tiny_backbone).unet
    prompt, x_t, t = backbone.encode_text(TEXTS), torch.randn(3, 4, 16, 16), torch.tensor([999, 249, 499])
    condition = {"text_embeds": prompt.pooled, "time_ids": prompt.time_ids}
    with torch.no_grad():
        expected = unet(x_t, t, prompt.embeds, added_cond_kwargs=condition).sample
    assert torch.equal(backbone.predict(x_t, prompt, t), expected)


def test_images_are_encoded_to_the_scaled_mean_and_decoded_from_it(backbone: Backbone, any_backbone: str):
    vae = AutoencoderKL.from_pretrained(any_backbone, subfolder="vae")
    image = pictures(2)
    with torch.no_grad():
        mean = vae.encode(image).latent_dist.mean
        latent = backbone.encode_image(image)
        assert torch.equal(latent, mean * 0.7)
        torch.testing.assert_close(backbone.decode(latent), vae.decode(mean).sample, rtol=1e-4, atol=1e-5)
    assert backbone.image_size == 64 and latent.shape == (2, 4, 16, 16)


def test_a_shift_of_the_vae_is_respected_in_both_directions(backbone: Backbone):
    image = pictures(1)
    plain = backbone.encode_image(image)
    decoded = backbone.decode(plain)
    backbone.vae.register_to_config(shift_factor=0.25)
    shifted = backbone.encode_image(image)
    torch.testing.assert_close(shifted, plain - 0.25 * 0.7)
    torch.testing.assert_close(backbone.decode(shifted), decoded, rtol=1e-4, atol=1e-5)


def test_gradients_cross_to_the_input_and_not_to_the_weights(backbone: Backbone):
    x_t = torch.randn(2, 4, 16, 16, requires_grad=True)
    prompt = backbone.encode_text(["a", "b"])
    assert not prompt.embeds.requires_grad
    backbone.decode(backbone.predict(x_t, prompt, torch.tensor([999, 249]))).square().mean().backward()
    assert x_t.grad is not None and x_t.grad.abs().amax((1, 2, 3)).min() > 0
    assert all(weight.grad is None for module in backbone.modules() for weight in module.parameters())


def test_half_precision_unet_answers_in_float32(tiny_backbone: str):
    backbone = Backbone.load(tiny_backbone, dtype=torch.bfloat16)
    prompt, t, x_t = backbone.encode_text(["a"]), torch.tensor([499]), torch.randn(1, 4, 16, 16)
    assert prompt.embeds.dtype == torch.bfloat16 and backbone.vae.dtype == torch.float32
    output = backbone.predict(x_t, prompt, t)
    exact = Backbone.load(tiny_backbone)
    expected = exact.predict(x_t, exact.encode_text(["a"]), t)
    assert output.dtype == torch.float32
    assert (output - expected).std() < 0.05 * expected.std()


def test_a_vae_that_overflows_in_float16_is_refused(tiny_backbone: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"overflows in float16; use float32 or bfloat16 \(vae_dtype\)"):
        Backbone.load(tiny_backbone, vae_dtype=torch.float16)
    fixed = tmp_path / "fixed"
    shutil.copytree(tiny_backbone, fixed)
    config = json.loads((fixed / "vae/config.json").read_text())
    (fixed / "vae/config.json").write_text(json.dumps(config | {"force_upcast": False}))
    assert Backbone.load(str(fixed), vae_dtype=torch.float16, parts=("vae",)).vae.dtype == torch.float16


def test_a_folder_that_is_no_pipeline_is_refused(tiny_backbone: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"unet is not a pipeline folder: it has no model_index.json"):
        Backbone.load(f"{tiny_backbone}/unet")
    (tmp_path / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}))
    with pytest.raises(ValueError, match="names no vae, text_encoder, tokenizer, scheduler"):
        Backbone.load(str(tmp_path))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "OtherPipeline", "net": ["diffusers", "U"]}))
    with pytest.raises(ValueError, match="is a OtherPipeline with the components U; expected one of UNet2DCond"):
        Backbone.load(str(tmp_path))
    with pytest.raises(ValueError, match=r"parts unet are unknown; expected some of vae, text, network"):
        Backbone.load(tiny_backbone, parts=("unet",))
    with pytest.raises(ValueError, match="Linear is no network of a known family"):
        family_of(torch.nn.Linear(1, 1))


def test_parts_that_were_not_asked_for_are_not_loaded(any_backbone: str):
    backbone = Backbone.load(any_backbone, parts=("vae",))
    assert backbone.unet is None and backbone.text is None
    backbone.assert_frozen()
    with pytest.raises(ValueError, match="needs the backbone's text, which was not loaded; add 'text' to the parts"):
        backbone.encode_text(["a"])


def test_prompts_are_taken_apart_and_put_together(backbone: Backbone):
    whole = backbone.encode_text(TEXTS)
    parts = [whole[:1], whole[torch.tensor([1, 2])]]
    assert [len(part) for part in parts] == [1, 2]
    for name, tensor in vars(concatenate(parts)).items():
        expected = getattr(whole, name)
        assert tensor is None if expected is None else torch.equal(tensor, expected)
    assert isinstance(whole.to(torch.bfloat16), Prompt)
    here = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    masked = Prompt(torch.randn(3, 3, 2), mask=here)
    assert torch.equal(concatenate([masked[:1], masked[1:]]).mask, here)
    half = masked.to(dtype=torch.bfloat16)
    assert half.embeds.dtype == torch.bfloat16 and torch.equal(half.mask, here)
    assert torch.equal(interpolate(masked[:1], [masked[1:2]], [0.5]).mask, here[:1])
    assert whole.to(torch.bfloat16).embeds.dtype == torch.bfloat16
