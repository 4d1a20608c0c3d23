"""A folder like the hub's SDXL-Turbo, with random weights."""

import json
from pathlib import Path

import torch

from models.backbone import Backbone
from models.components import load_components
from scripts.bench.random_backbones import REDUCED
from scripts.bench.turbo_folder import VARIANT, write_turbo_folder


@torch.no_grad()
def test_it_has_the_form_of_the_hubs(tmp_path: Path):
    folder = write_turbo_folder(tmp_path / "turbo", REDUCED)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")} == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder_2/model.fp16.safetensors",
    }
    parts = load_components(str(folder), torch.float16, VARIANT)
    assert parts["scheduler"].config.prediction_type == "epsilon"
    assert parts["unet"].dtype == torch.float16 and parts["vae"].dtype == torch.float32  # which would overflow
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "StableDiffusionXLPipeline"
    backbone = Backbone.load(str(folder), variant=VARIANT)
    latents = torch.randn(1, 4, REDUCED.side, REDUCED.side, generator=torch.Generator().manual_seed(0))
    found = backbone.predict(latents, backbone.encode_text(["a circle"]), torch.tensor([999]))
    assert found.shape == latents.shape and 0.01 < found.std() < 100
