"""The stage data.encode with tiny real networks: latents, prompts, pivots, image tokens, fingerprints, damage."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from webdataset import WebDataset

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.encode import EncodeConfig, encode_shards, main
from data.jobs.errors import ShardError
from data.pictures import images
from data.shards.dataset import ShardDataset
from data.shards.loader import batches
from data.shards.origins import check_image_tokens, check_latents, check_pivots, check_prompts
from data.shards.shard import MANIFEST, Sample, file_digest, read_sidecar
from models.backbone import Backbone
from models.clip import ImageTokens
from models.ddim import Ddim, ddim_pivots
from models.fingerprints import named, text_fingerprint, vae_fingerprint
from models.pictures import from_picture
from models.shapes import SizeConditioning
from tests.shard_folders import PAIR_SIDE, make_latents, make_pair, make_pairs
from tests.tiny_editing import save_tiny_judges

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
    prompt = backbone.encode_text(images["caption"], SizeConditioning.uncropped(SIDE, SIDE))
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
    assert dataset.vae_fingerprint == vae_fingerprint(backbone)
    assert (
        dataset.latent_fingerprint == f"{named(dataset.vae_fingerprint)}, 64 px, centre square, Lanczos, posterior mean"
    )
    other = change_vae(Path(tiny_backbone), tmp_path / "other")
    with pytest.raises(ValueError, match="made by another VAE"):
        check_latents(dataset, Backbone.load(str(other)))


def change(folder: str | Path, copy: Path, part: str, name: str, amount: float = 1) -> Path:
    """A copy of a backbone in which one weight of a part is larger."""
    shutil.copytree(folder, copy)
    (weights,) = (copy / part).glob("*.safetensors")
    tensors = load_file(weights)
    tensors[name] += amount
    save_file(tensors, weights, metadata={"format": "pt"})
    return copy


def change_vae(folder: Path, copy: Path) -> Path:
    """A copy of a backbone whose VAE has one other weight."""
    return change(folder, copy, "vae", "encoder.conv_in.bias")


def test_prompts_know_their_text_encoders(encoded, backbone, tiny_backbone, tmp_path):
    dataset = ShardDataset(encoded, ("latent", "prompt", "pooled"))
    check_prompts(dataset, text_fingerprint(backbone))
    other = shutil.copytree(tiny_backbone, tmp_path / "other")
    (weights,) = (other / "text_encoder_2").glob("*.safetensors")
    tensors = load_file(weights)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    changed = Backbone.load(str(other))
    with pytest.raises(ValueError, match="made by other text encoders"):
        check_prompts(dataset, text_fingerprint(changed))
    check_latents(dataset, changed)


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


# --- pivots and image tokens ---------------------------------------------------------------------------------------

STEPS = 5


@pytest.fixture(scope="module")
def clip(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a random CLIP for pictures of 32 px."""
    return str(save_tiny_judges(tmp_path_factory.mktemp("clip"), backbone.text.tokenizers[0])[1])


