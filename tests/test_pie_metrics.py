"""PIE-Bench's measures of twelve rendered scenes against slow computations, and where references must come out."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from data.world.edits import EDIT_KINDS
from data.world.render import render
from data.world.splits import sample_edits
from eval.metrics.config import MetricConfig
from eval.metrics.measures import PIE_FURTHER, PIE_MEASURES, SECOND_CLIP
from eval.metrics.networks import MetricModels, load_metric_models
from eval.pie.metrics import FORMS, BatchValues, PieMetrics, SourceFeatures
from tests.slow_metrics import MINIATURE_CLIP, SlowModels, save_random_networks, slow_measures

BACKGROUND = ("psnr", "lpips", "mse", "ssim")


@dataclass(frozen=True)
class Scenes:
    """Twelve edits: pictures uint8 [12, 3, 64, 64], masks bool [12, 1, 64, 64], prompts."""

    sources: Tensor
    truths: Tensor
    masks: Tensor
    source_prompts: list[str]
    target_prompts: list[str]


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    """With masks of all sorts: of true edits, none, everything, everything but a corner, one pixel, a long strip."""
    edits = [sample_edits("test", 0, index, EDIT_KINDS[index % len(EDIT_KINDS)]) for index in range(12)]
    pictures = [torch.from_numpy(np.stack([render(getattr(edit, side)) for edit in edits])) for side in SIDES]
    masks = torch.from_numpy(np.stack([edit.mask() for edit in edits]))[:, None]
    masks[0] = False
    masks[1] = True
    masks[2], masks[2, :, :3, :3] = True, False
    masks[3] = False
    masks[3, :, 0, 63] = True
    masks[4] = False
    masks[4, :, 5:62, 40:43] = True
    sources, truths = (values.permute(0, 3, 1, 2) for values in pictures)
    texts = [edit.captions(long=False) for edit in edits]
    return Scenes(sources, truths, masks, [source for source, _ in texts], [target for _, target in texts])


SIDES = ("source", "target")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> SlowModels:
    return save_random_networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def metrics(slow: SlowModels) -> PieMetrics:
    return PieMetrics(load_metric_models(MetricConfig(slow.lpips, str(slow.structure), str(slow.clip))))


def gathered(metrics: PieMetrics, scenes: Scenes) -> SourceFeatures:
    return metrics.sources(scenes.sources, scenes.masks, scenes.source_prompts, scenes.target_prompts)


def edited(scenes: Scenes) -> Tensor:
    """Edits that come near the truth, further for each picture, and leave the background for some."""
    draw = torch.Generator().manual_seed(0)
    scale = torch.linspace(2, 60, 12).view(12, 1, 1, 1)
    noisy = scenes.truths + scale * torch.randn(scenes.truths.shape, generator=draw)
    edits = noisy.round().clamp(0, 255).to(torch.uint8)
    return edits.where((torch.arange(12) % 5 != 2).view(12, 1, 1, 1) | scenes.masks, scenes.sources)


def test_every_measure_of_twelve_scenes_is_the_slow_one(slow: SlowModels, metrics: PieMetrics, scenes: Scenes):
    edits = edited(scenes)
    found = metrics.measure(gathered(metrics, scenes), edits)
    assert tuple(found) == FORMS and metrics.measures == tuple(PIE_MEASURES)
    for index in range(12):
        pictures = (values[index].permute(1, 2, 0).numpy() for values in (scenes.sources, edits))
        mask, prompts = scenes.masks[index, 0].numpy(), (scenes.source_prompts[index], scenes.target_prompts[index])
        for form, expected in slow_measures(slow, *pictures, mask, *prompts).items():
            measured = {name: values[index].item() for name, values in found[form].items()}
            assert measured == pytest.approx(expected, rel=1e-5, abs=1e-9, nan_ok=True), (index, form)
    assert_defined_where_it_should_be(found)


def assert_defined_where_it_should_be(found: BatchValues) -> None:
    """So that the comparison above is not one of nothing with nothing."""
    for form, values in found.items():
        assert tuple(values) == tuple(PIE_MEASURES)
        for name, column in values.items():
            assert column.dtype == torch.float64 and column.shape == (12,)
            undefined = set(column.isnan().nonzero().flatten().tolist())
            expected: set[int] = set()
            if name in BACKGROUND:
                expected = {1, 8}  # everything may change
            if name == "ssim" and form == "corrected":
                expected |= {2}  # no window has its centre in a corner
            if name == "clip_edited" and form == "corrected":
                expected = {0}
            assert undefined == expected, (form, name)
            assert name.startswith("clip") or (column[~column.isnan()] > 0).sum() >= 8
    for name in ("structure", *BACKGROUND, "clip_edited"):
        a, b = (found[form][name] for form in FORMS)
        both = ~(a.isnan() | b.isnan())
        assert ((a - b).abs() > 1e-3 * b.abs())[both].sum() >= 6, name
    assert (found["published"]["clip_whole"] > 0).sum() >= 4


def test_an_identity_editor_leaves_everything(metrics: PieMetrics, scenes: Scenes):
    found = metrics.measure(gathered(metrics, scenes), scenes.sources)
    for form in FORMS:
        values = {name: column[~column.isnan()] for name, column in found[form].items()}
        assert set(values["psnr"].tolist()) == {100.0}
        assert values["mse"].abs().max() == values["lpips"].abs().max() == 0
        torch.testing.assert_close(values["ssim"], torch.ones_like(values["ssim"]), rtol=0, atol=1e-12)
        assert values["structure"].max() < 1e-10
        same_prompts = metrics.sources(scenes.sources, scenes.masks, scenes.target_prompts, scenes.target_prompts)
        torch.testing.assert_close(found[form]["clip_whole"], same_prompts.texts["clip"].score.double())


def test_what_happens_in_the_mask_does_not_reach_the_corrected_background(metrics: PieMetrics, scenes: Scenes):
    sources = gathered(metrics, scenes)
    draw = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, scenes.sources.shape, generator=draw, dtype=torch.uint8)
    found = metrics.measure(sources, noise.where(scenes.masks, scenes.sources))["corrected"]
    assert set(found["psnr"][found["mse"] == 0].tolist()) == {100.0}
    for name, perfect in (("mse", 0), ("lpips", 0), ("ssim", 1)):
        values = found[name][~found[name].isnan()]
        torch.testing.assert_close(values, torch.full_like(values, perfect), rtol=0, atol=1e-12)


def test_the_published_background_flatters_large_masks_the_corrected_does_not(metrics: PieMetrics):
    """The same error in every pixel, masks of a quarter and of three quarters."""
    source = torch.full((2, 3, 64, 64), 100, dtype=torch.uint8)
    masks = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    masks[0, :, :, :16] = masks[1, :, :, :48] = True
    found = metrics.measure(metrics.sources(source, masks, ["a"] * 2, ["b"] * 2), source + 10)
    assert found["corrected"]["mse"].tolist() == pytest.approx([(10 / 255) ** 2] * 2)
    assert found["published"]["mse"].tolist() == pytest.approx([(10 / 255) ** 2 * 62 * n / 4096 for n in (47, 15)])
    assert found["published"]["psnr"][1] - found["published"]["psnr"][0] == pytest.approx(10 * np.log10(47 / 15))


def test_batches_and_selections_change_nothing(metrics: PieMetrics, scenes: Scenes):
    edits, sources = edited(scenes), gathered(metrics, scenes)
    together = metrics.measure(sources, edits)
    rows = [7, 2, 3]
    some = metrics.measure(sources[rows], edits[rows])
    single = metrics.measure(gathered(metrics, scenes)[5:6], edits[5:6])
    assert len(sources[rows]) == 3
    for form in FORMS:
        for name in PIE_MEASURES:
            torch.testing.assert_close(
                some[form][name], together[form][name][rows], rtol=1e-5, atol=1e-8, equal_nan=True
            )
            torch.testing.assert_close(
                single[form][name], together[form][name][5:6], rtol=1e-5, atol=1e-8, equal_nan=True
            )


def test_two_measurements_agree_to_the_last_digit(metrics: PieMetrics, scenes: Scenes):
    first, second = (metrics.measure(gathered(metrics, scenes), edited(scenes)) for _ in range(2))
    for form in FORMS:
        for name in PIE_MEASURES:
            assert torch.equal(first[form][name].nan_to_num(-1), second[form][name].nan_to_num(-1)), (form, name)


def test_pictures_may_be_large_and_need_not_be_square(slow: SlowModels, metrics: PieMetrics):
    """Larger than what DINO and CLIP get; two prompts to which the random CLIP finds them similar."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 1, 3, 40, 50, generator=draw)
    source, edit = (
        (255 * torch.nn.functional.interpolate(values, (240, 300))).round().to(torch.uint8) for values in coarse
    )
    mask = torch.zeros(1, 1, 240, 300, dtype=torch.bool)
    mask[..., 20:230, 3:100] = True
    prompts = "a red star", "a purple circle on teal"
    found = metrics.measure(metrics.sources(source, mask, *([text] for text in prompts)), edit)
    pictures = (values[0].permute(1, 2, 0).numpy() for values in (source, edit))
    expected = slow_measures(slow, *pictures, mask[0, 0].numpy(), *prompts)
    assert min(expected["corrected"].values()) > 0
    for form in FORMS:
        measured = {name: values.item() for name, values in found[form].items()}
        assert measured == pytest.approx(expected[form], rel=1e-5), form


