"""StyleDiffusion's forms as editors, the loading of an exported network, and style transfer as a command."""

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import DiffusionPipeline
from PIL import Image

from eval.editors.builders import REFINEMENT
from eval.editors.catalogue import Available, Command, available
from eval.editors.editor import Editor, EditRequest, measured
from eval.editors.few_steps import decode_latents
from eval.editors.guided_sdedit import GuidedSdedit
from eval.editors.models import ManyStepModel
from eval.editors.options import StyleTaus
from eval.editors.stylediffusion import StyleDiffusion, WordwiseStyleDiffusion, by_words
from eval.harness.exports import ExportedMapper, load_mapper
from eval.many_step import compare_many_step
from eval.pie.rows import taus_words
from eval.scene_edits.edit_set import EditSet, edit_set
from eval.studies.style_transfer import readings, style_pairs
from eval.style_transfer import compare_style_transfer
from models.backbone import Backbone
from models.clip import ImageTokens
from models.ddim import Ddim
from models.options import FitSchedule, StyleObjective
from models.prompt_to_prompt import reconstruct
from models.stylediffusion_pipeline import StyleDiffusionPipeline
from models.value_mapper import AmortisedMapper
from models.weight_files import files_by_variant
from models.word_alignment import refine_alignment
from tests.plain_attention import FROM_SHORT, LONG, SHORT
from tests.second_device import offloaded
from tests.test_turboedit_pipeline import pictures
from tests.tiny_editing import one_edit_of_each_kind, save_tiny_judges

STEPS, GUIDANCE = 3, 3.0
ABLATIONS = {
    f"stylediffusion_{form}"
    for form in ("no_p2plus", "words", "keys", "both", "direct", "no_attention", "paper_form", "short")
}
BRIEF = FitSchedule(iterations=3)


@pytest.fixture(scope="module")
def ddim(backbone: Backbone) -> Ddim:
    return Ddim(backbone.schedule, STEPS)


@pytest.fixture(scope="module")
def judges(backbone: Backbone, tmp_path_factory) -> tuple[Path, Path]:
    return save_tiny_judges(tmp_path_factory.mktemp("judges"), backbone.text.tokenizers[0])


@pytest.fixture(scope="module")
def tokens(judges) -> ImageTokens:
    return ImageTokens.load(str(judges[1]))


@pytest.fixture(scope="module")
def mapper(backbone: Backbone, tokens: ImageTokens) -> AmortisedMapper:
    """A random network that does not start at zero."""
    text = backbone.encode_text([""]).embeds.shape[1:]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = AmortisedMapper(tokens.shape, tuple(text), width=8, depth=1, heads=2)
        torch.nn.init.normal_(found.to_modulation[1].weight, std=0.05)
    return found.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def edits() -> EditSet:
    return edit_set(one_edit_of_each_kind()[:2])


def form(backbone, ddim, tokens, schedule=BRIEF, mapper=None, **objective) -> StyleDiffusion:
    wanted = StyleObjective(GUIDANCE, **{"attention_side": 8, **objective})
    return StyleDiffusion(backbone, ddim, tokens, wanted, schedule, mapper)


def forms(found: Available) -> dict[str, Editor]:
    return {known.name: editor for known, editor in found.editors if known.name.startswith("stylediffusion")}


def test_forms_are_the_papers_and_the_amortised_ones(backbone, ddim, tokens, mapper):
    model = ManyStepModel(backbone, ddim, GUIDANCE, tokens=tokens)
    alone, both = (forms(available(Command.MANY_STEP, on)) for on in (model, replace(model, mapper=mapper)))
    assert set(available(Command.MANY_STEP, model).default) & set(alone) == {"stylediffusion", "stylediffusion_sdedit"}
    assert set(alone) == {"stylediffusion", "stylediffusion_sdedit", *ABLATIONS}
    assert set(both) - set(alone) == {"stylediffusion_amortised", "stylediffusion_refined"}
    main = alone["stylediffusion"]
    assert (main.sharing.unconditional, alone["stylediffusion_no_p2plus"].sharing.unconditional) == (0.5, 0.0)
    given = replace(model, injection=StyleTaus(v=0.2, u=0.3, c=0.4, s=0.5))
    sharing = forms(available(Command.PIE, given))["stylediffusion"].sharing
    assert (sharing.values, sharing.unconditional, sharing.cross, sharing.self_) == (0.2, 0.3, 0.4, 0.5)
    assert "tau_u 0.3: the published run has 0" in taus_words(sharing)
    assert alone["stylediffusion_keys"].step.objective.into == "keys"
    assert alone["stylediffusion_both"].step.objective.into == "both"
    assert alone["stylediffusion_no_attention"].step.objective.attention_weight == 0
    assert alone["stylediffusion_direct"].schedule.form == "direct"
    assert alone["stylediffusion_paper_form"].schedule.form == "replace"
    assert both["stylediffusion_amortised"].schedule is None
    assert both["stylediffusion_refined"].schedule.iterations == REFINEMENT == main.schedule.iterations / 10


