"""The card of an export: what the hub takes, what readers need, and nothing of the machine that made it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from tests.exported_runs import STEPS
from tests.hub_server import complaints
from tests.tiny_training import tiny_config
from train.exports.base import Base
from train.method import Storage, TrainedWeights
from train.methods.turboedit import METHOD
from train.model_card import model_card


@pytest.fixture(scope="module")
def card(turboedit_export: Path) -> str:
    return (turboedit_export / "README.md").read_text()


def card_on(base: Base, root: Path) -> str:
    """The card of a run that is not there, on a base."""
    weights = TrainedWeights(tiny_config(root / "gone", root / "run"), STEPS, {}, averaged=True)
    given: dict[str, Any] = dict(base=base, last={"loss": 0.5}, storage=Storage("float16"))
    return model_card("# Of {{ base }}\n", METHOD.export(), weights, **given)


def of_folder(folder: Path, header: str, hub_id: str | None = None) -> Base:
    """The base in a folder whose card has this header."""
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text(f"---\n{header}\n---\n# A model\n")
    return Base.of(str(folder), hub_id)


TURBO = {
    "license": "other",
    "license_name": "sai-nc-community",
    "license_link": "https://huggingface.co/stabilityai/sdxl-turbo/blob/main/LICENSE.md",
}


def test_sdxl_turbos_licence_is_named_where_its_card_cannot_be_read(tmp_path: Path):
    header = ModelCard(card_on(Base.of("stabilityai/sdxl-turbo"), tmp_path)).data.to_dict()
    assert {name: header[name] for name in TURBO} == TURBO
    assert header["base_model"] == "stabilityai/sdxl-turbo"


@pytest.mark.parametrize(
    ("header", "hub_id", "expected"),
    [
        ("license: openrail++", None, {"license": "openrail++"}),
        ("license: [openrail++]", None, {"license": "openrail++"}),
        ("language: en", None, {"license": "unknown"}),
        ("license: sai-nc-community", None, {"license": "other", "license_name": "sai-nc-community"}),
        ("license: other", None, {"license": "other", "license_name": "that of base"}),
        (
            "license: other\nlicense_name: sai-nc-community\nlicense_link: LICENSE.md",
            None,
            {"license": "other", "license_name": "sai-nc-community"},
        ),
        (
            "license: other\nlicense_name: sai-nc-community\nlicense_link: LICENSE.md",
            "stabilityai/sdxl-turbo",
            TURBO | {"base_model": "stabilityai/sdxl-turbo"},
        ),
        (
            "license: other\nlicense_name: own\nlicense_link: https://example.com/own",
            None,
            {"license": "other", "license_name": "own", "license_link": "https://example.com/own"},
        ),
    ],
)
def test_the_header_names_the_bases_licence_as_the_hub_takes_it(
    tmp_path: Path, header: str, hub_id: str | None, expected: dict[str, str]
):
    text = card_on(of_folder(tmp_path / "base", header, hub_id), tmp_path)
    found = ModelCard(text).data.to_dict()
    assert found == {
        "library_name": "diffusers",
        "pipeline_tag": "image-to-image",
        "tags": ["image-editing", "inversion"],
        **expected,
    }
    assert complaints(text) == []
    name = expected.get("license_name", expected["license"])
    assert f"licence ({name}) applies" in text and f"# Of {hub_id or 'base'}\n" in text


def test_a_base_that_is_no_hub_id_is_a_clear_error(tmp_path: Path):
    with pytest.raises(ValueError, match=r"--base '/x/y' is no hub id: expected one such as stabilityai/sdxl-turbo"):
        Base.of(str(tmp_path), "/x/y")
    with pytest.raises(ValueError, match="is no hub id"):
        Base.of("stabilityai/sdxl-turbo", str(tmp_path))


def test_nothing_says_where_it_was_made(turboedit_export: Path, tiny_backbone: str):
    mine = [str(Path(tiny_backbone).parent), "machine_of_somebody", str(Path.home())]
    read = [path for path in turboedit_export.rglob("*") if path.suffix in (".json", ".md", ".txt", ".py", ".yaml")]
    assert {path.name for path in read} >= {"README.md", "model_index.json", "tokenizer_config.json"}
    for path in read:
        text = path.read_text()
        assert "_name_or_path" not in text or path.suffix == ".py", path
        assert not [word for word in mine if word in text], path


def test_the_config_is_whole_but_for_paths(card: str, tiny_backbone: str):
    config = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert config["data"]["shards"] == "shards" and config["run"]["folder"] == "run"
    assert config["generator"]["path"] == Path(tiny_backbone).name
    assert config["objective"]["kl_weight"] == 1e-6 and config["generator"]["timesteps"] == [999, 749, 499, 249]


def test_it_has_figures_versions_licence_and_a_word_on_misuse(card: str):
    assert "latent_mse" in card and "16 samples (fingerprint " in card and f"step {STEPS}, stored in float16" in card
    assert f"torch {torch.__version__}, diffusers " in card and "transformers " in card
    assert "license: unknown" in card and "deep fakes" in card and "{{" not in card
    assert complaints(card) == []


def test_it_shows_what_the_weights_make(card: str, turboedit_export: Path):
    assert "](example.png)" in card and "reconstruction, edit: " in card
    picture = Image.open(turboedit_export / "example.png")
    assert picture.width > 3 * 256
    strips = [torch.tensor(list(picture.crop((8 + 264 * n, 28, 264 + 264 * n, 284)).getdata())) for n in range(3)]
    assert all(strip.float().std() > 1 for strip in strips)
    assert not torch.equal(strips[0], strips[1]) and not torch.equal(strips[1], strips[2])
