"""Instruction editors against calling the stock pipeline, and Lightning's schedule against its definition."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image

from eval.editors.editor import EditRequest, measured
from eval.editors.instruction import CALLINGS, InstructionEditor, follows_instructions, lightning_scheduler
from eval.editors.randomness import image_keys, image_seed
from eval.pie.cases import PieCase
from eval.pie.config import InstructModel, TeacherConfig
from eval.pie.rows import PieRows, all_rows
from models.pictures import to_uint8
from tests.test_turboedit_pipeline import pictures

ORDERS, PROMPTS = ("make it red", "add a cat"), ("a star", "grass")


@pytest.fixture(scope="module")
def editor(tiny_flux2: str) -> InstructionEditor:
    return InstructionEditor(tiny_flux2, name="klein")


def test_edit_is_the_stock_pipelines(editor: InstructionEditor, tiny_flux2: str):
    images, meter = pictures(2), measured(editor)
    found = meter.edit(meter.invert(images, PROMPTS), EditRequest(PROMPTS, ORDERS, seed=5))
    assert found.shape == images.shape and meter.edit_costs[0].nfe == 4 and meter.invert_costs[0].nfe == 0
    stock = Flux2KleinPipeline.from_pretrained(tiny_flux2)
    for row in range(2):
        picture = Image.fromarray(to_uint8(images[row]).permute(1, 2, 0).numpy())
        seed = image_seed(image_keys(images)[row], "klein", 5)
        generator = torch.Generator().manual_seed(seed)
        edited = stock(picture, ORDERS[row], num_inference_steps=4, guidance_scale=1.0, generator=generator).images[0]
        assert torch.equal(to_uint8(found[row]).permute(1, 2, 0), torch.tensor(list(edited.getdata())).view(64, 64, 3))
    with pytest.raises(ValueError, match="klein follows orders only"):
        editor.edit(editor.invert(images, PROMPTS), EditRequest(PROMPTS))


def test_a_lora_and_a_number_of_steps_make_another_row(editor: InstructionEditor, tiny_flux2: str, tmp_path: Path):
    pipeline = DiffusionPipeline.from_pretrained(tiny_flux2)
    pipeline.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    layers = get_peft_model_state_dict(pipeline.transformer)
    Flux2KleinPipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers)
    lora = str(tmp_path / "pytorch_lora_weights.safetensors")
    other = InstructionEditor(tiny_flux2, name="klein", lora=lora, steps=2)
    assert other.num_steps == 2 and other.settings["networks"] != editor.settings["networks"]
    with pytest.raises(ValueError, match="is no file"):
        InstructionEditor(tiny_flux2, name="klein", lora=str(tmp_path))


def test_only_pipelines_of_the_table_are_taken(tiny_flux2: str, tiny_flux: str, tmp_path: Path):
    assert follows_instructions(tiny_flux2) and not follows_instructions(tiny_flux)
    assert not follows_instructions(str(tmp_path))
    with pytest.raises(ValueError, match="is a FluxPipeline; expected one of Flux2KleinPipeline"):
        InstructionEditor(tiny_flux, name="flux")


def test_pie_bench_has_a_row_of_it_by_what_the_pipeline_is(tiny_flux2: str, tiny_sd_backbone: str):
    case = PieCase("0", "0", Path("a.png"), "a cat", "a dog", "make it a dog", None, np.ones((64, 64), dtype=bool))

    def rows(model: InstructModel) -> PieRows:
        return all_rows(None, None, TeacherConfig(), {"orders": model}, [case], None, torch.device("cpu"), "float32")

    row = rows(InstructModel(tiny_flux2, steps=3)).found[0]
    assert isinstance(row.editor, InstructionEditor) and (row.name, row.prompts, row.steps) == (
        "orders",
        "instructive",
        3,
    )
    with pytest.raises(ValueError, match=r"--instruct_loras\.orders is for FLUX's and Qwen's"):
        rows(InstructModel(tiny_sd_backbone, lora="some.safetensors"))


@pytest.mark.parametrize("steps", [4, 8])
def test_lightning_shifts_by_three_at_every_size(steps: int):
    scheduler = lightning_scheduler(FlowMatchEulerDiscreteScheduler(shift_terminal=0.02, use_dynamic_shifting=True))
    plain = torch.linspace(1, 1 / steps, steps)
    for tokens in (256, 4096):
        slope = (scheduler.config.max_shift - scheduler.config.base_shift) / (8192 - 256)
        mu = scheduler.config.base_shift + slope * (tokens - 256)  # as the pipeline computes it
        scheduler.set_timesteps(sigmas=plain.tolist(), mu=mu)
        torch.testing.assert_close(scheduler.sigmas[:-1], 3 * plain / (1 + 2 * plain))
    assert set(CALLINGS) >= {"Flux2KleinPipeline", "FluxKontextPipeline", "QwenImageEditPipeline"}