@torch.no_grad()
def test_a_fit_brings_the_reconstruction_nearer(backbone, ddim, tokens, edits):
    latent = backbone.encode_image(edits.sources)

    def error(editor: StyleDiffusion) -> float:
        inversion = editor.invert(edits.sources, edits.source_prompts)
        return (editor.reconstruct(inversion)[-1] - latent).square().mean().item()

    few, many = (form(backbone, ddim, tokens, FitSchedule(iterations=n, decay=0.0)) for n in (1, 8))
    assert error(many) < error(few)


@torch.no_grad()
def test_amortised_costs_an_inversion_alone_and_refinement_its_fit(backbone, ddim, tokens, mapper, edits):
    costs = {}
    for name, schedule in (("amortised", None), ("refined", FitSchedule(iterations=2, decay=0.0))):
        meter = measured(form(backbone, ddim, tokens, schedule, mapper))
        inversion = meter.invert(edits.sources, edits.source_prompts)
        meter.edit(inversion, EditRequest(edits.target_prompts))
        costs[name] = (meter.invert_costs[0].nfe, meter.edit_costs[0].nfe)
    assert costs["amortised"] == (STEPS, 4 * STEPS)
    # each step: the target at two rows, two iterations, the step itself
    assert costs["refined"] == (STEPS + STEPS * (2 + 2 + 1), 4 * STEPS)


@torch.no_grad()
def test_sdedit_samples_with_the_mapped_values(backbone, ddim, tokens, mapper, edits):
    style = form(backbone, ddim, tokens, None, mapper)
    plain, mapped = GuidedSdedit(backbone, ddim, GUIDANCE), GuidedSdedit(backbone, ddim, GUIDANCE, style)
    assert mapped.name == "stylediffusion_sdedit"
    request = EditRequest(edits.target_prompts, strength=1.0)
    inversion = mapped.invert(edits.sources, edits.source_prompts)
    found = mapped.edit(inversion, request)
    other = plain.edit(plain.invert(edits.sources, edits.source_prompts), request)
    assert (found - other).abs().max() > 1e-3
    # A network that gives the text itself changes nothing.
    text = backbone.encode_text([""]).embeds.shape[1:]
    stock = AmortisedMapper(tokens.shape, tuple(text), width=8, depth=1, heads=2).eval()
    same = GuidedSdedit(backbone, ddim, GUIDANCE, form(backbone, ddim, tokens, None, stock))
    same_edit = same.edit(same.invert(edits.sources, edits.source_prompts), request)
    torch.testing.assert_close(same_edit, other, atol=1e-3, rtol=0)
    style.sharing = replace(style.sharing, values=0.0)
    torch.testing.assert_close(mapped.edit(inversion, request), other)  # tau_v bounds the values
    untouched = mapped.edit(inversion, EditRequest(edits.target_prompts, strength=0.0))  # nothing is sampled
    torch.testing.assert_close(untouched, decode_latents(backbone, backbone.encode_image(edits.sources)))


def test_values_by_words_follow_a_word_that_has_moved(backbone):
    """The modulation of each token of the target, looked up token by token; x and y of "xy" are new."""
    source, target = SHORT, LONG  # "ab cd", "ab xy cd"
    generator = torch.Generator().manual_seed(0)
    embeds, scale, shift = (torch.randn(1, 77, 4, generator=generator) for _ in range(3))
    found = by_words(lambda e: e * scale + shift, refine_alignment(backbone.text, [source], [target]))(embeds)
    for position in range(77):
        origin = FROM_SHORT.get(position, position)
        expected = embeds[0, position] * scale[0, origin] + shift[0, origin]
        torch.testing.assert_close(found[0, position], expected)


@torch.no_grad()
def test_values_by_words_reach_the_target_alone(backbone, ddim, tokens, mapper):
    images = pictures(1)
    wanted = StyleObjective(GUIDANCE, attention_side=8)
    plain, words = (
        kind(backbone, ddim, tokens, wanted, None, mapper) for kind in (StyleDiffusion, WordwiseStyleDiffusion)
    )
    assert plain.inversion_settings == words.inversion_settings
    inversion = plain.invert(images, (SHORT,))
    same, moved = EditRequest((SHORT,)), EditRequest((LONG,))
    torch.testing.assert_close(words.edit(inversion, same), plain.edit(inversion, same), atol=1e-4, rtol=0)
    assert (words.edit(inversion, moved) - plain.edit(inversion, moved)).abs().max() > 1e-4
    assert inversion.state.target_values is None


