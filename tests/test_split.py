"""data.split: what belongs together lies on one side, both sides are shards as any others, and kills lose nothing."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.encode import EncodeConfig, encode_shards
from data.inspection.checks import inspect_shards
from data.inspection.config import InspectConfig
from data.jobs.errors import ShardError
from data.shards.dataset import ShardDataset
from data.shards.origins import check_latents, check_prompts
from data.shards.shard import file_digest, read_manifest, read_samples, read_sidecars
from data.shards.sides import Placed, SplitConfig, divide_sides, group
from data.split import main, split_shards
from models.backbone import Backbone
from models.fingerprints import text_fingerprint
from tests.processes import kill_when, run, start
from tests.shard_folders import make_latents, make_pairs

SIDES = ("train", "validation")


def placed(*sources: str, content: str = "") -> list[Placed]:
    """Samples of files of other contents each, unless one is given."""
    return [Placed("unit-000000", row, content or f"{row:064x}", source) for row, source in enumerate(sources)]


def members(folder: Path) -> dict[str, dict[str, bytes]]:
    """The members of all samples of a finished folder by key."""
    read_manifest(folder)
    found = [s for sidecar in read_sidecars(folder).values() for s in read_samples(folder, sidecar)]
    return {sample.key: dict(sample.members) for sample in found}


def infos(folder: Path) -> dict[str, dict]:
    return {key: json.loads(sample["json"]) for key, sample in members(folder).items()}


@pytest.mark.parametrize(
    "names",
    [
        ("x/a.jpg", "x/a-1.jpg", "x/a_2.png", "x/a (3).jpg", "x/a_edited-2.jpg", "x/a.webp", "x/a.orig.jpg"),
        ("00000.tar/17.05.png", "00000.tar/17.05~2.png"),
        ("caption-0", "caption-0"),
    ],
)
def test_files_named_after_another_belong_to_it(names: tuple[str, ...]):
    assert group(placed(*names)) == [0] * len(names)


def test_running_numbers_and_names_of_other_folders_stay_apart():
    names = ["IMG_0001.jpg", "IMG_0002.jpg", "x/a.jpg", "y/a-1.jpg", "x/ab.jpg", "caption-0", "caption-1", "-a.jpg"]
    assert group(placed(*names)) == list(range(len(names)))


def test_equal_contents_and_what_a_pattern_finds_stay_together_across_each_other():
    samples = placed("x/0.jpg", "x/1.jpg", "y/0.jpg", "z/7.jpg")
    samples[3] = Placed("unit-000001", 0, samples[1].content, "z/7.jpg")
    assert group(samples) == [0, 1, 2, 1]
    assert group(samples, r"(.*)/") == [0, 0, 2, 0]
    assert group(samples, r"^x") == [0, 0, 2, 0]
    with pytest.raises(ShardError, match=r"--together 'q/' is found in none of the sources, such as x/0.jpg"):
        group(samples, "q/")


def test_a_picture_keeps_its_side_when_others_come():
    config = SplitConfig(validation=0.25)
    few, many = (divide_sides(placed(*(f"{n}.png" for n in range(count))), config) for count in (200, 1_000))
    assert {s.source for s in few.validation} == {s.source for s in many.validation if int(s.source[:-4]) < 200}
    assert 200 < len(many.validation) < 300
    other = divide_sides(placed(*(f"{n}.png" for n in range(200))), SplitConfig(0.25, seed=1))
    assert {s.source for s in other.validation} != {s.source for s in few.validation}


def test_a_number_of_samples_is_met_and_what_cannot_be_read_is_never_held_out():
    samples = [*placed(*(f"{n}.png" for n in range(50))), Placed("unit-000001", 0, "", "")]
    for number in (1, 7, 50):
        found = divide_sides(samples, SplitConfig(number))
        assert (len(found.validation), len(found.train)) == (number, 51 - number)
        assert samples[-1] in found.train
    with pytest.raises(ShardError, match="--validation 1 of 3 samples, 3 of which have to stay together, leaves"):
        divide_sides(placed("a", "b", "c", content="0"), SplitConfig(1))
    with pytest.raises(ShardError, match="--validation 3 of 3 samples leaves the training side empty"):
        divide_sides(placed("a", "b", "c"), SplitConfig(3))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--validation=0"], "--validation is 0, expected a share between 0 and 1"),
        (["--validation=1.5"], "--validation is 1.5"),
        (["--validation=-1"], "--validation is -1"),
        (["--validation=nan"], "--validation is nan"),
        (["--validation=inf"], "--validation is inf"),
        (["--together=("], r"--together is '(', which is no regular expression"),
        (["--seed=-1"], "--seed is -1, expected at least 0"),
    ],
)
def test_options_that_mean_nothing_are_told(options: list[str], told: str, tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), str(tmp_path / "out"), *options])
    assert ended.value.code == 2 and told in capsys.readouterr().err


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captioned shards of pictures of two shapes; each has a further file named after it."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    (folder / "in").mkdir()
    for number in range(12):
        side = (96, 64) if number % 2 else (64, 64)
        for name in (f"photo{number}", f"photo{number}-1"):
            Image.fromarray(draw.integers(0, 256, (*side, 3), np.uint8)).save(folder / f"in/{name}.png")
            (folder / f"in/{name}.txt").write_text(f"picture {name}")
    config = CaptionConfig(resolution=64, min_size=64, unit_size=5, shapes="buckets")
    caption_folder(folder / "in", folder / "shards", config)
    return folder / "shards"


def test_sides_of_captioned_and_encoded_shards_are_shards_alike(pictures: Path, tiny_backbone: str, tmp_path: Path):
    encode_shards(pictures, tmp_path / "latents", EncodeConfig(tiny_backbone, prompts=True))
    config = SplitConfig(validation=0.3, seed=2)
    split_shards(tmp_path / "latents", tmp_path / "after", config)
    split_shards(pictures, tmp_path / "before", config)
    whole = members(tmp_path / "latents")
    sides = [members(tmp_path / "after" / name) for name in SIDES]
    assert sides[0] | sides[1] == whole and not sides[0].keys() & sides[1].keys() and all(sides)
    names = [{re.sub("-1?$", "", key[:-12]) for key in side} for side in sides]  # key_of ends in a digest
    assert not names[0] & names[1]
    backbone = Backbone.load(tiny_backbone)
    for name, side in zip(SIDES, sides):
        assert members(tmp_path / "before" / name).keys() == side.keys()
        dataset = ShardDataset(tmp_path / "after" / name, ("latent", "prompt"))
        check_latents(dataset, backbone)
        check_prompts(dataset, text_fingerprint(backbone))
        found = inspect_shards(tmp_path / "after" / name, InspectConfig(backbone=tiny_backbone))
        assert found.verdict == "Ready" and found.contents.count == len(side)
        encode_shards(tmp_path / "before" / name, tmp_path / name, EncodeConfig(tiny_backbone, prompts=True))
        assert members(tmp_path / name) == side
    assert len(ShardDataset(tmp_path / "after/train").buckets) == 2


def test_pairs_of_one_caption_lie_on_one_side(tmp_path: Path):
    shards = make_pairs(tmp_path / "pairs", 24, 6)
    split_shards(shards, tmp_path / "out", SplitConfig(6))
    train, validation = ({info["source"] for info in infos(tmp_path / "out" / name).values()} for name in SIDES)
    assert len(train) == 9 and len(validation) == 3 and not train & validation
    before, *after = (read_manifest(folder) for folder in (shards, *(tmp_path / "out" / name for name in SIDES)))
    assert all(side["stage"] == "edit_pairs" and side["properties"] == before["properties"] for side in after)
    noted = [manifest["checks"]["direction"] for manifest in (before, *after)]
    assert [figures["count"] for figures in noted] == [24, 18, 6]
    assert noted[0]["sum"] == pytest.approx(noted[1]["sum"] + noted[2]["sum"])


def test_a_side_can_be_split_again(tmp_path: Path):
    split_shards(make_latents(tmp_path / "shards", 30, 8), tmp_path / "one", SplitConfig(10))
    split_shards(tmp_path / "one/train", tmp_path / "two", SplitConfig(5, seed=1))
    assert len(members(tmp_path / "two/train")) == 15
    assert read_manifest(tmp_path / "two/train")["config"]["split"]["of"]["validation"] == 10


def test_another_split_or_other_things_in_the_folder_are_refused(tmp_path: Path):
    shards, out = make_latents(tmp_path / "shards", 30, 8), tmp_path / "out"
    split_shards(shards, out, SplitConfig(10))
    kept = {path: file_digest(path) for path in out.rglob("*.*")}
    with pytest.raises(ShardError, match=r"made with another config:\n  split.validation: 10 -> 5"):
        split_shards(shards, out, SplitConfig(5))
    with pytest.raises(ShardError, match=r"the input of unit-\d+ in .*/out/train has changed"):
        split_shards(make_latents(tmp_path / "more", 40, 8), out, SplitConfig(10))
    with pytest.raises(ShardError, match="is a side of OUT itself"):
        split_shards(out / "train", out, SplitConfig(5))
    assert {path: file_digest(path) for path in out.rglob("*.*")} == kept
    (tmp_path / "full/validation").mkdir(parents=True)
    (tmp_path / "full/validation/cat.jpg").write_bytes(b"")
    with pytest.raises(ShardError, match=r"full/validation holds other things already, such as cat.jpg"):
        split_shards(shards, tmp_path / "full", SplitConfig(10))
    assert not (tmp_path / "full/train").exists()
    with pytest.raises(ShardError, match="no folder of shards"):
        split_shards(tmp_path / "none", tmp_path / "new", SplitConfig(10))


def test_what_is_damaged_is_listed_and_too_much_of_it_stops_the_split(tmp_path: Path):
    shards = make_latents(tmp_path / "shards", 30, 10)
    content = bytearray((shards / "unit-000001.tar").read_bytes())
    content[512:520] = b"[broken]"  # the first KEY.json
    (shards / "unit-000001.tar").write_bytes(content)
    with pytest.raises(ShardError, match=r"1 of 20 inputs are damaged .*bad json.*more than --max-damage 0;"):
        split_shards(shards, tmp_path / "strict", SplitConfig(10, max_damage=0))
    split_shards(shards, tmp_path / "out", SplitConfig(10))
    (line,) = (tmp_path / "out/train/quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "bad json"
    assert len(members(tmp_path / "out/train")) == 19 and len(members(tmp_path / "out/validation")) == 10


def test_a_killed_split_goes_on_and_ends_as_an_undisturbed_one(tmp_path: Path):
    shards = make_latents(tmp_path / "shards", 160, 4)
    words = ("-m", "data.split", shards, tmp_path / "killed", "--validation", "0.3")
    split_shards(shards, tmp_path / "whole", SplitConfig(0.3))
    sidecars = tmp_path / "killed/train"
    kill_when(lambda: len(list(sidecars.glob("unit-*.json"))) > 2, start(*words))
    assert not (tmp_path / "killed/validation").exists()
    with pytest.raises(ShardError, match="its stage has not finished"):
        read_manifest(sidecars)
    run(*words)
    for name in SIDES:
        whole, killed = (
            {path.name: file_digest(path) for path in (tmp_path / way / name).glob("[!.]*")}
            for way in ("whole", "killed")
        )
        assert killed == whole
