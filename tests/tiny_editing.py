"""An exported encoder and the judges of its edits, all tiny and random: for tests of exactness and properties."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from data.world.edits import EDIT_KINDS, Edit
from data.world.splits import sample_edits
from eval.metrics.attributes import AttributeReader, AttributeReaderConfig
from models.backbone import Backbone
from models.noise_encoder import NoiseEncoder
from models.turboedit_pipeline import TurboEditPipeline
from tests.tiny_backbones import shake


def tiny_pipeline(backbone_folder: str) -> TurboEditPipeline:
    """The pipeline of an untrained encoder on a tiny SDXL-like or SD-like backbone; its new weights are not zeros."""
    backbone = Backbone.load(backbone_folder)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        encoder = NoiseEncoder.from_generator(backbone.unet, backbone.schedule)
        for layer in (encoder.unet.conv_in, encoder.unet.conv_out):
            layer.weight.data += 0.01 * torch.randn_like(layer.weight)
    stock = DiffusionPipeline.from_pretrained(backbone_folder)
    pipeline = TurboEditPipeline(
        **{name: part for name, part in stock.components.items() if part is not None},
        encoder=encoder.unet.eval().requires_grad_(False),
        attention_resolution=8,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


FLOW_TIMESTEPS = {
    "sd3": "1.0 0.9 0.75 0.5",
    "z_image": "1.0 0.9 0.75 0.5",
    "sana": "1.5708 1.1781 0.7854 0.3927",
    "flux": "1.0 0.75 0.5 0.25",
    "flux2": "1.0 0.958 0.884 0.717",
}
"""Timesteps of each transformer family's few steps."""


def tiny_flow_pipeline(backbone_folder: str, timesteps: str) -> TurboEditPipeline:
    """The pipeline of an untrained encoder on a tiny transformer; none of its weights is quite the generator's."""
    backbone = Backbone.load(backbone_folder)
    encoder = NoiseEncoder.from_generator(backbone.network, backbone.schedule)
    shake(encoder, 0.02)
    stock = DiffusionPipeline.from_pretrained(backbone_folder)
    parts = {name: stock.components.get(name) for name in TurboEditPipeline._optional_components}
    pipeline = TurboEditPipeline(
        **{name: part for name, part in parts.items() if part is not None},
        encoder=encoder.unet.eval().requires_grad_(False),
        timesteps=timesteps,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_tiny_judges(folder: Path, tokenizer: CLIPTokenizer) -> tuple[Path, Path]:
    """Folders of a random attribute reader and a random CLIP."""
    reader, clip = folder / "attributes", folder / "clip"
    with torch.random.fork_rng():
        torch.manual_seed(2)
        AttributeReader(AttributeReaderConfig(widths=(8, 8, 8), strides=(2, 2, 2))).save(reader)
        _tiny_clip(tokenizer).save_pretrained(clip)
    tokenizer.save_pretrained(clip)
    CLIPImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(clip)
    return reader, clip


def _tiny_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**size, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 77}
    vision = {**size, "image_size": 32, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()


def one_edit_of_each_kind(split: str = "test") -> list[Edit]:
    """Nine edits."""
    return [sample_edits(split, 0, 0, kind) for kind in EDIT_KINDS]
