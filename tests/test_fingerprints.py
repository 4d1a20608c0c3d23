"""Fingerprints: the same weights in every storage type and under every library are known again, others are not."""

import copy
import hashlib
import json
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn
from transformers import CLIPModel, CLIPVisionModel

from models.backbone import Backbone
from models.clip import ClipEmbeddings, ImageTokens
from models.fingerprints import (
    NUM_VALUES,
    clip_fingerprint,
    fingerprint,
    is_former_fingerprint,
    named,
    read_text_fingerprint,
    same_weights,
    text_fingerprint,
    unet_fingerprint,
    vae_fingerprint,
)
from tests.tiny_backbones import save_with_variant, shake

MINIATURE = "models/miniature"
PARTS = {"vae": vae_fingerprint, "unet": unet_fingerprint, "text": text_fingerprint}
STORED = {"float32": torch.float32, "fp16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module")
def files(any_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone whose weights all need float32, in float32, as variant fp16, and in bfloat16 of either."""
    folder = tmp_path_factory.mktemp("files")
    pipeline = save_with_variant(any_backbone, folder / "plain")
    pipeline.to(torch.bfloat16).save_pretrained(folder / "bfloat16 of fp16")
    DiffusionPipeline.from_pretrained(folder / "plain").to(torch.bfloat16).save_pretrained(folder / "bfloat16")
    return folder


def load(folder: Path, variant: str | None = None, dtype: torch.dtype = torch.float32) -> Backbone:
    found = Backbone.load(str(folder), dtype=dtype, variant=variant)
    found.vae.to(dtype)
    return found


def test_the_same_weights_agree_from_every_file_in_every_dtype(files: Path):
    sources = [("plain", None), ("plain", "fp16"), ("bfloat16", None), ("bfloat16 of fp16", None)]
    loaded = [load(files / name, variant, dtype) for (name, variant), dtype in product(sources, STORED.values())]
    for of in PARTS.values():
        found = [of(backbone) for backbone in loaded]
        assert len({named(x) for x in found}) > 1  # the digests alone would refuse some
        assert [(a, b) for a, b in product(found, found) if not same_weights(a, b)] == []


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_ten_thousandth_of_the_weights_spread_is_another_network(files: Path, part: str, variant: str | None):
    original = PARTS[part](load(files / "plain"))
    other = load(files / "plain")
    for module in other.modules():
        shake(module, 2e-6, seed=1)
    if variant:
        for module in other.modules():
            module.half()
    assert not same_weights(original, PARTS[part](other))


def test_merged_adapters_in_attention_are_another_network(files: Path):
    """Rank 4 in the projections of attention alone, one percent of their size, against every storage type."""
    other = load(files / "plain").unet
    generator = torch.Generator().manual_seed(0)
    for name, weight in other.named_parameters():
        if "attn" in name and weight.ndim == 2:
            down, up = (
                torch.randn(4, weight.shape[1], generator=generator),
                torch.randn(weight.shape[0], 4, generator=generator),
            )
            weight.data += 0.01 * weight.std() * (up @ down) / 2
    for dtype in STORED.values():
        assert not same_weights(unet_fingerprint(load(files / "plain", dtype=dtype)), fingerprint(other))
        assert not same_weights(unet_fingerprint(load(files / "plain")), fingerprint(copy.deepcopy(other).to(dtype)))


def test_one_weight_is_enough_where_nothing_was_rounded(files: Path):
    vae, other = load(files / "plain").vae, load(files / "plain").vae
    other.decoder.conv_out.weight.data.view(-1)[7] += 0.01
    assert not same_weights(fingerprint(vae), fingerprint(other))


def test_the_teacher_and_the_student_of_the_miniature_differ_in_the_unet_alone():
    teacher, student = (Backbone.load(f"{MINIATURE}/{name}") for name in ("teacher", "student"))
    assert same_weights(vae_fingerprint(teacher), vae_fingerprint(student))
    assert not same_weights(unet_fingerprint(teacher), unet_fingerprint(student))


def change(folder: Path, name: str, **values: object) -> None:
    path = folder / name / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


DECIDING = [
    ("vae", {"scaling_factor": 0.5}),
    ("vae", {"shift_factor": 0.1}),
    ("vae", {"act_fn": "relu"}),
    ("vae", {"norm_num_groups": 2}),
    ("unet", {"flip_sin_to_cos": False}),
    ("unet", {"act_fn": "relu"}),
    ("unet", {"norm_eps": 1e-3}),
    ("text_encoder", {"hidden_act": "gelu_new"}),
    ("text_encoder", {"layer_norm_eps": 1e-3}),
    ("text_encoder", {"eos_token_id": 3}),
]


@pytest.mark.parametrize(("part", "values"), DECIDING)
def test_what_decides_numbers_is_looked_at(tiny_backbone: str, tmp_path: Path, part: str, values: dict[str, object]):
    folder = shutil.copytree(tiny_backbone, tmp_path / "other")
    change(folder, part, **values)
    name = part.removesuffix("_encoder")
    first, second = (
        PARTS[name](Backbone.load(str(path), parts=("network" if name == "unet" else name,)))
        for path in (tiny_backbone, folder)
    )
    assert not same_weights(first, second)


def test_versions_and_arguments_that_libraries_add_are_not(any_backbone: str, tmp_path: Path):
    folder = shutil.copytree(any_backbone, tmp_path / "other")
    added = {"_diffusers_version": "0.99.0", "_name_or_path": "elsewhere", "an_argument_of_tomorrow": None}
    text = {"transformers_version": "9.0.0", "dtype": "float16", "an_argument_of_tomorrow": 3, "projection_dim": 7}
    for part, values in (("vae", added | {"force_upcast": False}), ("unet", added), ("text_encoder", text)):
        change(folder, part, **values)
    ours, other = Backbone.load(any_backbone), Backbone.load(str(folder))
    # As a later diffusers, which knows the argument, keeps it.
    for network in (other.vae, other.unet):
        network.register_to_config(an_argument_of_tomorrow=None)
    assert other.text.encoders[0].config.an_argument_of_tomorrow == 3
    assert [of(ours) for of in PARTS.values()] == [of(other) for of in PARTS.values()]


def test_a_file_of_before_an_argument_means_its_usual_value(tiny_backbone: str, tmp_path: Path):
    folder = shutil.copytree(tiny_backbone, tmp_path / "other")
    for part, names in (("vae", ("use_quant_conv", "shift_factor")), ("unet", ("resnet_out_scale_factor",))):
        path = folder / part / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({name: value for name, value in config.items() if name not in names}))
    ours, other = Backbone.load(tiny_backbone), Backbone.load(str(folder))
    assert vae_fingerprint(ours) == vae_fingerprint(other) and unet_fingerprint(ours) == unet_fingerprint(other)


class Wrapped(nn.Module):
    """CLIP's text or vision model as transformers had it before 5: all layers one module deeper."""

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        setattr(self, name, network)
        self.config = network.config


def test_clip_is_known_again_as_former_versions_name_its_layers(tiny_sd_backbone: str):
    text = Backbone.load(tiny_sd_backbone).text.encoders[0]
    assert fingerprint(Wrapped("text_model", text)) == fingerprint(text)
    clip = CLIPModel.from_pretrained(f"{MINIATURE}/clip").vision_model
    assert fingerprint(Wrapped("vision_model", clip)) == fingerprint(clip)


def test_a_clip_alone_or_within_another_and_in_half_is_the_same(tmp_path: Path):
    vision = CLIPVisionModel.from_pretrained(f"{MINIATURE}/clip")
    vision.half().save_pretrained(tmp_path)
    whole, alone = ImageTokens.load(f"{MINIATURE}/clip"), ImageTokens.load(str(tmp_path))
    first = clip_fingerprint(whole)
    assert same_weights(first, clip_fingerprint(alone))
    assert not same_weights(first, clip_fingerprint(ClipEmbeddings(f"{MINIATURE}/clip")))


# What shards of today hold. A change here makes all of them unknown: it needs a reason, and a way as that of
# data/shards/renewal.py.
KNOWN = {
    "vae": "AutoencoderKL:6b64d3d810af82d0:4e478b0c311a08bf 3048dfca1e4de627",
    "unet": "UNet2DConditionModel:501beeccb544e3a0:4fad1d8d086b3ee7 f52d24183b088642",
    "text": "clip_text_model:9ff0f5d852a13a4d:0341e9ae9e6f226c "
    "clip_text_model:9b8ffddc8b5c11c4:627409d9359bbece abefb7f019638552",
    "image tokens": "clip_vision_model:3d4dfff0bde6596b:299c215157facb00 c49450ef0fd5949d",
    "clip": "clip:7eaed33380b49fcf:aacdff07916ee027 505415112d9ec103",
}


def test_fingerprints_of_today_stay():
    backbone, clip = Backbone.load(f"{MINIATURE}/student"), f"{MINIATURE}/clip"
    made = {name: of(backbone) for name, of in PARTS.items()}
    made |= {"image tokens": clip_fingerprint(ImageTokens.load(clip)), "clip": clip_fingerprint(ClipEmbeddings(clip))}
    assert {x: f"{named(f)} {hashlib.sha256(f.encode()).hexdigest()[:16]}" for x, f in made.items()} == KNOWN


def test_the_layout_in_memory_does_not_matter(tiny_backbone: str):
    vae = Backbone.load(tiny_backbone).vae
    first = fingerprint(vae)
    assert fingerprint(vae.to(memory_format=torch.channels_last)) == first


def test_text_encoders_are_known_without_being_kept(any_backbone: str):
    assert same_weights(read_text_fingerprint(any_backbone), text_fingerprint(Backbone.load(any_backbone)))


def test_only_fingerprints_agree(tiny_sd_backbone: str, tiny_backbone: str):
    one = text_fingerprint(Backbone.load(tiny_sd_backbone))
    two = text_fingerprint(Backbone.load(tiny_backbone))
    assert len(two.split()) == 2 and not same_weights(one, two) and not same_weights(two.split()[0], two)
    for other in (None, "", "random", "0123456789abcdef", named(one)):
        assert not same_weights(one, other) and not same_weights(other, other)
    assert is_former_fingerprint("0123456789abcdef") and is_former_fingerprint("0123456789abcdef 0123456789abcdef")
    assert not any(is_former_fingerprint(other) for other in (None, "", "random", one, "0123456789ABCDEF"))
    assert len(one) < 6 * NUM_VALUES and named(None) == "none" and named(one) == one.rpartition(":")[0]
