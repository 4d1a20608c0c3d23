"""The stage data.encode with a tiny real backbone: latents, prompts, fingerprints, damage."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from data.caption import CaptionConfig, caption_folder
from data.encode import EncodeConfig, encode_shards, main
from data.loader import ShardDataset, batches, check_latents
from data.shards import MANIFEST, ShardError, file_digest, read_sidecar
from models.backbone import Backbone
from tests.shard_folders import make_latents

COUNT, SIDE = 10, 64


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captioned shards of random pictures, three units."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    (folder / "in").mkdir()
    for number in range(COUNT):
        pixels = generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"in/{number}.png")
        (folder / f"in/{number}.txt").write_text(f"picture number {number}")
    caption_folder(folder / "in", folder / "shards", CaptionConfig(resolution=SIDE, unit_size=4))
    return folder / "shards"


@pytest.fixture(scope="module")
def backbone(tiny_backbone: str) -> Backbone:
    return Backbone.load(tiny_backbone)


@pytest.fixture(scope="module")
def encoded(pictures: Path, tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents, prompts and pictures of all samples."""
    out = tmp_path_factory.mktemp("encoded") / "shards"
    encode_shards(pictures, out, EncodeConfig(tiny_backbone, prompts=True, keep_images=True, batch=3))
    return out


def columns(folder: Path, *fields: str) -> dict[str, Any]:
    dataset = ShardDataset(folder, fields)
    return dataset.read_batch(range(len(dataset)))


def test_latents_are_the_scaled_posterior_means(pictures, encoded, backbone):
    images = columns(pictures, "image", "caption")
    found = columns(encoded, "latent", "prompt", "pooled", "caption", "image")
    assert found["key"] == images["key"] and found["caption"] == images["caption"]
    assert torch.equal(found["image"], images["image"])
    expected = backbone.encode_image(images["image"])
    assert found["latent"].shape == (COUNT, 4, 16, 16)
    torch.testing.assert_close(found["latent"], expected, atol=1e-3, rtol=1e-3)  # fp16 on disk
    prompt = backbone.encode_text(images["caption"], SIDE)
    torch.testing.assert_close(found["prompt"], prompt.embeds, atol=5e-3, rtol=1e-3)
    torch.testing.assert_close(found["pooled"], prompt.pooled, atol=5e-3, rtol=1e-3)


def test_pictures_and_prompts_are_left_out_by_default(pictures, tiny_backbone, tmp_path):
    encode_shards(pictures, tmp_path, EncodeConfig(tiny_backbone))
    with pytest.raises(
        ValueError, match=r"no 'image' \(they hold json, latent\.npy\): run data\.encode with --keep-im"
    ):
        ShardDataset(tmp_path, ("image",))
    with pytest.raises(ValueError, match="--prompts true"):
        ShardDataset(tmp_path, ("prompt",))
    with pytest.raises(ShardError, match="hold no pictures"):
        encode_shards(tmp_path, tmp_path / "again", EncodeConfig(tiny_backbone))


def test_captioned_shards_have_no_latents_yet(pictures):
    with pytest.raises(ValueError, match=r"hold no 'latent' .*: run data\.encode first"):
        ShardDataset(pictures, ("latent",))
    dataset = ShardDataset(pictures, ("image",))
    assert dataset.latent_fingerprint is None
    (batch,) = [next(batches(dataset, 0, 4, 4, 0, 1))]
    assert batch["image"].shape == (4, 3, SIDE, SIDE)


def test_latents_know_their_vae(encoded, backbone, tiny_backbone, tmp_path):
    dataset = ShardDataset(encoded)
    check_latents(dataset, backbone)
    assert backbone.vae_fingerprint in dataset.latent_fingerprint and "64 px" in dataset.latent_fingerprint
    other = change_vae(Path(tiny_backbone), tmp_path / "other")
    with pytest.raises(ValueError, match="made by another VAE"):
        check_latents(dataset, Backbone.load(str(other)))


def change_vae(folder: Path, copy: Path) -> Path:
    """A copy of a backbone whose VAE has one other weight."""
    shutil.copytree(folder, copy)
    (weights,) = (copy / "vae").glob("*.safetensors")
    tensors = load_file(weights)
    tensors["encoder.conv_in.bias"] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    return copy