def test_a_clip_s_keys_may_stand_for_dino_s(slow: SlowModels, scenes: Scenes):
    """The miniature's, which has no image processor; both forms are one, and the words say whose keys they are."""
    config = MetricConfig(slow.lpips, str(MINIATURE_CLIP), str(MINIATURE_CLIP))
    models = load_metric_models(config)
    assert "CLIP" in models.about["structure"] and "not comparable" in models.about["structure"]
    metrics = PieMetrics(models)
    edits = edited(scenes)
    found = metrics.measure(gathered(metrics, scenes)[6:8], edits[6:8])
    miniature = SlowModels(slow.lpips, MINIATURE_CLIP, MINIATURE_CLIP)
    for index in (6, 7):
        pictures = (values[index].permute(1, 2, 0).numpy() for values in (scenes.sources, edits))
        prompts = scenes.source_prompts[index], scenes.target_prompts[index]
        for form, expected in slow_measures(miniature, *pictures, scenes.masks[index, 0].numpy(), *prompts).items():
            measured = {name: values[index - 6].item() for name, values in found[form].items()}
            assert measured == pytest.approx(expected, rel=1e-5), form


def test_further_measures_are_what_their_names_say(slow: SlowModels, scenes: Scenes):
    clip = str(slow.clip)
    config = MetricConfig(slow.lpips, str(slow.structure), clip, second_clip=clip, further=True)
    metrics = PieMetrics(load_metric_models(config))
    assert metrics.measures == (*PIE_MEASURES, *(measure.name for measure in (*PIE_FURTHER, *SECOND_CLIP)))
    model = metrics.models.clip
    assert model is not None
    s, t = (
        x / x.norm(dim=1, keepdim=True)
        for x in (model.embed(scenes.source_prompts), model.embed(scenes.target_prompts))
    )
    told = (t - s).norm(dim=1) > 1e-4  # some short prompts are the same before and after the edit
    still = int(told.nonzero()[0])
    edits = edited(scenes)
    edits[still] = scenes.sources[still]
    sources = gathered(metrics, scenes)
    found = metrics.measure(sources, edits)
    plain = (scenes.sources, scenes.source_prompts, scenes.target_prompts)
    whole, exchanged = (
        metrics.measure(metrics.sources(plain[0], masks, *plain[1:]), edits)["corrected"]
        for masks in (torch.zeros_like(scenes.masks), ~scenes.masks)
    )
    for name in BACKGROUND:
        for form in FORMS:
            # LPIPS of the corrected form is the mean of its map, interpolated to the picture's size.
            torch.testing.assert_close(found[form][f"{name}_whole"], whole[name], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found["corrected"][f"{name}_edit"], exchanged[name], equal_nan=True)
    border = scenes.masks.clone()
    border[..., [0, -1], :] = border[..., [0, -1]] = True
    black = ((scenes.sources.double() - edits.double()) / 255 * border).square().mean((1, 2, 3))
    torch.testing.assert_close(found["published"]["mse_edit"], black)
    assert found["published"]["structure_background"].isnan().nonzero().flatten().tolist() == [1, 8]
    assert (found["published"]["structure_edit"] > 0).sum() >= 8 and found["corrected"]["structure_edit"].isnan().all()
    for name in ("whole", "edited", "source", "direction"):
        torch.testing.assert_close(
            *(found["corrected"][f"{one}_{name}"] for one in ("clip", "second_clip")), equal_nan=True
        )
    pictures = [model.embed_pictures(values) for values in (scenes.sources, edits)]
    a, b = (x / x.norm(dim=1, keepdim=True) for x in pictures)
    expected = 100 * ((b - a) * (t - s)).sum(1) / ((b - a).norm(dim=1) * (t - s).norm(dim=1))
    changed = [index for index in told.nonzero().flatten().tolist() if index != still]
    direction = found["published"]["clip_direction"]
    torch.testing.assert_close(direction[changed], expected[changed].double(), rtol=1e-3, atol=1e-3)
    assert len(changed) >= 4 and direction[still] == 0 and torch.equal(direction.isnan(), ~told)


