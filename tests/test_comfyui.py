"""The nodes for ComfyUI, called as ComfyUI calls them, alone in a folder, on an export that anybody could have made."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from models.turboedit_pipeline import TurboEditPipeline
from scripts.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from scripts.comfyui.nodes import TurboEditEdit, TurboEditInvert, TurboEditLoad
from tests.comfyui_graph import Comfy, Prompt, Refused, declared
from tests.processes import ROOT, run
from tests.test_dependencies import PROJECT
from tests.tiny_editing import tiny_pipeline

PACK = ROOT / "scripts" / "comfyui"
WORKFLOW = PACK / "example_workflows" / "photograph.json"
LOAD, INVERT, EDIT, SAVE = "2", "3", "4", "6"
"""Ids of the example's nodes."""


@pytest.fixture(scope="module")
def pipeline(tiny_sd_backbone: str) -> TurboEditPipeline:
    return tiny_pipeline(tiny_sd_backbone)


@pytest.fixture(scope="module")
def export(pipeline: TurboEditPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "turboedit"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph that is no square, and the same with a hole that was painted in ComfyUI's mask editor."""
    folder = tmp_path_factory.mktemp("input")
    levels = np.random.default_rng(0).integers(0, 256, (150, 210, 3), np.uint8)
    Image.fromarray(levels).save(folder / "photo.png")
    alpha = np.full((150, 210), 255, np.uint8)
    alpha[40:110, 60:140] = 0
    Image.fromarray(np.dstack([levels, alpha])).save(folder / "painted.png")
    return folder


SENT = {
    "1": {"image": "example.png"},
    "2": {"export": "exports/turboedit-sdxl", "device": "auto", "dtype": "auto"},
    "3": {
        "prompt": "a description of the picture as it is",
        "num_steps": 0,
        "pipeline": ["2", 0],
        "image": ["1", 0],
    },
    "4": {
        "prompt": "the same description with what should change",
        "strength": 1,
        "automatic_mask": "prediction",
        "threshold": 0.4,
        "also": "",
        "inversion": ["3", 0],
    },
    "5": {"images": ["3", 1]},
    "6": {"filename_prefix": "turboedit", "images": ["4", 0]},
    "7": {"mask": ["4", 1]},
    "8": {"images": ["7", 0]},
}
"""Inputs of the example's nodes as ComfyUI's own pages (frontend 1.58.1) send them."""


@pytest.fixture
def comfy(pictures: Path, tmp_path: Path) -> Comfy:
    pack = tmp_path / "custom_nodes" / "inversion-encoders"
    pack.parent.mkdir()
    pack.symlink_to(PACK)
    return Comfy(pack, pictures)


@pytest.fixture
def prompt(comfy: Comfy, export: Path) -> Prompt:
    """The example's, on an export and a picture that are there."""
    found = comfy.prompt_of(json.loads(WORKFLOW.read_text()))
    found["1"]["inputs"]["image"] = "photo.png"
    found[LOAD]["inputs"]["export"] = str(export)
    return found


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture)


def image_of(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).astype(np.float32) / 255)[None]


ALONE = """
import json
import diffusers, transformers
work = Path.cwd()
comfy = Comfy(work / "custom_nodes" / "turboedit", work / "input")
prompt = comfy.prompt_of(json.loads((work / "custom_nodes/turboedit/example_workflows/photograph.json").read_text()))
prompt["1"]["inputs"]["image"] = "photo.png"
for export in ("export", "someone/encoder"):
    prompt["2"]["inputs"]["export"] = export
    pictures = comfy.run(prompt)
    assert "2" in comfy.ran
ours = [name for name in sys.modules if name.partition(".")[0] in ("models", "data", "eval", "train", "scripts")]
print(json.dumps([{name: found[0].size for name, found in pictures.items()}, ours]))
"""