def test_prompts_know_their_text_encoders(encoded, backbone, tiny_backbone, tmp_path):
    dataset = ShardDataset(encoded, ("latent", "prompt", "pooled"))
    check_latents(dataset, backbone)
    other = shutil.copytree(tiny_backbone, tmp_path / "other")
    (weights,) = (other / "text_encoder_2").glob("*.safetensors")
    tensors = load_file(weights)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    changed = Backbone.load(str(other))
    with pytest.raises(ValueError, match="made by other text encoders"):
        check_latents(dataset, changed)
    check_latents(ShardDataset(encoded, ("latent",)), changed)


def test_another_vae_in_the_same_folder_is_refused(pictures, encoded, tiny_backbone, tmp_path):
    other = change_vae(Path(tiny_backbone), tmp_path / "other")
    with pytest.raises(ShardError, match=r"another config:\n  vae:"):
        encode_shards(pictures, encoded, EncodeConfig(str(other), prompts=True, keep_images=True))
    with pytest.raises(ShardError, match=r"prompts: true -> false"):
        encode_shards(pictures, encoded, EncodeConfig(tiny_backbone, keep_images=True))


def test_a_lost_unit_is_made_again(pictures, tiny_backbone, tmp_path):
    main([str(pictures), str(tmp_path / "a"), "--backbone", tiny_backbone, "--batch", "3"])
    before = {path.name: file_digest(path) for path in (tmp_path / "a").iterdir()}
    (tmp_path / "a/unit-000001.json").unlink()
    (tmp_path / "a" / MANIFEST).unlink()
    main([str(pictures), str(tmp_path / "a"), "--backbone", tiny_backbone, "--batch", "3"])
    assert {path.name: file_digest(path) for path in (tmp_path / "a").iterdir()} == before


def test_damaged_input_is_counted(pictures, tiny_backbone, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(pictures, shards)
    sidecar = read_sidecar(shards / "unit-000000.json")
    offset, size = sidecar["members"]["png"][1]
    with (shards / "unit-000000.tar").open("r+b") as tar:
        tar.seek(offset)
        tar.write(bytes(size))
    with (shards / "unit-000001.tar").open("r+b") as tar:
        tar.truncate(read_sidecar(shards / "unit-000001.json")["members"]["png"][3][0])
    (shards / "unit-000002.tar").unlink()
    with pytest.raises(SystemExit, match=r"[23] of 10 inputs are damaged.*--max-damage 0\.1"):
        main([str(shards), str(tmp_path / "out"), "--backbone", tiny_backbone, "--max-damage", "0.1"])
    main([str(shards), str(tmp_path / "out"), "--backbone", tiny_backbone, "--max-damage", "0.5"])
    found = columns(tmp_path / "out", "latent")
    whole = ShardDataset(pictures, ("info",))
    assert found["key"] == [whole.key(number) for number in (0, 2, 3, 4, 5, 6)]
    listed = (tmp_path / "out/quarantine.jsonl").read_text()
    assert listed.count("not an image") == 1 and listed.count("truncated shard") == 1
    assert listed.count("shard cannot be opened") == 2


def test_infinite_latents_are_damage(pictures, tiny_backbone, tmp_path):
    other = change_vae(Path(tiny_backbone), tmp_path / "other")
    (weights,) = (other / "vae").glob("*.safetensors")
    tensors = load_file(weights)
    tensors["quant_conv.bias"] += 1e9
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ShardError, match=r"encoding is not finite"):
        encode_shards(pictures, tmp_path / "out", EncodeConfig(str(other)))


def test_wrong_inputs_are_named(tiny_backbone, tmp_path):
    with pytest.raises(SystemExit, match="no folder of shards"):
        main([str(tmp_path / "nowhere"), str(tmp_path / "out"), "--backbone", tiny_backbone])
    latents = make_latents(tmp_path / "latents", 4, 4)
    with pytest.raises(SystemExit, match=r"hold no pictures \(\['json', 'latent\.npy'\]\)"):
        main([str(latents), str(tmp_path / "out"), "--backbone", tiny_backbone])