def test_the_official_code_with_todays_libraries(slow: SlowModels, metrics: PieMetrics, scenes: Scenes):
    config = MetricConfig(slow.lpips, str(slow.structure), str(slow.clip), libraries="today")
    today = PieMetrics(load_metric_models(config))
    edits, keep = edited(scenes)[6:8], ~scenes.masks[6:8]
    keep[..., [0, -1], :] = keep[..., [0, -1]] = False
    found, before = (one.measure(gathered(one, scenes)[6:8], edits) for one in (today, metrics))
    pair = [(values * keep).double() / 255 for values in (edits, scenes.sources[6:8])]
    for index in range(2):
        expected = structural_similarity_index_measure(*(one[index, None] for one in pair), data_range=1.0)
        assert found["published"]["ssim"][index].item() == pytest.approx(float(expected), rel=1e-6)
    for name in ("ssim", "structure"):
        assert found["published"][name][0] != before["published"][name][0]
    unchanged = [name for name in PIE_MEASURES if name not in ("ssim", "structure")]
    assert all(torch.equal(found["published"][name], before["published"][name]) for name in unchanged)
    assert all(torch.equal(found["corrected"][name], before["corrected"][name]) for name in PIE_MEASURES)
    assert "today's libraries" in today.about["libraries"] and "libraries" not in metrics.about