def test_the_pack_and_the_export_are_all_that_it_needs(export: Path, pictures: Path, tmp_path: Path):
    """In a process and a folder from which this project is not to be seen, by its folder and by a hub id."""
    shutil.copytree(PACK, tmp_path / "custom_nodes" / "turboedit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(export, tmp_path / "export")
    hub = tmp_path / "hf" / "hub" / "models--someone--encoder"
    shutil.copytree(export, hub / "snapshots" / "c0ffee")
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("c0ffee")
    shutil.copytree(pictures, tmp_path / "input")
    program = (ROOT / "tests" / "comfyui_graph.py").read_text() + ALONE
    done = run("-c", program, fresh=True, folder=tmp_path, PYTHONPATH=None, HF_HOME=str(tmp_path / "hf"))
    sizes, ours = json.loads(done.stdout.splitlines()[-1])
    assert ours == []
    assert sizes["6"] == sizes["8"] == [210, 150]


def test_the_example_is_read_as_comfyuis_own_pages_read_it(comfy: Comfy):
    prompt = comfy.prompt_of(json.loads(WORKFLOW.read_text()))
    assert {name: node["inputs"] for name, node in prompt.items()} == SENT


def test_the_example_runs(comfy: Comfy, prompt: Prompt):
    found = comfy.run(prompt)
    assert found[SAVE][0].size == (210, 150)
    assert set(comfy.ran) == set(prompt)


def test_moving_the_strength_edits_alone(comfy: Comfy, prompt: Prompt):
    before = comfy.run(prompt)
    prompt[EDIT]["inputs"]["strength"] = 0.5
    after = comfy.run(prompt)
    assert comfy.ran[0] == EDIT and not {LOAD, INVERT, "1"} & set(comfy.ran)
    assert not np.array_equal(pixels(before[SAVE][0]), pixels(after[SAVE][0]))
    prompt[INVERT]["inputs"]["prompt"] = "a red circle on sand"
    comfy.run(prompt)
    assert set(comfy.ran) == set(prompt) - {LOAD, "1"}


def test_another_export_in_the_same_folder_is_loaded(comfy: Comfy, prompt: Prompt, export: Path, tmp_path: Path):
    shutil.copytree(export, tmp_path / "export")
    prompt[LOAD]["inputs"]["export"] = str(tmp_path / "export")
    comfy.run(prompt)
    os.utime(tmp_path / "export" / "model_index.json", ns=(1, 1))
    comfy.run(prompt)
    assert LOAD in comfy.ran


def test_nodes_give_what_the_pipeline_gives(pipeline: TurboEditPipeline, export: Path, pictures: Path):
    photo = pictures / "photo.png"
    (loaded,) = TurboEditLoad().load(str(export), "cpu", "auto")
    inverted, reconstruction = TurboEditInvert().invert(loaded, image_of(photo), "a star", 2)
    expected = pipeline.invert(photo, "a star", 2)
    assert all(torch.equal(a, b) for a, b in zip(inverted.inversion.noises, expected.noises, strict=True))
    image = pipeline.decode(expected.reconstructions[-1], "pil")[0]
    assert reconstruction.shape == (1, image.height, image.width, 3)
    edited, mask, _ = TurboEditEdit().edit(inverted, "a cat", 0.7, "none", 0.4, also="a dog = 0.25\n\na bird=-1\n")
    plain = pipeline.edit(expected, {"a cat": 0.7, "a dog": 0.25, "a bird": -1.0}).at_full_size(photo)[0]
    assert np.array_equal((edited[0] * 255).round().byte().numpy(), pixels(plain))
    assert mask.shape == edited.shape[:3] and (mask == 1).all()


def test_outside_of_a_painted_mask_every_pixel_is_the_pictures(comfy: Comfy, prompt: Prompt, pictures: Path):
    prompt["1"]["inputs"]["image"] = "painted.png"
    prompt[EDIT]["inputs"] |= {"mask": ["1", 1], "automatic_mask": "none"}
    found = comfy.run(prompt)
    painted = pixels(Image.open(pictures / "painted.png"))
    outside = painted[..., 3] == 255
    assert np.array_equal(pixels(found[SAVE][0])[outside], painted[outside][:, :3])
    assert not np.array_equal(pixels(found[SAVE][0]), painted[..., :3])
    shown = pixels(found["8"][0])
    assert not shown[outside].any() and shown[75, 100].all()


@pytest.mark.parametrize("automatic", ["none", "prediction"])
def test_edits_go_on_from_edits(pipeline: TurboEditPipeline, pictures: Path, automatic: str):
    """A painted second edit keeps, outside of its mask, the first one in full size."""
    inverted, _ = TurboEditInvert().invert(pipeline, image_of(pictures / "photo.png"), "a star", 0)
    first, _, between = TurboEditEdit().edit(inverted, "a cat", 1.0, automatic, 0.4)
    mask = torch.zeros(1, 150, 210)
    mask[:, 40:110, 60:140] = 1
    second, changed, _ = TurboEditEdit().edit(between, "a dog", 1.0, "none", 0.4, mask=mask)
    assert second.shape == (1, 150, 210, 3)
    left, top = ((size - part) // 2 for size, part in zip((210, 150), (first.shape[2], first.shape[1])))
    inside = (slice(None), slice(top, top + first.shape[1]), slice(left, left + first.shape[2]))
    kept = changed[inside] == 0
    assert kept.any() and torch.equal(second[inside][kept], first[kept])


def test_batches_are_edited_together(pipeline: TurboEditPipeline, pictures: Path):
    one = image_of(pictures / "photo.png")
    inverted, reconstruction = TurboEditInvert().invert(pipeline, torch.cat([one, one.flip(2)]), "a star", 0)
    edited, mask, _ = TurboEditEdit().edit(inverted, "a cat", 1.0, "prediction", 0.4)
    assert len(reconstruction) == 2 and edited.shape == (2, 150, 210, 3) and mask.shape == (2, 150, 210)


def test_nodes_declare_what_comfyui_reads():
    assert NODE_CLASS_MAPPINGS.keys() == NODE_DISPLAY_NAME_MAPPINGS.keys()
    for kind in NODE_CLASS_MAPPINGS.values():
        assert kind.CATEGORY and kind.DESCRIPTION and callable(getattr(kind, kind.FUNCTION))
        assert len(kind.RETURN_TYPES) == len(kind.RETURN_NAMES) == len(kind.OUTPUT_TOOLTIPS)
        for name, (type_, options) in declared(kind).items():
            assert options["tooltip"].endswith((".", "= 0.5")), name
            if isinstance(type_, list):
                assert options["default"] in type_


def test_its_requirements_are_the_projects():
    assert set((PACK / "requirements.txt").read_text().splitlines()) <= set(PROJECT["dependencies"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"export": ""}, "export is empty; give the folder that train.export wrote, or its hub id"),
        ({"export": "no/such/folder"}, "there is no folder no/such/folder, and a hub id has the form USER/NAME"),
        ({"export": str(ROOT)}, f"{ROOT} is no export: it has no model_index.json"),
        ({"device": "tpu"}, "Value not in list: device: 'tpu'"),
    ],
)
def test_a_wrong_export_is_told_before_anything_runs(comfy: Comfy, prompt: Prompt, given: dict[str, str], said: str):
    prompt[LOAD]["inputs"] |= given
    with pytest.raises(Refused, match=re.escape(said)):
        comfy.run(prompt)