@torch.no_grad()
def test_sampling_from_a_later_level_is_the_end_of_the_whole_way(backbone, ddim, tokens, mapper, edits):
    trajectory = form(backbone, ddim, tokens, None, mapper).invert(edits.sources, edits.source_prompts).state
    whole = reconstruct(backbone, ddim, trajectory, GUIDANCE)
    rest = reconstruct(backbone, ddim, replace(trajectory, start=whole[1]), GUIDANCE, first=1)
    torch.testing.assert_close(rest, whole[1:], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def export(backbone, tiny_sd_backbone, tokens, mapper, tmp_path_factory) -> Path:
    """A saved pipeline of the random network."""
    stock = DiffusionPipeline.from_pretrained(tiny_sd_backbone)
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    pipeline = StyleDiffusionPipeline(
        **{name: stock.components[name] for name in names},
        image_encoder=tokens.model,
        mapper=mapper,
        num_steps=STEPS,
        guidance=GUIDANCE,
        attention_side=8,
        image_mean=tokens.pixels.mean,
        image_std=tokens.pixels.std,
    )
    folder = tmp_path_factory.mktemp("export")
    pipeline.save_pretrained(folder)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_an_exported_network_comes_back(export, tokens, mapper, backbone, edits, variant, tmp_path):
    folder = shutil.copytree(export, tmp_path / "export")
    for path in files_by_variant(folder)[None] if variant else ():
        path.rename(path.with_suffix(f".{variant}{path.suffix}"))
    found = load_mapper(folder)
    assert (found.num_steps, found.steps_offset, found.guidance) == (STEPS, 1, GUIDANCE)
    image_tokens = found.tokens(edits.sources)
    torch.testing.assert_close(image_tokens, tokens(edits.sources))
    prompt, t = backbone.encode_text(edits.source_prompts).embeds, torch.tensor([5, 900])
    ours, theirs = (network(image_tokens, t, prompt) for network in (mapper, found.mapper))
    torch.testing.assert_close(ours, theirs)


def test_a_network_of_other_steps_or_guidance_is_refused(mapper, tokens):
    found = ExportedMapper(mapper, tokens, 20, 1, 3.0, "values")
    found.check(20, 3.0)
    for steps, guidance in ((30, 3.0), (20, 7.5)):
        with pytest.raises(ValueError, match="give --num_steps 20 --guidance 3"):
            found.check(steps, guidance)
    with pytest.raises(ValueError, match="offset of 0, the evaluation has 1"):
        replace(found, steps_offset=0).check(20, 3.0)


def test_what_is_no_export_is_refused(tmp_path, tiny_sd_backbone):
    with pytest.raises(ValueError, match=r"is not an exported encoder: it has no model_index\.json"):
        load_mapper(tmp_path)
    with pytest.raises(ValueError, match="expected the StyleDiffusionPipeline"):
        load_mapper(tiny_sd_backbone)


def test_comparison_takes_an_exported_network(export, judges, tiny_sd_backbone, tmp_path):
    results = compare_many_step(
        tiny_sd_backbone,
        tmp_path,
        ("stylediffusion_amortised", "ddim"),
        num_steps=STEPS,
        guidance=GUIDANCE,
        num=1,
        num_validation=1,
        num_reconstructions=1,
        encoder=export,
        attributes=judges[0],
        clip=judges[1],
        device="cpu",
    )
    paired = results["paired"]
    assert (paired["ours"], paired["n"]) == ("stylediffusion_amortised", 9)
    assert paired["editors"]["stylediffusion_amortised"]["clip"]["difference"]["mean"] == 0
    for figures in paired["editors"].values():
        for measure, pair in figures.items():
            own = paired["editors"]["stylediffusion_amortised"][measure]["value"]["mean"]
            if measure != "psnr_outside":  # where some edits have none
                assert pair["difference"]["mean"] == pytest.approx(pair["value"]["mean"] - own, abs=1e-6)
    assert "StyleDiffusion, amortised" in (tmp_path / "index.html").read_text()


def test_style_transfer_is_measured_and_shown(judges, tiny_sd_backbone, tmp_path):
    options = {"num_steps": STEPS, "schedule": BRIEF, "attributes": judges[0], "clip": judges[1], "device": "cpu"}
    results = compare_style_transfer(tiny_sd_backbone, tmp_path, 2, shares=(0.0, 1.0), blocks=(0, 1), **options)
    assert json.loads((tmp_path / "results.json").read_text())["shares"] == results["shares"]
    assert [point["share"] for point in results["shares"]] == [0.0, 1.0]
    none, all_ = (point["structure"]["mean"] for point in results["shares"])
    assert none != all_ and all(point["content"]["n"] == 2 for point in results["shares"])
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 2 * 4
    with pytest.raises(ValueError, match="num is 0"):
        compare_style_transfer(tiny_sd_backbone, tmp_path, 0)


def test_pairs_differ_in_what_is_transferred():
    for content, style in style_pairs(20, 0):
        assert content.style != style.style and content.background != style.background


def test_readings_count_the_contents_layout_and_the_styles_look():
    class Reader:
        def read(self, images):
            return {
                "style": torch.tensor([1, 2]),
                "background": torch.tensor([0, 0]),
                "layout": torch.tensor([3, 3]),
                "b_shape": torch.tensor([1, 1]),
                "a_colour": torch.tensor([0, 0]),
            }

    content = {"layout": torch.tensor([3, 2]), "b_shape": torch.tensor([-1, 1]), "a_colour": torch.tensor([5, 5])}
    style = {"style": torch.tensor([1, 1]), "background": torch.tensor([4, 0])}
    found = readings(Reader(), torch.zeros(2, 3, 8, 8), content, style)
    assert found == {"style": [1, 0], "background": [0, 1], "content": [1, 0.5]}


def test_the_exported_pipeline_takes_files_and_may_be_offloaded(export, tmp_path):
    found = DiffusionPipeline.from_pretrained(export, trust_remote_code=True)
    found.set_progress_bar_config(disable=True)
    Image.effect_noise((90, 70), 60).convert("RGB").save(tmp_path / "noise.png")

    def edited() -> np.ndarray:
        inversion = found.invert(tmp_path / "noise.png", "a red star")
        return np.asarray(found.edit(inversion, "a blue star")[0])

    expected, results = edited(), {}
    threads = [threading.Thread(target=lambda i=i: results.update({i: edited()})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all((result == expected).all() for result in results.values())
    for name, part in found.components.items():
        if isinstance(part, torch.nn.Module) and name not in found._exclude_from_cpu_offload:
            cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)
    assert (edited() == expected).all()
    assert found.invert(tmp_path / "noise.png", "a red star", refine=1).trajectory.start.device.type == "cpu"


def test_one_call_gives_every_form_of_output(export):
    found = DiffusionPipeline.from_pretrained(export, trust_remote_code=True)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    inversion = found.invert(image, "a red star")
    latent = found.edit(inversion, "a blue star", output_type="latent")
    assert torch.equal(found(image, "a red star", "a blue star", output_type="latent"), latent)
    assert found.reconstruct(inversion, output_type="pt").shape == (1, 3, 64, 64)
    assert found.transfer_style(inversion, image, "a house", output_type="np").shape == (1, 64, 64, 3)
    with pytest.raises(ValueError, match="output_type is 'jpeg'; expected one of pil, np, pt, latent"):
        found.edit(inversion, "a blue star", output_type="jpeg")


def test_an_inversion_is_saved_without_pickle_and_moves(export, tmp_path):
    found = DiffusionPipeline.from_pretrained(export, trust_remote_code=True)
    inversion = found.invert(torch.zeros(2, 3, 64, 64), ["a red star", "grass"])
    inversion.save(tmp_path / "file")
    again = found.load_inversion(tmp_path / "file")
    assert again.texts == inversion.texts
    held, read = inversion.trajectory, again.trajectory
    assert torch.equal(read.start, held.start) and torch.equal(read.nulls[-1].embeds, held.nulls[-1].embeds)
    assert all(torch.equal(a.shift, b.shift) for a, b in zip(read.values, held.values, strict=True))
    latents = [found.edit(x, ["a blue star", "sand"], output_type="latent") for x in (inversion, again)]
    torch.testing.assert_close(*latents, rtol=1e-4, atol=1e-4)  # where a tensor lies may change the order of a sum
    moved = inversion.to("meta").trajectory
    assert {x.device.type for x in (moved.start, moved.prompt.embeds, moved.values[0].scale)} == {"meta"}
    with pytest.raises(ValueError, match="there is no inversion at nowhere"):
        found.load_inversion("nowhere")


def test_offloaded_parts_leave_the_device(export, monkeypatch):
    found = DiffusionPipeline.from_pretrained(export, trust_remote_code=True)
    with offloaded(found, monkeypatch) as moves:
        images = found(torch.zeros(1, 3, 64, 64), "a red star", "a blue star", output_type="pt")
    assert images.device.type == "meta" and moves.count("+unet") == moves.count("-unet") == 2