def test_measures_without_networks_are_left_out(scenes: Scenes):
    metrics = PieMetrics(MetricModels(about={"lpips": "left out: no file"}))
    assert metrics.measures == ("psnr", "mse", "ssim")
    assert metrics.about == {"lpips": "left out: no file"}
    found = metrics.measure(gathered(metrics, scenes)[6:8], edited(scenes)[6:8])
    assert all(tuple(values) == metrics.measures and not values["psnr"].isnan().any() for values in found.values())


def test_what_cannot_be_loaded_is_said(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    models = load_metric_models(MetricConfig())
    assert models.lpips is None and not models.structures and models.clip is None
    assert all("left out" in words and "\n" not in words for words in models.about.values())
    for name in ("structure", "clip"):
        with pytest.raises(ValueError, match=rf"{name}.* could not be loaded .*; name another one with metrics.{name}"):
            load_metric_models(MetricConfig(**{"structure": str(MINIATURE_CLIP), name: str(tmp_path / name)}))


def test_wrong_shapes_are_refused(metrics: PieMetrics, scenes: Scenes):
    sources = gathered(metrics, scenes)
    with pytest.raises(ValueError, match=r"edits are torch.uint8 \[12, 3, 32, 32\]"):
        metrics.measure(sources, scenes.sources[..., :32, :32])
    with pytest.raises(ValueError, match=r"torch\.float32"):
        metrics.measure(sources, scenes.sources.float())
    with pytest.raises(ValueError, match="masks are"):
        metrics.sources(scenes.sources, scenes.masks[:, :, :32], scenes.source_prompts, scenes.target_prompts)
    with pytest.raises(ValueError, match="1 source prompts and 12 target prompts"):
        metrics.sources(scenes.sources, scenes.masks, ["a"], scenes.target_prompts)