def test_a_name_from_another_node_is_not_refused_too_early():
    assert TurboEditLoad.VALIDATE_INPUTS(None) is True
    assert TurboEditLoad.VALIDATE_INPUTS("someone/encoder") is True
    assert TurboEditLoad.IS_CHANGED(None, device="auto") == TurboEditLoad.IS_CHANGED("someone/encoder") == ""


def test_other_pipelines_are_told_by_their_name(tiny_sd_backbone: str, tmp_path: Path):
    with pytest.raises(ValueError, match="holds a StableDiffusionPipeline; expected the TurboEditPipeline"):
        TurboEditLoad().load(tiny_sd_backbone, "cpu", "auto")
    DiffusionPipeline.from_pretrained(tiny_sd_backbone)  # it is one all the same


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU to offload from")
def test_offloading_needs_a_gpu(export: Path):
    with pytest.raises(ValueError, match="device is 'offload', but torch finds no GPU here"):
        TurboEditLoad().load(str(export), "offload", "auto")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"automatic_mask": "prediction", "mask": torch.ones(1, 150, 210)}, "a mask is connected and automatic_mask"),
        ({"mask": torch.zeros(1, 64, 64)}, "the mask is empty, so nothing could change"),
        ({"mask": torch.ones(1, 64, 64)}, "mask has 64 x 64 pixels and the picture"),
        ({"mask": torch.ones(1, 1, 1, 1)}, "mask has shape"),
        ({"also": "a dog"}, "also has the line 'a dog'; expected a description, = and a strength"),
        ({"also": "= 0.5"}, "also has the line"),
        ({"also": "a dog = much"}, "also has the line"),
        ({"also": "a cat = 0.5"}, "'a cat' is there twice in prompt and also"),
    ],
)
def test_mistakes_are_told(pipeline: TurboEditPipeline, pictures: Path, changes: dict[str, Any], said: str):
    inverted, _ = TurboEditInvert().invert(pipeline, image_of(pictures / "photo.png"), "a star", 1)
    wanted: dict[str, Any] = {"prompt": "a cat", "strength": 1.0, "automatic_mask": "none", "threshold": 0.4}
    with pytest.raises(ValueError, match=re.escape(said)):
        TurboEditEdit().edit(inverted, **(wanted | changes))


@pytest.mark.parametrize(
    ("image", "prompt", "said"),
    [
        (torch.zeros(1, 64, 64, 4), "a star", "image has shape [1, 64, 64, 4]; expected a batch of RGB pictures"),
        (torch.zeros(1, 64, 64, 3), "", "prompt is empty"),
    ],
)
def test_what_cannot_be_inverted_is_told(pipeline: TurboEditPipeline, image: torch.Tensor, prompt: str, said: str):
    with pytest.raises(ValueError, match=re.escape(said)):
        TurboEditInvert().invert(pipeline, image, prompt, 0)
