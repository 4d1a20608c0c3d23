"""Made edits: proposals, pairs of pictures from the same noise, CLIP's choice among them, and the stage as a whole."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from data.captioning.config import CaptionConfig
from data.captioning.engines import EngineConfig
from data.captioning.interface import NoAnswer
from data.captioning.stage import caption_folder
from data.captioning.tasks import CAPTION, DEFAULT_EDIT_PROMPT, propose
from data.captioning.tokens import TokenLimits
from data.edit_pairs import EditPairsConfig, main, make_edit_pairs
from data.edit_probe import main as probe_main
from data.inspection.checks import inspect_shards
from data.inspection.config import InspectConfig
from data.jobs.errors import ShardError
from data.pairs.config import FilterConfig, PairScores, SamplingConfig
from data.pairs.drawing import Candidate, PairSampler, draw_candidates
from data.pairs.proposals import Triplet, Written, make_triplets, read_answer, read_captions
from data.pairs.scores import score_pairs
from data.pictures import images
from data.scenes import write_scenes
from data.shards.sample import SampleInfo, key_of
from data.shards.shard import Drop, Origin, Sample, read_samples, read_sidecar, read_sidecars
from data.shards.stage import Unit, divide, run_stage
from data.world.captions import long_caption, read_caption
from data.world.edits import EDIT_KINDS, sample_edit
from data.world.render import render
from data.world.splits import sample_scene
from models.backbone import Backbone
from models.clip import ClipEmbeddings
from models.pictures import from_picture
from scripts.miniature.measure_pairs import measure_pairs
from scripts.miniature.proposer import PROMPT
from tests.processes import finish, kill_when, start, start_ranks
from tests.shard_folders import make_latents
from tests.test_stage_processes import contents
from train.heldout.probe import read_pairs

MINIATURE = Path("models/miniature")
TEACHER, CLIP, PROPOSER = (str(MINIATURE / name) for name in ("teacher", "clip", "proposer"))


def written_edits(count: int) -> list[dict[str, str]]:
    """Lines of a list: edits of scenes in words."""
    draw = np.random.default_rng(5)
    edits = [sample_edit(draw, EDIT_KINDS[5 + number % 4]) for number in range(count)]
    captions = [edit.captions() for edit in edits]
    return [
        {"caption": before, "instruction": edit.instruction, "target": after}
        for edit, (before, after) in zip(edits, captions, strict=True)
    ]


def write_list(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def triplet(row: dict[str, str], name: str = "a") -> Triplet:
    return Triplet(key_of(name), name, row["caption"], row["target"], row["instruction"])


# --- edits in words ------------------------------------------------------------------------------------------------


def test_captions_come_from_a_list_under_any_of_its_names(tmp_path):
    rows = [{"input": "a dog", "edit": "make it a cat", "output": "a cat"}, {"text": " a  hat\n"}]
    path = write_list(tmp_path / "list.jsonl", rows)
    assert read_captions(path, with_edits=False) == [Written("000000001", "a dog"), Written("000000002", "a hat")]
    human = write_list(tmp_path / "human.jsonl", rows[:1])
    assert read_captions(human, with_edits=True) == [Written("000000001", "a dog", "make it a cat", "a cat")]


def test_edits_are_no_captions(pairs):
    with pytest.raises(ShardError, match="holds edits already"):
        read_captions(pairs, with_edits=False)


def test_captions_come_from_shards(tmp_path):
    folder = make_latents(tmp_path / "shards", 5, unit_size=2)
    found = read_captions(folder, with_edits=False)
    expected = [SampleInfo.from_json(sample.members["json"]) for sample in samples(folder)]
    assert sorted((info.key, info.caption) for info in expected) == [(one.name, one.caption) for one in found]
    assert read_captions(folder, with_edits=False, count=2) == found[:2]
    with pytest.raises(ShardError, match="--engine existing takes edits that are written"):
        read_captions(folder, with_edits=True)


def test_a_caption_that_cannot_be_read_is_set_aside(tmp_path):
    folder = make_latents(tmp_path / "shards", 4, unit_size=2)
    sidecar = read_sidecar(folder / "unit-000000.json")
    offset, size = sidecar["members"]["json"][1]
    with (folder / "unit-000000.tar").open("r+b") as tar:
        tar.seek(offset)
        tar.write(b"?" * size)
    found = read_captions(folder, with_edits=False)
    assert [one.damage for one in found] == ["", "bad json", "", ""]
    made = make_triplets(found, None, PROMPT, TokenLimits.load(TEACHER))
    assert isinstance(made[1], Drop) and (made[1].source, made[1].kind) == (sidecar["keys"][1], "damage")
    config = replace(SMALL, engine="transformers", model=PROPOSER, prompt=PROMPT, max_new_tokens=8)
    with pytest.raises(ShardError, match=r"1 of 4 inputs are damaged .*bad json.* --max-damage 0\.05"):
        make_edit_pairs(folder, tmp_path / "out", config)
    assert sidecar["keys"][1] in (tmp_path / "out" / "quarantine.jsonl").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no captions"),
        ('{"caption": "a dog"}\n', "line 1 of .* has no instruction, target"),
        ('{"caption": 3, "instruction": "a", "target": "b"}\n', "line 1 of .* has no caption"),
        ("[1, 2]\n", "line 1 of .* has no caption, instruction, target"),
        ('{"caption": "a dog", "instruction": "b", "target": "c"}\nnonsense\n', "line 2 of .* is no JSON"),
    ],
)
def test_a_bad_list_says_where(tmp_path, text, message):
    path = tmp_path / "list.jsonl"
    path.write_text(text)
    with pytest.raises(ShardError, match=message):
        read_captions(path, with_edits=True)
    with pytest.raises(ShardError, match="not a folder of shards and not a list"):
        read_captions(tmp_path / "gone", with_edits=False)


@pytest.mark.parametrize(
    "answer",
    [
        "Instruction: make it a cat\nResult: a black cat",
        'Sure! Here is an edit:\n\n**Instruction:** "make it a cat"\n**Result:** "a black cat"\n\nI hope this helps!',
        "<think>Instruction: and Result: lines.</think>instruction: make it a cat  result: a black cat",
        "**Instruction**: make it a cat\n**Result**: a black cat",
        "1. Instruction: make it a cat\n2. Result: a black cat",
        "Instruction: make it a cat\n\nResult: a black cat\n\nCaption: a house\nInstruction: burn it",
    ],
)
def test_an_answer_is_read_in_spite_of_what_stands_around_it(answer):
    assert read_answer("a", answer) == ("make it a cat", "a black cat")


def test_the_word_result_may_stand_in_an_instruction():
    found = read_answer("a", "Instruction: make the result: sign blue\nResult: a blue sign")
    assert found == ("make the result: sign blue", "a blue sign")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I'm sorry, but I cannot edit pictures.", "proposal: refusal"),
        ("Instruction: make it a cat", "proposal: unreadable"),
        ("Result: a cat", "proposal: unreadable"),
        ("Instruction: \nResult: a cat", "proposal: unreadable"),
        ("", "proposal: unreadable"),
        (NoAnswer("time-out", "60 s"), "proposal: time-out"),
    ],
)
def test_an_answer_that_is_no_edit_is_left_out_with_its_reason(answer, reason):
    found = read_answer("a", answer)
    assert isinstance(found, Drop) and found.kind == "policy" and found.reason == reason


def test_an_edit_that_changes_nothing_or_is_not_read_to_its_end_is_left_out():
    limits = TokenLimits.load(TEACHER)
    long = " ".join(["a small red star"] * 30)
    rows = [Written("a", "a red star", "make it red", "A red star"), Written("b", "a star", "make it long", long)]
    found = make_triplets([*rows, Written("c", "a red star", "make it blue", "a blue star")], None, PROMPT, limits)
    assert [one.reason for one in found[:2]] == ["proposal: no change", "more than the backbone reads"]
    assert found[2] == Triplet(key_of("c"), "c", "a red star", "a blue star", "make it blue")


def test_the_prompt_shows_examples_and_takes_any_caption():
    class Echo:
        def answer(self, requests):
            return [request.text for request in requests]

    [asked] = propose(Echo(), ["a {strange} caption"])
    assert asked.endswith("Caption: a {strange} caption") and asked.count("Instruction:") == 4
    assert read_answer("a", asked.split("\n\n")[1]) == (
        "make the dog a fox",
        "a brown fox asleep on a green couch, a lamp behind it",
    )
    assert DEFAULT_EDIT_PROMPT.count(CAPTION) == 1


def test_the_miniature_proposes_edits_that_mean_what_they_say():
    """The instruction's word is what the result says of the attribute that changed, and little else changes."""
    draw = np.random.default_rng(11)
    captions = [sample_edit(draw, "change_colour").captions()[0] for _ in range(48)]
    engine = EngineConfig("transformers", model=PROPOSER, max_new_tokens=96, batch=48, temperature=1.0).load()
    found = make_triplets(
        [Written(f"{number:02d}", caption) for number, caption in enumerate(captions)],
        engine,
        PROMPT,
        TokenLimits.load(TEACHER),
    )
    triplets = [one for one in found if isinstance(one, Triplet)]
    assert len(triplets) >= 40
    assert len({one.instruction for one in triplets}) >= 25, "proposals of many kinds"
    swaps = [one for one in triplets if one.instruction.split()[0] in ("make", "change")]
    right = [_one_change_to(one) for one in swaps]
    assert len(swaps) >= 20 and np.mean(right) >= 0.85