@pytest.fixture(scope="module")
def pivoted(pictures: Path, any_backbone: str, clip: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents, pivots of the official codes' steps, and image tokens, with an SDXL-like and an SD-like backbone."""
    out = tmp_path_factory.mktemp("pivoted") / "shards"
    options = {"pivots": True, "pivot_steps": STEPS, "steps_offset": 0, "clip": clip, "batch": 3}
    encode_shards(pictures, out, EncodeConfig(any_backbone, **options))
    return out


def test_pivots_are_the_latents_of_the_inversion(pictures, pivoted, any_backbone):
    backbone = Backbone.load(any_backbone)
    source, found = columns(pictures, "image", "caption"), columns(pivoted, "latent", "pivots", "caption")
    assert found["caption"] == source["caption"]
    assert found["pivots"].shape == (COUNT, STEPS + 1, 4, 16, 16)
    assert torch.equal(found["pivots"][:, -1], found["latent"])
    prompt = backbone.encode_text(source["caption"], SizeConditioning.uncropped(SIDE, SIDE))
    x0 = backbone.encode_image(source["image"])
    expected = ddim_pivots(backbone, Ddim(backbone.schedule, STEPS, 0), x0, prompt).transpose(0, 1)
    torch.testing.assert_close(found["pivots"], expected, atol=5e-3, rtol=2e-3)  # fp16 on disk


def test_image_tokens_are_those_of_the_clip(pictures, pivoted, clip):
    tokens = ImageTokens.load(clip)
    found = columns(pivoted, "clip")["clip"]
    assert found.shape == (COUNT, *tokens.shape)
    torch.testing.assert_close(found, tokens(columns(pictures, "image")["image"]), atol=5e-3, rtol=2e-3)


def test_the_loader_gives_pivots_and_image_tokens(pivoted):
    dataset = ShardDataset(pivoted, ("latent", "pivots", "clip", "caption"))
    batch = next(batches(dataset, 0, 4, 4, 0, 1))
    assert batch["pivots"].shape == (4, STEPS + 1, 4, 16, 16) and batch["clip"].shape == (4, 17, 16)
    assert batch["pivots"].dtype == batch["clip"].dtype == torch.float32 and not batch["substituted"]


def test_pivots_know_their_unet_text_and_steps(pivoted, encoded, any_backbone, tmp_path):
    backbone = Backbone.load(any_backbone)
    dataset = ShardDataset(pivoted, ("pivots", "clip"))
    check_latents(dataset, backbone)
    check_pivots(dataset, backbone, Ddim(backbone.schedule, STEPS, 0))
    for ddim in (Ddim(backbone.schedule, STEPS, 1), Ddim(backbone.schedule, 10, 0)):
        expected = (
            rf"are of {STEPS} DDIM steps 800\.\.0, .* --pivot-steps {len(ddim)} --steps-offset {ddim.timesteps[-1]}"
        )
        with pytest.raises(ValueError, match=expected):
            check_pivots(dataset, backbone, ddim)
    changed = Backbone.load(str(change(any_backbone, tmp_path / "other", "unet", "conv_out.bias")))
    with pytest.raises(ValueError, match=r"the pivots in .* were made by another UNet: .* with --pivots true"):
        check_pivots(dataset, changed, Ddim(backbone.schedule, STEPS, 0))
    with pytest.raises(ValueError, match=r"holds no pivots; run data\.encode with --pivots true"):
        check_pivots(ShardDataset(encoded), backbone, Ddim(backbone.schedule, STEPS, 0))
    with pytest.raises(ValueError, match=r"no 'pivots' .*: run data\.encode with --pivots true"):
        ShardDataset(encoded, ("pivots",))


def test_image_tokens_know_their_clip(pivoted, encoded, clip):
    dataset, tokens = ShardDataset(pivoted, ("clip",)), ImageTokens.load(clip)
    check_image_tokens(dataset, tokens)
    tokens.model.post_layernorm.bias.data += 1
    made_by = named(dataset.clip_fingerprint)
    with pytest.raises(ValueError, match=rf"made by another CLIP: {made_by}, here .* run data\.encode .*with --clip"):
        check_image_tokens(dataset, tokens)
    with pytest.raises(ValueError, match=r"holds no image tokens; run data\.encode with --clip"):
        check_image_tokens(ShardDataset(encoded), tokens)


def test_a_lost_unit_of_pivots_is_made_again_and_other_steps_are_refused(pictures, any_backbone, clip, tmp_path):
    command = [str(pictures), str(tmp_path / "a"), "--backbone", any_backbone, "--batch", "3"]
    options = ["--pivots", "true", "--pivot-steps", "4", "--clip", clip]
    main(command + options)
    before = {path.name: file_digest(path) for path in (tmp_path / "a").iterdir()}
    (tmp_path / "a/unit-000001.json").unlink()
    main(command + options)
    assert {path.name: file_digest(path) for path in (tmp_path / "a").iterdir()} == before
    with pytest.raises(SystemExit, match=r'pivots: "4 DDIM steps 751\.\.1, .*" -> "4 DDIM steps 750\.\.0'):
        main([*command, *options, "--steps-offset", "0"])
    with pytest.raises(SystemExit, match=r"clip: .* -> null"):
        main([*command, "--pivots", "true", "--pivot-steps", "4"])


def test_pivots_that_overflow_are_damage(pictures, any_backbone, tmp_path):
    other = str(change(any_backbone, tmp_path / "other", "unet", "conv_out.bias", 1e7))
    command = [str(pictures), str(tmp_path / "out"), "--backbone", other, "--max-damage", "1"]
    with pytest.raises(SystemExit, match=f"'encoding is not finite': {COUNT}"):
        main([*command, "--pivots", "true", "--pivot-steps", "2"])
    assert (tmp_path / "out/quarantine.jsonl").read_text().count('"pivots.npy"') == COUNT


def test_options_that_do_not_fit_are_refused(pictures, tiny_backbone, tmp_path, capsys):
    command = [str(pictures), str(tmp_path / "out"), "--backbone", tiny_backbone]
    with pytest.raises(SystemExit):
        main([*command, "--pivot-steps", "50"])
    assert (
        "--pivot-steps is 50 and --steps-offset 1, but no pivots are made; add --pivots true" in capsys.readouterr().err
    )
    with pytest.raises(SystemExit, match="--pivot-steps 0 --steps-offset 1: num_steps is 0"):
        main([*command, "--pivots", "true", "--pivot-steps", "0"])
    with pytest.raises(SystemExit, match="--steps-offset 2: steps_offset is 2"):
        main([*command, "--pivots", "true", "--steps-offset", "2"])
    with pytest.raises(SystemExit, match=r"--clip .*nowhere cannot be loaded"):
        main([*command, "--clip", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match=r"--clip .* cannot be loaded: .* of type 'clip_text_model'"):
        main([*command, "--clip", f"{tiny_backbone}/text_encoder"])
    assert not (tmp_path / "out").exists()


def test_pivots_need_pictures_of_the_unets_size(pictures, tiny_backbone, tmp_path):
    other = shutil.copytree(tiny_backbone, tmp_path / "other")
    config = json.loads((other / "unet/config.json").read_text())
    (other / "unet/config.json").write_text(json.dumps(config | {"sample_size": 32}))
    encode_shards(pictures, tmp_path / "latents", EncodeConfig(str(other)))
    with pytest.raises(
        ShardError, match=r"needs pictures of 128 px, .* these have 64 px: run data\.caption with --res"
    ):
        encode_shards(pictures, tmp_path / "out", EncodeConfig(str(other), pivots=True))


def test_what_is_not_asked_for_is_not_remembered(pictures, tiny_backbone, tmp_path):
    """So folders of before these options existed can still be gone on with."""
    encode_shards(pictures, tmp_path, EncodeConfig(tiny_backbone))
    assert set(read_sidecar(tmp_path / "unit-000000.json")["config"]) == {
        "vae",
        "text_encoders",
        "prompts",
        "keep_images",
    }


# --- pairs of data.edit_pairs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of random pictures, three units."""
    return make_pairs(tmp_path_factory.mktemp("pairs") / "shards", COUNT, 4)


def source_pictures(folder: Path) -> torch.Tensor:
    """[N, 3, H, W] in [-1, 1], read from the tars with webdataset."""
    tars = [str(tar) for tar in sorted(folder.glob("*.tar"))]
    found = []
    for sample in WebDataset(tars, shardshuffle=False):
        (content,) = [sample[name] for name in ("source.png", "source.jpg") if name in sample]
        found.append(from_picture(images.decode(content)))
    return torch.stack(found)


def test_both_latents_of_a_pair_are_those_of_its_pictures(pairs, tiny_backbone, backbone, tmp_path):
    encode_shards(pairs, tmp_path, EncodeConfig(tiny_backbone, prompts=True, batch=3))
    found = columns(tmp_path, "latent", "source", "prompt", "pooled", "caption")
    assert found["caption"] == [f"make shape {number} blue" for number in range(COUNT)]
    assert found["source"].shape == (COUNT, 4, 16, 16) and found["source"].dtype == torch.float32
    edited, source = columns(pairs, "image")["image"], source_pictures(pairs)
    torch.testing.assert_close(found["latent"], backbone.encode_image(edited), atol=1e-3, rtol=1e-3)  # fp16 on disk
    torch.testing.assert_close(found["source"], backbone.encode_image(source), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(found["latent"], found["source"], atol=0.1)
    prompt = backbone.encode_text(found["caption"], SizeConditioning.uncropped(PAIR_SIDE, PAIR_SIDE))
    torch.testing.assert_close(found["prompt"], prompt.embeds, atol=5e-3, rtol=1e-3)
    dataset = ShardDataset(tmp_path)
    check_latents(dataset, backbone)
    assert dataset.available == ("latent", "source", "prompt", "pooled", "caption", "info")


def test_what_a_pair_says_of_itself_stays(pairs, tiny_backbone, tmp_path):
    encode_shards(pairs, tmp_path, EncodeConfig(tiny_backbone))
    assert columns(tmp_path, "info") == columns(pairs, "info")
    for unit in ("unit-000000", "unit-000002"):
        assert set(read_sidecar(tmp_path / f"{unit}.json")["members"]) == {"json", "latent.npy", "source.npy"}


def test_both_pictures_of_a_pair_are_kept(pairs, tiny_backbone, tmp_path):
    encode_shards(pairs, tmp_path / "kept", EncodeConfig(tiny_backbone, keep_images=True))
    assert torch.equal(columns(tmp_path / "kept", "image")["image"], columns(pairs, "image")["image"])
    assert torch.equal(source_pictures(tmp_path / "kept"), source_pictures(pairs))
    # They can be encoded again, by another VAE for example.
    encode_shards(tmp_path / "kept", tmp_path / "again", EncodeConfig(tiny_backbone))
    first, second = (columns(tmp_path / name, "latent", "source") for name in ("kept", "again"))
    assert torch.equal(first["source"], second["source"]) and torch.equal(first["latent"], second["latent"])


def test_pivots_and_image_tokens_of_a_pair_are_of_the_edited_picture(pairs, tiny_backbone, clip, tmp_path):
    encode_shards(pairs, tmp_path, EncodeConfig(tiny_backbone, pivots=True, pivot_steps=2, clip=clip))
    found = columns(tmp_path, "latent", "source", "pivots", "clip")
    assert torch.equal(found["pivots"][:, -1], found["latent"]) and not torch.equal(found["latent"], found["source"])
    expected = ImageTokens.load(clip)(columns(pairs, "image")["image"])
    torch.testing.assert_close(found["clip"], expected, atol=5e-3, rtol=2e-3)


def test_a_pair_whose_source_picture_cannot_be_used_is_damage(tiny_backbone, tmp_path):
    small = images.encode(Image.new("RGB", (32, 32)), lossless=True)[1]
    sources = {2: {"source.png": b"no picture"}, 4: {"source.png": small}, 5: {}}

    def make(number: int) -> Sample:
        whole = make_pair(number)
        edited = {suffix: content for suffix, content in whole.members.items() if not suffix.startswith("source.")}
        return Sample(whole.key, edited | sources[number]) if number in sources else whole

    pairs = make_pairs(tmp_path / "pairs", COUNT, 4, make)
    command = [str(pairs), str(tmp_path / "out"), "--backbone", tiny_backbone]
    with pytest.raises(SystemExit, match=r"[23] of 10 inputs are damaged.*'source picture: not an image': 1"):
        main([*command, "--max-damage", "0.1"])
    main([*command, "--max-damage", "0.5"])
    found = columns(tmp_path / "out", "source", "caption")
    assert [int(caption.split()[2]) for caption in found["caption"]] == [0, 1, 3, 6, 7, 8, 9]
    listed = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert [(drop["source"], drop["reason"]) for drop in listed] == [
        ("caption-1-000", "source picture: not an image"),
        ("caption-2-000", "pictures of different sizes"),
        ("caption-2-001", "missing member"),
    ]
    assert "'jpg'" in listed[2]["detail"] and "(3, 32, 32)" in listed[1]["detail"]


def test_shards_without_pairs_have_no_source(encoded):
    with pytest.raises(ValueError, match=r"hold no 'source' .*: run data\.encode on shards of data\.edit_pairs"):
        ShardDataset(encoded, ("latent", "source"))


def test_the_loader_gives_both_latents_of_a_pair(pairs, tiny_backbone, tmp_path):
    encode_shards(pairs, tmp_path, EncodeConfig(tiny_backbone))
    dataset = ShardDataset(tmp_path, ("latent", "source", "caption"))
    batch = next(batches(dataset, 0, 4, 4, 0, 1))
    assert batch["latent"].shape == batch["source"].shape == (4, 4, 16, 16) and not batch["substituted"]
    for row, key in enumerate(batch["key"]):
        (number,) = [number for number in range(COUNT) if dataset.key(number) == key]
        assert torch.equal(batch["source"][row], dataset[number]["source"])
