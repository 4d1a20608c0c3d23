"""What editors say of their settings, by which finished edits are found again."""

import inspect
import json

import pytest

from eval.editors.catalogue import Command, available
from eval.editors.editor import Editor, settings_of
from eval.editors.models import FewStepModel, ManyStepModel
from eval.harness.fingerprints import backbone_settings
from models.backbone import Backbone
from models.ddim import Ddim
from tests.tiny_editing import tiny_pipeline

UNSAID = ("self", "backbone", "generator", "pipeline", "ddim", "name", "mapper", "tokens", "objective", "steps")
"""Arguments whose part in the settings has another name."""


@pytest.fixture(scope="module")
def editors(tiny_backbone: str, tiny_sd_backbone: str) -> list[Editor]:
    """All editors of a tiny few-step model and of a tiny many-step one."""
    backbone = Backbone.load(tiny_sd_backbone)
    many = available(Command.MANY_STEP, ManyStepModel(backbone, Ddim(backbone.schedule, 2), 3.0)).editors
    return [*few_step_editors(tiny_backbone), *(editor for _, editor in many)]


def few_step_editors(folder: str) -> list[Editor]:
    return available(Command.SCENES, FewStepModel(tiny_pipeline(folder))).choose()


def test_settings_are_json_and_tell_all_editors_apart(editors: list[Editor]):
    found = [json.dumps({"name": editor.name, **settings_of(editor)}, sort_keys=True) for editor in editors]
    assert len(editors) == 32 and len(set(found)) == 30, "identity and truth are references of both models"


def test_every_option_of_an_editor_is_among_its_settings(editors: list[Editor]):
    for editor in editors:
        options = set(inspect.signature(type(editor).__init__).parameters).difference(UNSAID)
        if "num_steps" in options and "timesteps" in editor.settings:
            options.remove("num_steps")
        assert options <= set(editor.settings), type(editor).__name__


def test_settings_do_not_change_while_an_editor_is_made_again(editors: list[Editor], tiny_backbone: str):
    again = {editor.name: settings_of(editor) for editor in few_step_editors(tiny_backbone)}
    assert again == {editor.name: settings_of(editor) for editor in editors[: len(again)]}


def test_other_weights_are_other_settings(tiny_backbone: str, tiny_sd_backbone: str):
    first, second = tiny_pipeline(tiny_backbone), tiny_pipeline(tiny_backbone)
    second.encoder.conv_in.weight.data += 1
    ours = [available(Command.SCENES, FewStepModel(pipeline)).choose()[0] for pipeline in (first, second)]
    assert settings_of(ours[0]) != settings_of(ours[1])
    assert backbone_settings(first.backbone) == backbone_settings(second.backbone)
    assert backbone_settings(first.backbone) != backbone_settings(Backbone.load(tiny_sd_backbone))