def _one_change_to(one: Triplet) -> bool:
    before, after = read_caption(one.source), read_caption(one.target)
    changed = [name for name in after if after[name] != before[name]]
    return len(changed) == 1 and one.instruction.split()[-1] in one.target


def test_proposals_of_two_batches_are_drawn_anew():
    """The kinds of edits do not follow from where a caption stands among others."""
    engine = EngineConfig("transformers", model=PROPOSER, max_new_tokens=12, temperature=1.0, batch=24).load()
    captions = [long_caption(sample_scene("test", 3, index)) for index in range(48)]
    verbs = [
        [answer.split()[1] for answer in propose(engine, captions[start : start + 24], PROMPT)] for start in (0, 24)
    ]
    assert verbs[0] == [answer.split()[1] for answer in propose(engine, captions[:24], PROMPT)]
    ranks = [sorted(range(24), key=lambda row, part=part: len(captions[part + row])) for part in (0, 24)]
    same = [verbs[0][one] == verbs[1][other] for one, other in zip(*ranks, strict=True)]
    assert np.mean(same) < 0.7


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_draws_nearly_the_same(teacher, dtype):
    candidate = Candidate(triplet(written_edits(1)[0]), 0, 3.0, 0.5, 1)
    half = Backbone.load(TEACHER, dtype=getattr(torch, dtype))
    found, expected = (PairSampler(model, SamplingConfig(1, 2))([candidate]) for model in (half, teacher))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32 and (one - other).abs().mean() < 0.05


