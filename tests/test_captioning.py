"""The maker of captions: what it keeps, drops and counts, with captions that are there and with a tiny LLaVA's."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.caption import main
from data.captioning.config import CaptioningConfig
from data.captioning.maker import Caption, CaptionMaker, Rejected
from data.captioning.tasks import rewrite
from data.inspect import main as inspect
from data.jobs.errors import CaptionerError
from data.scenes import write_scenes
from data.shards.dataset import ShardDataset
from data.world.captions import read_caption
from data.world.description import attribute_targets
from data.world.render import render
from data.world.splits import sample_scene
from tests.test_caption_checks import GOOD
from tests.tiny_llava import save_tiny_llava

STUDENT = "models/miniature/student"
MINIATURE = Path("models/miniature/llava")


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)) for _ in range(count)]


def of_existing(*texts: str | None, **options: object) -> list[Caption | Rejected]:
    return CaptionMaker(CaptioningConfig(**options)).captions(pictures(len(texts)), texts)


@pytest.fixture(scope="module")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_llava(tmp_path_factory.mktemp("tiny_llava"))


# --- captions that are there -------------------------------------------------------------------------------------


def test_existing_captions_stay_as_they_are():
    found = of_existing("  The image features\n a cat ", "I'm sorry, I cannot do that.", "no " * 9, None, " \n")
    assert found == [
        Caption("The image features a cat", "  The image features\n a cat "),
        Caption("I'm sorry, I cannot do that.", "I'm sorry, I cannot do that."),
        Caption("no " * 8 + "no", "no " * 9),
        Rejected("no caption"),
        Rejected("empty caption"),
    ]


def test_existing_captions_are_cleaned_on_request():
    texts = (
        "  The image features\n a cat ",
        "I'm sorry, I cannot do that.",
        "no " * 9,
        None,
        " \n",
        "The image shows .",
    )
    assert of_existing(*texts, clean=True) == [
        Caption("a cat".capitalize(), texts[0], {"opening_stripped": "The image features"}),
        Rejected("refusal", texts[1]),
        Rejected("repetition", "no"),
        Rejected("no caption"),
        Rejected("empty caption", " \n"),
        Rejected("empty caption", texts[5]),
    ]


def test_tokens_are_counted_for_a_backbone():
    short, long = of_existing("a large red star", f"The image features {GOOD[0]}", backbone=STUDENT, clean=True)
    assert isinstance(short, Caption) and isinstance(long, Caption)
    assert short.checks == {"tokens_raw": [4, 4], "tokens": [4, 4], "truncated_raw": False, "truncated": False}
    assert long.checks["truncated_raw"] and long.checks["truncated"]
    assert all(a > b > 46 for a, b in zip(long.checks["tokens_raw"], long.checks["tokens"]))
    json.dumps(long.checks)


# --- captions of an engine ---------------------------------------------------------------------------------------


def test_a_model_writes_captions(tiny_llava):
    config = CaptioningConfig("transformers", model=tiny_llava, prompt="describe", max_new_tokens=20, clean=False)
    maker = CaptionMaker(config)
    found = maker.captions(pictures(3), [None, "there is one", ""])
    assert all(isinstance(one, Caption) and one.text and not one.checks for one in found)
    assert len({one.text for one in found if isinstance(one, Caption)}) == 3
    assert maker.batch == 64 and maker.packages == ("torch", "transformers")
    keeping = CaptionMaker(CaptioningConfig(**{**vars(config), "keep_existing": True}))
    kept = keeping.captions(pictures(3), [None, "there is one", ""])
    assert kept == [found[0], Caption("there is one", "there is one"), found[2]]


def test_long_captions_of_a_model_are_made_to_fit(tiny_llava):
    maker = CaptionMaker(
        CaptioningConfig(
            "transformers", model=tiny_llava, prompt="describe", max_new_tokens=80, clean=False, backbone=STUDENT
        )
    )
    found = maker.captions(pictures(4), [None] * 4)  # noise, which the model cannot shorten either
    long = [one for one in found if isinstance(one, Caption) and one.checks["truncated_raw"]]
    assert long and all(one.text for one in long)
    for one in long:
        assert max(one.checks["tokens"]) <= 46 < max(one.checks["tokens_raw"]) and not one.checks["truncated"]
        assert one.checks["condensed"] == 3 or "cut" not in one.checks
    # Where not even the first word fits, nothing is left.
    assert {one.reason for one in found if isinstance(one, Rejected)} <= {"empty caption"}


def test_the_identity_follows_what_decides_the_captions(tiny_llava):
    server = {"engine": "server", "model": "llava", "server": "http://127.0.0.1:1/v1"}
    local = {"engine": "transformers", "model": tiny_llava}
    configs: list[dict] = [
        {},
        {"clean": True},
        {"backbone": STUDENT},
        server,
        {**server, "model": "other"},
        {**server, "prompt": "describe"},
        {**server, "max_new_tokens": 100},
        {**server, "temperature": 0.5},
        {**server, "temperature": 0.5, "sampling_seed": 1},
        {**server, "keep_existing": True},
        {**server, "backbone": STUDENT},
        {**server, "backbone": STUDENT, "condense": False},
        local,
        {**local, "dtype": "bfloat16"},
    ]
    identities = [CaptionMaker(CaptioningConfig(**config)).identity() for config in configs]
    assert len({json.dumps(identity, sort_keys=True) for identity in identities}) == len(configs)
    assert all(not isinstance(value, dict | list) for identity in identities for value in identity.values())
    same = {**server, "server": "http://127.0.0.1:2/v1", "in_flight": 3, "sampling_seed": 5, "timeout_sec": 3.0}
    assert CaptionMaker(CaptioningConfig(**same)).identity() == CaptionMaker(CaptioningConfig(**server)).identity()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "transformers"}, "--engine transformers needs --model: its folder or hub id"),
        ({"engine": "server"}, "--engine server needs --model: the name under which it is served"),
        ({"model": "llava"}, "--engine existing asks no model"),
        ({"condense": True, "backbone": STUDENT}, "--condense true needs an engine"),
        ({"engine": "server", "model": "llava", "condense": True}, "--condense true needs --backbone"),
        ({"engine": "server", "model": "llava", "server": "localhost:8000"}, "expected a URL such as"),
        ({"engine": "server", "model": "llava", "in_flight": 0}, "--in_flight is 0, expected more than 0"),
        ({"engine": "server", "model": "llava", "api_key_env": "NO_SUCH_KEY"}, "--api_key_env is NO_SUCH_KEY"),
        ({"engine": "server", "model": "llava", "prompt": " "}, "--prompt is empty"),
        ({"max_new_tokens": 0}, "--max_new_tokens is 0"),
        ({"temperature": -1.0}, "--temperature is -1"),
        ({"top_p": 0.0}, "--top_p is 0"),
    ],
)
def test_wrong_options_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        CaptioningConfig(**options)


def test_nothing_to_write_with_and_missing_parts_are_named(tmp_path):
    with pytest.raises(ValueError, match="--engine existing writes nothing"):
        CaptionMaker(CaptioningConfig()).captioner()
    with pytest.raises(CaptionerError, match=r"--backbone .* has no tokenizer"):
        CaptionMaker(CaptioningConfig(backbone=str(tmp_path))).identity()
    maker = CaptionMaker(CaptioningConfig("transformers", model=str(tmp_path / "gone")))
    with pytest.raises(CaptionerError, match=r"cannot load .*gone"):
        maker.captions(pictures(1), [None])


def test_the_miniature_describes_condenses_and_rewrites():
    scenes = [sample_scene("test", 1, index) for index in range(24)]
    rendered = [Image.fromarray(render(scene)) for scene in scenes]
    maker = CaptionMaker(CaptioningConfig("transformers", model=str(MINIATURE), backbone=STUDENT))
    found = maker.captions(rendered, [None] * len(scenes))
    captions = [one for one in found if isinstance(one, Caption)]
    assert len(captions) == len(scenes)
    assert all(one.checks["opening_stripped"] == "The image features" for one in captions)
    assert all(not one.checks["truncated"] and "cut" not in one.checks for one in captions)
    assert any(one.checks["truncated_raw"] and one.checks["condensed"] == 1 for one in captions)
    said = [(read_caption(one.text), attribute_targets(scene)) for one, scene in zip(captions, scenes)]
    right = [reads[name] == value for reads, targets in said for name, value in targets.items() if value >= 0]
    assert sum(right) > 0.9 * len(right)
    assert rewrite(
        maker.captioner(), ["a red star and a blue circle on a brick wall"], ["change the background to sky"]
    ) == ["a red star and a blue circle in the sky"]


# --- the command -------------------------------------------------------------------------------------------------


def test_scenes_captioned_by_the_miniature_pass_the_inspection(tmp_path, capsys):
    write_scenes(tmp_path / "scenes", num=8)
    model = ["--engine", "transformers", "--model", str(MINIATURE), "--backbone", STUDENT]
    size = ["--resolution", "64", "--min-size", "64"]
    main([str(tmp_path / "scenes"), str(tmp_path / "out"), *model, *size])
    inspect([str(tmp_path / "out"), "--backbone", STUDENT])
    page = (tmp_path / "out" / "inspection" / "index.html").read_text()
    assert "The image features" in page and "opening stripped" in page and "truncated raw" in page
    capsys.readouterr()
    inspect([str(tmp_path / "out"), "--backbone", "models/miniature/teacher"])  # one of the two equal ones
    assert "other tokenizers" not in capsys.readouterr().out


def test_the_command_captions_a_folder_with_a_model(tmp_path, tiny_llava):
    (tmp_path / "in").mkdir()
    for number, picture in enumerate(pictures(3)):
        picture.save(tmp_path / f"in/{number}.png")
    config = tmp_path / "caption.yaml"
    config.write_text("engine: transformers\nmax_new_tokens: 20\nresolution: 40\nclean: false\ndevice: cpu\n")
    words = [str(tmp_path / "in"), str(tmp_path / "out"), "--config", str(config), "--model", tiny_llava]
    main([*words, "--backbone", STUDENT])
    dataset = ShardDataset(tmp_path / "out", ("caption", "info"))
    samples = [dataset[number] for number in range(len(dataset))]
    expected = CaptionMaker(
        CaptioningConfig("transformers", model=tiny_llava, max_new_tokens=20, clean=False, backbone=STUDENT)
    ).captions(pictures(3), [None] * 3)
    assert [sample["caption"] for sample in samples] == [one.text for one in expected if isinstance(one, Caption)]
    assert [sample["info"]["checks"] for sample in samples] == [
        one.checks for one in expected if isinstance(one, Caption)
    ]


def test_the_shipped_configs_are_read(tmp_path, capsys):
    for path in sorted(Path("configs/caption").glob("*.yaml")):
        with pytest.raises(SystemExit) as ended:
            main([str(tmp_path), str(tmp_path / "out"), "--config", str(path), "--print_config"])
        assert not ended.value.code
        assert "backbone: stabilityai/sdxl-turbo" in capsys.readouterr().out
