"""Many-step editors on scenes, as the command measures them; trials that are read again; accuracy by guidance."""

import csv
import json
import re
from dataclasses import replace

import pytest
import torch

from data.jobs.kept import KeptFolder
from data.world.edits import EDIT_KINDS
from eval.caption_accuracy import caption_accuracy
from eval.editors.catalogue import REFERENCES
from eval.editors.editor import settings_of
from eval.editors.guided_ddim import GuidedDdim
from eval.editors.imagic import Imagic
from eval.editors.options import ImagicConfig
from eval.many_step import compare_many_step, main
from eval.metrics.pixels import MAX_PSNR
from eval.scene_edits.edit_set import edit_set
from eval.scene_edits.figures import below_vae
from eval.scene_edits.judge import load_judge
from eval.scene_edits.result import keep_result, read_result
from eval.scene_edits.run import RunSetup, run_editor
from eval.studies.caption_accuracy import accuracy_figures, best_guidance
from eval.style_transfer import compare_style_transfer
from models.backbone import Backbone
from models.ddim import Ddim
from tests.tiny_editing import one_edit_of_each_kind, save_tiny_judges

COMPARED = ("ddim", "blended", "imagic")
SHORT = ImagicConfig(embedding_steps=1, unet_steps=1)


@pytest.fixture(scope="module", autouse=True)
def two_strengths():
    """Imagic samples each image alone; what holds of its four strengths holds of two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Imagic, "strengths", Imagic.strengths[:2])
        yield


@pytest.fixture(scope="module")
def options(tiny_sd_backbone, tmp_path_factory) -> dict:
    """A small comparison: two edits of each kind, one for Imagic."""
    folder = tmp_path_factory.mktemp("judges")
    reader, clip = save_tiny_judges(folder, Backbone.load(tiny_sd_backbone, parts=["text"]).text.tokenizers[0])
    return {
        "backbone": tiny_sd_backbone,
        "num_steps": 2,
        "num": 2,
        "num_validation": 1,
        "num_edits": {"imagic": 1},
        "num_reconstructions": 1,
        "imagic": SHORT,
        "attributes": reader,
        "clip": clip,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def compared(options, tmp_path_factory):
    """Folder and results of one comparison."""
    out = tmp_path_factory.mktemp("report")
    return out, compare_many_step(out=out, editors=COMPARED, **options)


def test_every_figure_has_its_error_and_number(compared):
    results = json.loads((compared[0] / "results.json").read_text())
    assert set(results["edits"]) == {*COMPARED, *REFERENCES}
    kinds = len(EDIT_KINDS)
    assert {name: found["n"] for name, found in results["edits"].items()} == {
        **dict.fromkeys(("ddim", "blended", *REFERENCES), 2 * kinds),
        "imagic": kinds,
    }
    for figures in results["edits"].values():
        for name in ("changed", "kept", "psnr_outside", "clip", "seconds_edit", "nfe_edit"):
            apart = {"exact", "others"} if name == "psnr_outside" else set()
            assert set(figures[name]) == {"mean", "se", "n"} | apart
    assert set(results["sweeps"]) == set(COMPARED)
    assert results["edits"]["ddim"]["nfe_edit"]["mean"] == 4  # two steps, with and without the prompt


def test_imagic_is_billed_for_its_fits_at_every_strength(compared):
    costs = compared[1]["edits"]["imagic"]
    assert costs["nfe_edit"]["mean"] == SHORT.embedding_steps + SHORT.unet_steps + 4
    assert costs["nfe_invert"]["mean"] == 0


def test_reconstructions_are_set_against_the_ceiling(compared):
    found = compared[1]["reconstruction"]
    assert set(found) == {"vae", "ddim", "imagic"}
    for name in ("ddim", "imagic"):
        below, own = found[name]["below_vae"], found[name]["psnr_by_step"][-1]
        assert below["n"] == own["n"]
        assert found[name]["psnr_to_vae_by_step"][-1]["mean"] < MAX_PSNR
    vae = [{"key": key, "psnr": psnr} for key, psnr in (("a", 34.0), ("b", 30.0))]
    rows = [
        {"key": key, "step": step, "psnr": psnr} for key, step, psnr in (("a", 1, 9.0), ("a", 2, 33.0), ("b", 2, 28.0))
    ]
    assert below_vae(vae, rows).to_dict() == {"mean": 1.5, "se": 0.5, "n": 2}


def test_page_shows_all_on_the_same_scenes_and_loads_nothing(compared):
    page = (compared[0] / "index.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    # Imagic saw one edit of each kind: source, truth, three methods and the ceiling; and rows of reconstructions.
    reconstructed = 2 + 2  # of the one image that was asked for: itself, its round trip, two methods
    assert len(sources) == len(EDIT_KINDS) * 6 + reconstructed
    for name in ("DDIM inversion", "Imagic", "blended latents, true mask"):
        assert name in page


def test_table_has_a_row_for_every_edit_and_strength(compared):
    out, results = compared
    with (out / "edits.csv").open() as file:
        rows = list(csv.DictReader(file))
    count = {name: len(results["sweeps"].get(name, [0])) * found["n"] for name, found in results["edits"].items()}
    assert len(rows) == sum(count.values())


def test_what_is_finished_is_read_again(options, compared, caplog):
    out, results = compared
    kept = {path: path.stat().st_mtime_ns for path in (out / "kept").iterdir()}
    with caplog.at_level("INFO"):
        again = compare_many_step(out=out, editors=COMPARED, **options)
    assert again == results
    count = len(results["edits"])
    for split in ("validation", "test"):
        assert f"{split}: {count} of {count} pieces are there already ({out / 'kept'})" in caplog.messages
    assert kept == {path: path.stat().st_mtime_ns for path in (out / "kept").iterdir()}
    assert sum(path.suffix == ".json" for path in kept) == 2 * len(results["edits"])


def test_what_an_older_version_kept_is_made_again_with_a_sentence(options, tmp_path, caplog):
    (tmp_path / "trials").mkdir()
    compare_many_step(out=tmp_path, editors=("ddim",), **{**options, "num": 1, "num_edits": None})
    assert f"{tmp_path / 'trials'} was kept by an older version and is not read" in caplog.text


def test_other_settings_are_measured_anew(options, compared):
    out, _ = compared
    before = set((out / "kept").iterdir())
    compare_many_step(out=out, editors=("ddim", "imagic"), **{**options, "imagic": replace(SHORT, unet_steps=0)})
    new = {path.name.split("-")[0] for path in set((out / "kept").iterdir()) - before}
    assert new == {"imagic"}
    compare_many_step(out=out, editors=("ddim",), **{**options, "guidance": 2.0, "num_edits": None})
    new = {path.name.split("-")[0] for path in set((out / "kept").iterdir()) - before}
    assert new == {"imagic", "ddim", "ceiling"}  # the other references know no guidance


def test_unknown_editors_are_named_with_the_known(options, tmp_path):
    with pytest.raises(ValueError, match=r"null_txt are unknown; expected some of stylediffusion, .*null_text"):
        compare_many_step(out=tmp_path, editors=("null_txt",), **options)
    with pytest.raises(ValueError, match="editors imagick are unknown"):
        compare_many_step(out=tmp_path, **{**options, "num_edits": {"imagick": 2}})
    with pytest.raises(ValueError, match=r"num_edits\.imagic is 0; expected at least 1"):
        compare_many_step(out=tmp_path, **{**options, "num_edits": {"imagic": 0}})


def test_command_line_takes_lists_and_single_editors(options, tmp_path):
    """As a user types it; an unknown name ends it before any work."""
    arguments = [
        "--backbone",
        str(options["backbone"]),
        "--out",
        str(tmp_path),
        "--attributes",
        str(options["attributes"]),
    ]
    arguments += [
        "--editors",
        "[ddim, imagic]",
        "--num_edits.imagic",
        "1",
        "--num_edits.none",
        "2",
        "--imagic.draws",
        "2",
    ]
    with pytest.raises(SystemExit, match="editors none are unknown"):
        main(arguments)


@torch.no_grad()
def test_result_comes_back_from_its_folder_as_it_was(tiny_sd_backbone, options, tmp_path):
    backbone = Backbone.load(tiny_sd_backbone)
    judge = load_judge(options["attributes"], options["clip"], torch.device("cpu"))
    edits = edit_set(one_edit_of_each_kind()[:3])
    editor = GuidedDdim(backbone, Ddim(backbone.schedule, 2), 3.0)
    setup = RunSetup(backbone, judge, 2, KeptFolder(tmp_path))
    references = judge.references(edits, backbone)
    result = run_editor(editor, edits, references, setup, (0.2, 0.8), num_reconstructions=3)
    keep_result(setup.kept, "one", result)
    found = read_result(setup.kept, "one")
    assert repr(found.scores) == repr(result.scores)  # nan is not equal to itself
    assert (found.invert_costs, found.edit_costs) == (result.invert_costs, result.edit_costs)
    assert (found.noises, found.reconstruction_rows) == (result.noises, result.reconstruction_rows)
    for ours, theirs in ((result.images, found.images), (result.reconstructions, found.reconstructions)):
        assert list(ours) == list(theirs)
        assert all((a == b).all() for key in ours for a, b in zip(ours[key], theirs[key], strict=True))


def test_settings_tell_editors_apart(tiny_sd_backbone):
    backbone = Backbone.load(tiny_sd_backbone)
    two, four = Ddim(backbone.schedule, 2), Ddim(backbone.schedule, 4)
    editors = [
        Imagic(backbone, two, 3.0, SHORT),
        Imagic(backbone, four, 3.0, SHORT),
        Imagic(backbone, two, 2.0, SHORT),
        Imagic(backbone, two, 3.0, replace(SHORT, lora_rank=2)),
        GuidedDdim(backbone, two, 3.0),
    ]
    found = [json.dumps(settings_of(editor)) for editor in editors]
    assert len(set(found)) == len(editors)
    assert found[0] == json.dumps(settings_of(Imagic(Backbone.load(tiny_sd_backbone), two, 3.0, SHORT)))


def test_accuracy_counts_what_is_there():
    nan = float("nan")
    right = {
        "layout": torch.tensor([1.0, 1.0]),
        "a_shape": torch.tensor([1.0, 0.0]),
        "b_shape": torch.tensor([nan, 1.0]),
    }
    figures = accuracy_figures(right)
    assert figures["right"]["mean"] == pytest.approx((1 + 2 / 3) / 2)
    assert figures["all_right"]["mean"] == 0.5
    assert figures["by_type"]["shape"]["mean"] == pytest.approx(0.75)
    assert figures["right"]["n"] == 2


def test_best_guidance_is_the_lowest_of_equals():
    figures = {name: {"right": {"mean": mean}} for name, mean in (("1", 0.5), ("2", 0.9), ("3", 0.9), ("10", 0.8))}
    assert best_guidance(figures) == 2


def test_accuracy_by_guidance_is_written(options, tmp_path, caplog):
    with caplog.at_level("INFO"):
        results = caption_accuracy(
            options["backbone"],
            tmp_path,
            (1.0, 3.0),
            num_steps=2,
            num=3,
            attributes=options["attributes"],
            batch=2,
            device="cpu",
        )
    assert json.loads((tmp_path / "caption_accuracy.json").read_text()) == results
    assert list(results["guidances"]) == ["1", "3"]
    assert results["best"] in (1.0, 3.0)
    assert f"best: guidance {results['best']:g}, n = 3" in caplog.text


def test_editors_optimise_in_float16_and_imagic_says_no(options, tmp_path, caplog):
    few = {**options, "num": 1, "num_edits": {}, "dtype": "float16"}
    found = compare_many_step(out=tmp_path, editors=("null_text",), **few)
    assert found["about"]["dtype"] == "float16" and found["edits"]["null_text"]["n"] == len(EDIT_KINDS)
    refusal = "Imagic trains the UNet, which is torch.float16; load the backbone in float32"
    assert f"imagic is left out: {refusal}" in caplog.text


@pytest.mark.long
def test_style_transfer_in_float16(options, tmp_path):
    judges = {name: options[name] for name in ("backbone", "attributes", "clip", "device")}
    found = compare_style_transfer(out=tmp_path, num=2, num_steps=2, shares=(0.0, 1.0), dtype="float16", **judges)
    assert found["about"]["dtype"] == "float16" and len(found["shares"]) == 2