# --- pairs of pictures ---------------------------------------------------------------------------------------------


def test_candidates_follow_from_the_seed_and_span_the_range():
    config = SamplingConfig(candidates=5, guidance=(2.0, 4.0), self_share=(0.1, 0.9))
    one, other = (triplet(row, name) for row, name in zip(written_edits(2), "ab"))
    found = draw_candidates(one, config, seed=3)
    assert found == draw_candidates(one, config, seed=3)
    assert len({c.noise for c in [*found, *draw_candidates(one, config, 4), *draw_candidates(other, config, 3)]}) == 15
    edges = np.linspace(0.1, 0.9, 6)
    for candidate, low, high in zip(found, edges, edges[1:]):
        assert low <= candidate.self_share <= high and 2 <= candidate.guidance <= 4


@pytest.fixture(scope="module")
def teacher() -> Backbone:
    return Backbone.load(TEACHER)


def test_the_source_is_what_diffusers_samples(teacher):
    """With nothing shared both pictures are plain guided DDIM samples of their captions from the same noise."""
    sampler = PairSampler(teacher, SamplingConfig(1, num_steps=4))
    row = triplet(written_edits(1)[0])
    candidate = Candidate(row, 0, guidance=3.0, self_share=0.0, noise=17)
    before, after = sampler([candidate])
    stock = StableDiffusionPipeline.from_pretrained(TEACHER, torch_dtype=torch.float32)
    leading = {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config, **leading)
    stock.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(17))
    for picture, caption in ((before, row.source), (after, row.target)):
        expected = stock(caption, latents=noise, guidance_scale=3.0, num_inference_steps=4, output_type="pt").images
        torch.testing.assert_close((picture + 1) / 2, expected, atol=2e-3, rtol=0)


def test_a_batch_of_many_shares_is_what_its_pairs_are_alone(teacher):
    sampler = PairSampler(teacher, SamplingConfig(3, num_steps=4, cross_share=0.5))
    rows = [triplet(row, str(number)) for number, row in enumerate(written_edits(3))]
    candidates = [Candidate(row, 0, 2.0 + n, share, n) for n, (row, share) in enumerate(zip(rows, (0.0, 0.5, 1.0)))]
    together = sampler(candidates)
    for number, candidate in enumerate(candidates):
        for many, one in zip(together, sampler([candidate]), strict=True):
            torch.testing.assert_close(many[number], one[0], atol=1e-3, rtol=0)


