"""SwiftEdit's loader and arithmetic on random weights in the released layout, against the released code's steps."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from eval.editors.editor import EditRequest
from eval.editors.few_steps import decode_latents
from eval.editors.randomness import image_keys, image_noise
from eval.editors.swiftedit import ADAPTER, GENERATOR, INVERSION, SwiftEdit, SwiftNetworks
from eval.pie.config import SwiftEditConfig, TeacherConfig
from eval.pie.rows import PieRows, all_rows
from models.backbone import Backbone
from tests.test_turboedit_pipeline import pictures
from tests.tiny_backbones import TEXT_WIDTH

SOURCES, TARGETS = ("a red circle", "grass"), ("a blue star", "snow on it")
EMBEDDING = 12


class PlainImageAttention(nn.Module):
    """One layer for one image: rows are its source and its target, what happens at each place is written out."""

    def __init__(self, key: Tensor, value: Tensor, mask: Tensor | None, inside: float) -> None:
        super().__init__()
        self.key, self.value, self.mask, self.inside = key, value, mask, inside

    def __call__(self, attn: Attention, hidden: Tensor, encoder_hidden_states: Tensor, **_: object) -> Tensor:
        outputs = []
        for row in range(2):
            words, picture = encoder_hidden_states[row, :77], encoder_hidden_states[row, 77:]
            q = attn.to_q(hidden[row])
            text = self.heads(attn, q, attn.to_k(words), attn.to_v(words))
            outputs.append([text, self.heads(attn, q, picture @ self.key.T, picture @ self.value.T)])
        if self.mask is not None:
            side = int(len(hidden[0]) ** 0.5)
            step = len(self.mask) // side
            places = self.mask[::step, ::step].reshape(-1, 1)
            outputs[1][1] = self.inside * outputs[1][1] * places + outputs[0][1] * (1 - places)
        return attn.to_out[0](torch.stack([text + seen for text, seen in outputs]))

    @staticmethod
    def heads(attn: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(*(x.chunk(attn.heads, -1) for x in (q, k, v)), strict=True)
        return torch.cat([(a @ b.T / a.shape[-1] ** 0.5).softmax(-1) @ c for a, b, c in parts], -1)


@pytest.fixture(scope="module")
def released(tiny_sd_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked archive, with the names and shapes of the released one but smaller, and a vision encoder."""
    folder = tmp_path_factory.mktemp("swiftedit_weights")
    config = UNet2DConditionModel.load_config(tiny_sd_backbone, subfolder="unet")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        UNet2DConditionModel.from_config(config).save_pretrained(folder / INVERSION)
        unet = UNet2DConditionModel.from_config(config)
        unet.save_pretrained(folder / GENERATOR)
        state = {f"unet.{key}": value for key, value in unet.state_dict().items()}
        for index, name in enumerate(unet.attn_processors):
            if name.endswith("attn2.processor"):
                width = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
                for part in ("to_k_ip", "to_v_ip"):
                    weight = torch.randn(width, TEXT_WIDTH) / 4
                    state |= {f"adapter_modules.{index}.{part}.weight": weight, f"unet.{name}.{part}.weight": weight}
        state |= {f"image_proj_model.proj.{key}": torch.randn(shape) for key, shape in PROJECTION.items()}
        state |= {f"image_proj_model.norm.{key}": torch.randn(TEXT_WIDTH) for key in ("weight", "bias")}
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        encoder = CLIPVisionConfig(**vision, image_size=224, patch_size=56, projection_dim=EMBEDDING)
        CLIPVisionModelWithProjection(encoder).save_pretrained(folder / "encoder" / "models" / "image_encoder")
    (folder / ADAPTER).parent.mkdir()
    torch.save(state, folder / ADAPTER)
    return folder


PROJECTION = {"weight": (4 * TEXT_WIDTH, EMBEDDING), "bias": (4 * TEXT_WIDTH,)}


@pytest.fixture(scope="module")
def editor(released: Path, tiny_sd_backbone: str) -> SwiftEdit:
    return SwiftEdit(SwiftNetworks.load(str(released), tiny_sd_backbone, str(released / "encoder")))