def test_sharing_changes_the_edited_picture_alone(teacher):
    sampler = PairSampler(teacher, SamplingConfig(1, num_steps=4))
    row = triplet(written_edits(1)[0])
    alone, shared = (sampler([Candidate(row, 0, 3.0, share, 5)]) for share in (0.0, 1.0))
    torch.testing.assert_close(alone[0], shared[0], atol=1e-4, rtol=0)
    assert (alone[1] - shared[1]).abs().max() > 1e-2


# --- what is kept --------------------------------------------------------------------------------------------------


def test_scores_are_cosines_of_what_clip_gives():
    clip = ClipEmbeddings(CLIP)
    before, after = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rows = [triplet(row) for row in written_edits(3)]
    found = score_pairs(clip, before, after, rows)
    for number, (row, scores) in enumerate(zip(rows, found, strict=True)):
        pictures = [clip.embed_images(x[number : number + 1])[0].double().numpy() for x in (before, after)]
        words = [clip.embed([text])[0].double().numpy() for text in (row.source, row.target)]
        pictures, words = ([x / np.linalg.norm(x) for x in pair] for pair in (pictures, words))
        picture_change, word_change = pictures[1] - pictures[0], words[1] - words[0]
        length = np.linalg.norm(picture_change) * np.linalg.norm(word_change)
        expected = (pictures[0] @ pictures[1], pictures[0] @ words[0], pictures[1] @ words[1])
        measured = (scores.image_similarity, scores.source_similarity, scores.target_similarity, scores.direction)
        np.testing.assert_allclose(measured, (*expected, picture_change @ word_change / length), atol=2e-5)
    same = score_pairs(clip, before, before, rows)
    assert all(scores.direction == 0 and FilterConfig().failure(scores) for scores in same)


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        ({}, ""),
        ({"image_similarity": 0.69}, "pictures too different"),
        ({"source_similarity": 0.19}, "a picture unlike its caption"),
        ({"target_similarity": 0.19}, "a picture unlike its caption"),
        ({"direction": 0.19}, "another change than the captions'"),
        ({"direction": float("nan")}, "another change than the captions'"),
    ],
)
def test_the_thresholds_are_those_of_the_original_code(change, failure):
    assert FilterConfig().failure(replace(PairScores(0.7, 0.2, 0.2, 0.2), **change)) == failure


# --- the stage -----------------------------------------------------------------------------------------------------

SMALL = EditPairsConfig(
    backbone=TEACHER,
    backbone_dtype="float32",
    clip=CLIP,
    sampling=SamplingConfig(candidates=3, num_steps=3, guidance=(3.0, 3.0)),
    filter=FilterConfig(min_direction=0.0, min_image_similarity=0.0, keep=2),
    pairs_at_once=4,
    pictures="png",
    unit_size=2,
)
OPTIONS = (
    *("--engine=existing", f"--backbone={TEACHER}", "--backbone_dtype=float32", f"--clip={CLIP}"),
    *("--sampling.candidates=3", "--sampling.num-steps=3", "--sampling.guidance=[3,3]", "--filter.min_direction=0"),
    *("--filter.min_image_similarity=0", "--filter.keep=2", "--pairs-at-once=4", "--pictures=png", "--unit-size=2"),
)


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_list(tmp_path_factory.mktemp("edits") / "edits.jsonl", written_edits(5))


@pytest.fixture(scope="module")
def pairs(edits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "out"
    make_edit_pairs(edits, folder, SMALL)
    return folder


def samples(folder: Path) -> list[Sample]:
    return [s for sidecar in read_sidecars(folder).values() for s in read_samples(folder, sidecar) if sidecar["count"]]


def test_a_pair_holds_both_pictures_the_instruction_and_its_scores(pairs, edits):
    rows = [json.loads(line) for line in edits.read_text().splitlines()]
    found = samples(pairs)
    assert len(read_sidecars(pairs)) == 3 and 5 <= len(found) <= 10
    clip = ClipEmbeddings(CLIP)
    for sample in found:
        info = SampleInfo.from_json(sample.members["json"])
        row = rows[int(info.source) - 1]
        assert info.caption == row["instruction"]
        assert (info.extra["source_caption"], info.extra["target_caption"]) == (row["caption"], row["target"])
        before, after = (from_picture(images.decode(sample.members[name]))[None] for name in ("source.png", "png"))
        [again] = score_pairs(clip, before, after, [triplet(row)])
        assert again.direction == pytest.approx(info.checks["direction"], abs=0.02)
        assert again.image_similarity == pytest.approx(info.checks["image_similarity"], abs=0.01)


def test_the_folder_is_ready_for_training_and_counts_captions(pairs):
    found = inspect_shards(pairs, InspectConfig(backbone=TEACHER))
    assert found.verdict.startswith("Ready") and found.contents.num_inputs == 5
    assert all(card.info.caption for card in found.sampled.cards)


def test_pairs_of_scenes_are_read_back(pairs, tmp_path):
    """True edits, stored as pairs, are found to be done and to keep the rest."""
    found = measure_pairs(pairs)["all"]
    assert found["done"]["n"] == len(samples(pairs)) and 0 <= found["done"]["mean"] <= 1
    draw = np.random.default_rng(0)
    edits = [sample_edit(draw, kind) for kind in EDIT_KINDS[5:]]

    def true_pairs(unit: Unit) -> Iterator[Sample]:
        for number, edit in zip(unit.items, edits, strict=True):
            before, after = (
                images.encode(Image.fromarray(render(scene)), True)[1] for scene in (edit.source, edit.target)
            )
            info = SampleInfo(f"e-{number}", edit.instruction, "", (64, 64), (0, 0, 64, 64), "", str(number))
            info = replace(info, extra=dict(zip(("source_caption", "target_caption"), edit.captions(), strict=True)))
            yield Sample(info.key, {"json": info.to_json(), "png": after, "source.png": before})

    names = [str(number) for number in range(len(edits))]
    run_stage(divide(names, names, len(names)), tmp_path / "true", true_pairs, Origin("edit_pairs", {}, {}), 0)
    true = measure_pairs(tmp_path / "true")["all"]
    assert true["done"]["mean"] == 1 and true["kept"]["mean"] == 1


def test_the_best_of_the_candidates_are_kept(edits, pairs, tmp_path):
    make_edit_pairs(edits, tmp_path / "all", replace(SMALL, filter=replace(SMALL.filter, keep=3)))

    def directions(folder: Path) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for sample in samples(folder):
            info = SampleInfo.from_json(sample.members["json"])
            found.setdefault(info.source, []).append(info.checks["direction"])
        return found

    kept, everything = directions(pairs), directions(tmp_path / "all")
    assert kept == {name: sorted(values, reverse=True)[:2] for name, values in everything.items()}


def test_a_caption_without_a_good_pair_is_counted(edits, tmp_path):
    with pytest.raises(ShardError, match=r"no sample is left of 5 inputs.*no pair: another change"):
        make_edit_pairs(edits, tmp_path, replace(SMALL, filter=replace(SMALL.filter, min_direction=1.0)))
    drops = [drop for sidecar in read_sidecars(tmp_path).values() for drop in sidecar["dropped"]]
    assert len(drops) == 5 and all(drop["kind"] == "policy" for drop in drops)


def test_a_killed_stage_goes_on_to_the_same_shards(edits, pairs, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(pairs, folder)
    for name in ("unit-000001.tar", "unit-000001.json", "manifest.json"):
        (folder / name).unlink()
    make_edit_pairs(edits, folder, SMALL)
    assert contents(folder) == contents(pairs)


def test_two_processes_make_the_shards_of_one_though_one_is_killed(edits, pairs, tmp_path):
    out = tmp_path / "out"
    finish(start_ranks(2, "-m", "data.edit_pairs", edits, out, *OPTIONS))
    assert contents(out) == contents(pairs)
    shutil.rmtree(out)
    killed, other = (start("-m", "data.edit_pairs", edits, out, *OPTIONS) for _ in range(2))
    kill_when(lambda: list(out.glob("unit-*.json")) != [], killed)
    other.finished()
    found = {name: digest for name, digest in contents(out).items() if not name.endswith(".tmp")}  # the killed one's
    assert found == contents(pairs)


def test_an_engine_proposes_where_the_list_has_captions_alone(tmp_path):
    captions = write_list(tmp_path / "captions.jsonl", [{"caption": row["caption"]} for row in written_edits(3)])
    config = replace(
        SMALL, engine="transformers", model=PROPOSER, prompt=PROMPT, max_new_tokens=96, sampling=SamplingConfig(1, 2)
    )
    make_edit_pairs(captions, tmp_path / "out", replace(config, filter=FilterConfig(-1, -1, -1)))
    sidecar = read_sidecar(tmp_path / "out" / "unit-000000.json")
    assert sidecar["config"]["prompt"] == PROMPT and sidecar["config"]["model"] == "proposer"
    found = {SampleInfo.from_json(s.members["json"]).caption for s in samples(tmp_path / "out")}
    engine = EngineConfig("transformers", model=PROPOSER, max_new_tokens=96, temperature=0.7).load()
    written = read_captions(captions, with_edits=False)
    triplets = [
        one
        for part in (written[:2], written[2:])  # a unit is asked about together
        for one in make_triplets(part, engine, PROMPT, TokenLimits.load(TEACHER))
    ]
    assert found and found == {one.instruction for one in triplets if isinstance(one, Triplet)}
    with pytest.raises(ShardError, match=r"sampling\.num_steps: 2 -> 3"):
        changed = replace(config, filter=FilterConfig(-1, -1, -1), sampling=SamplingConfig(1, 3))
        make_edit_pairs(captions, tmp_path / "out", changed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--engine=transformers",), "--engine transformers needs --model"),
        (("--prompt=propose something",), "--prompt does not hold {caption}"),
        (("--captions=0",), "--captions is 0"),
        (("--sampling.self_share=[0.9,0.1]",), "self_share"),
        (("--sampling.guidance=[0,3]",), "guidance"),
        (("--filter.keep=0",), "keep"),
        (("--filter.min_direction=2",), "min_direction"),
    ],
)
def test_wrong_options_are_refused(edits, tmp_path, options, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(edits), str(tmp_path / "out"), *OPTIONS, *options])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--backbone=models/miniature/clip",), "--backbone models/miniature/clip has no tokenizer"),
        (("--backbone=models/miniature/student",), "has two text encoders (SDXL)"),
        (("--clip=models/miniature/teacher",), "--clip models/miniature/teacher cannot be loaded"),
        (("--sampling.num_steps=2000",), "num_steps is 2000"),
    ],
)
def test_wrong_models_end_with_a_message(edits, tmp_path, options, message):
    with pytest.raises(SystemExit) as stopped:
        main([str(edits), str(tmp_path / "out"), *OPTIONS, *options])
    assert message in str(stopped.value.code)