@torch.no_grad()
@pytest.mark.parametrize("inside", [None, 0.6])
def test_edit_is_the_released_codes(editor: SwiftEdit, released: Path, tiny_sd_backbone: str, inside: float | None):
    """infer.py's edit_image, one image at a time."""
    images = pictures(2)
    found = editor.edit(editor.invert(images, SOURCES), EditRequest(TARGETS, strength=inside))

    backbone = Backbone.load(tiny_sd_backbone)
    inversion, unet = (UNet2DConditionModel.from_pretrained(released / name).eval() for name in (INVERSION, GENERATOR))
    state = torch.load(released / ADAPTER)
    vision = CLIPVisionModelWithProjection.from_pretrained(released / "encoder/models/image_encoder").eval()
    a = backbone.schedule.alphas_cumprod[999].item()
    own = unet.attn_processors
    for row in range(2):
        image = images[row : row + 1]
        posterior = backbone.vae.encode(image).latent_dist
        noise = image_noise(image_keys(image), "swiftedit", 0, posterior.mean)
        z = (posterior.mean + posterior.std * noise) * backbone.vae.config.scaling_factor
        text = backbone.encode_text([SOURCES[row], TARGETS[row]], backbone.size_of(z)).embeds
        first, second = inversion(torch.cat([z, z]), 500, text).sample
        apart = (first - second).abs().mean(0)
        most = apart.mean() * 3
        mask = (apart.clamp(0, most) / most > 0.5).float()
        assert torch.equal(mask, editor.last_mask[row, 0]) and 0 < mask.mean() < 1
        kept = 0.2 if inside is None else inside
        unet.set_attn_processor(
            {
                name: PlainImageAttention(
                    *(state[f"adapter_modules.{i}.{part}.weight"] for part in ("to_k_ip", "to_v_ip")),
                    mask if name.startswith("up_blocks") else None,
                    kept,
                )
                if name.endswith("attn2.processor")
                else own[name]
                for i, name in enumerate(own)
            }
        )
        seen = vision(editor_pixels(image)).image_embeds @ state["image_proj_model.proj.weight"].T
        tokens = (seen + state["image_proj_model.proj.bias"]).view(1, 4, TEXT_WIDTH)
        tokens = nn.functional.layer_norm(
            tokens, (TEXT_WIDTH,), state["image_proj_model.norm.weight"], state["image_proj_model.norm.bias"]
        )
        x = a**0.5 * z + (1 - a) ** 0.5 * first
        output = unet(torch.cat([x, x]), 999, torch.cat([text, tokens.repeat(2, 1, 1)], 1)).sample
        x0 = (x - (1 - a) ** 0.5 * output[1:]) / a**0.5
        torch.testing.assert_close(found[row : row + 1], decode_latents(backbone, x0), atol=2e-3, rtol=0)


def editor_pixels(image: Tensor) -> Tensor:
    """CLIP's 224 pixels of one image [1, 3, H, W] in [-1, 1], with OpenAI's mean and deviation of each channel."""
    large = nn.functional.interpolate(image, (224, 224), mode="bicubic", antialias=True).clamp(-1, 1)
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return torch.stack([((large[:, i] + 1) / 2 - mean[i]) / deviation[i] for i in range(3)], 1)


def test_pie_bench_has_its_row_where_the_weights_are(released: Path, tiny_sd_backbone: str):
    def rows(config: SwiftEditConfig) -> PieRows:
        cpu = torch.device("cpu")
        return all_rows(None, None, TeacherConfig(), {}, [], None, cpu, "auto", swiftedit=config)

    row = rows(SwiftEditConfig(str(released), tiny_sd_backbone, str(released / "encoder"))).found[0]
    assert isinstance(row.editor, SwiftEdit) and (row.name, row.prompts, row.mask, row.steps) == (
        "swiftedit",
        "short",
        "automatic",
        1,
    )
    assert "--swiftedit.path" in rows(SwiftEditConfig()).left_out["swiftedit"]


def test_what_is_not_the_released_archive_is_refused(released: Path, tiny_sd_backbone: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"has no inverse_ckpt-120k/unet_ema, sbv2_0\.5, .*--swiftedit\.path"):
        SwiftNetworks.load(str(tmp_path), tiny_sd_backbone, str(released / "encoder"))
    for part in (INVERSION, GENERATOR):
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / part).symlink_to(released / part)
    (tmp_path / ADAPTER).parent.mkdir()
    state = torch.load(released / ADAPTER)
    missing = next(key for key in state if key.startswith("adapter_modules"))
    torch.save({key: value for key, value in state.items() if key != missing}, tmp_path / ADAPTER)
    with pytest.raises(ValueError, match="does not fit the networks"):
        SwiftNetworks.load(str(tmp_path), tiny_sd_backbone, str(released / "encoder"))
    torch.save({**state, "other.weight": torch.zeros(1)}, tmp_path / ADAPTER)
    with pytest.raises(ValueError, match=r"has 'other\.weight'"):
        SwiftNetworks.load(str(tmp_path), tiny_sd_backbone, str(released / "encoder"))