def test_the_configs_say_what_the_code_does():
    official, miniature = (
        yaml.safe_load(Path(f"configs/edit_pairs/{name}.yaml").read_text()) for name in ("sd15", "miniature")
    )
    assert official["prompt"] == DEFAULT_EDIT_PROMPT and miniature["prompt"] == PROMPT
    assert official["filter"] == vars(FilterConfig())
    drawn = {name: tuple(x) if isinstance(x, list) else x for name, x in official["sampling"].items()}
    assert drawn == vars(SamplingConfig())


def test_a_probe_is_proposed_once_and_read_by_a_training(edits: Path, tmp_path: Path, capsys):
    scenes, shards, out = tmp_path / "scenes", tmp_path / "shards", tmp_path / "new" / "probe.jsonl"
    write_scenes(scenes, num=6, captions="long")
    caption_folder(scenes, shards, CaptionConfig(resolution=64))
    options = ["--model", PROPOSER, "--prompt", PROMPT, "--backbone", TEACHER, "--num", "4", "--max_new_tokens", "96"]
    probe_main([str(shards), str(out), *options])
    pairs, captions = read_pairs(out), {one.name: one.caption for one in read_captions(shards, with_edits=False)}
    assert 1 <= len(pairs) <= 4
    for key, row in pairs.items():
        assert row["caption"] == captions[key] and row["target"] != row["caption"] and row["instruction"]
    for wrong, message in {
        (str(shards), str(out), *options): "is there already and is kept",
        (str(shards), str(tmp_path / "probe.txt"), *options): "expected a file that ends in .jsonl",
        (str(shards), str(tmp_path / "a.jsonl"), "--engine", "existing"): "--engine existing writes nothing",
        (str(edits), str(tmp_path / "b.jsonl"), *options): "is not a folder of shards",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            probe_main(wrong)
        assert message in f"{stopped.value} {capsys.readouterr().err}"
