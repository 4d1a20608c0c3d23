"""Everything that looks at tokens, with CLIP's real vocabulary and the two tokenizers of SDXL."""

from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.captioning.tasks import condense
from data.captioning.tokens import TokenLimits
from data.inspect import main
from data.inspection.captions import characters_read
from models.text import ClipText, DualClipText, tokenize
from models.turboedit_pipeline import TurboEditPipeline
from models.word_alignment import refine_alignment, replace_alignment, reweight
from models.words import changed_tokens, named_tokens, read_tokens, token_limit
from scripts.clip_vocabulary.tokenizer import clip_tokenizer
from tests.conftest import save
from tests.tiny_backbones import save_tiny_backbone
from tests.tiny_editing import tiny_pipeline

CHINESE = "一只黑猫坐在沙发上，旁边有一盏灯。"
ENGLISH = "A cat’s paw on a black-and-white, wool-covered armchair beside a café’s window."


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return clip_tokenizer()


@pytest.fixture(scope="module")
def text(tokenizer: CLIPTokenizer) -> DualClipText:
    """SDXL's, whose second pads with "!"; only their tokenizers are used."""
    return DualClipText([tokenizer, clip_tokenizer("!")], [None, None])


@pytest.fixture(scope="module")
def endless() -> CLIPTokenizer:
    """A tokenizer that names no limit."""
    found = clip_tokenizer(limit=None)
    assert found.model_max_length > 1e29
    return found


@pytest.fixture(scope="module")
def backbone(endless: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny SDXL that reads CLIP's vocabulary by tokenizers without a limit."""
    tokenizers = [endless, clip_tokenizer("!", limit=None)]
    return save(partial(save_tiny_backbone, tokenizers=tokenizers), tmp_path_factory.mktemp("backbone"), seed=0)


@pytest.fixture(scope="module")
def pipeline(backbone: str) -> TurboEditPipeline:
    return tiny_pipeline(backbone)


def spelled(text: ClipText | DualClipText, prompt: str, word: str) -> str:
    """The tokens of a named word, decoded."""
    ids, _ = read_tokens(text, prompt)
    return text.tokenizers[0].decode([ids[position] for position in named_tokens(text, prompt, word)]).strip()


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("Hello World!", [3306, 1002, 256]),
        ("a diagram", [320, 22697]),
    ],
)
def test_ids_are_the_published_ones(tokenizer: CLIPTokenizer, prompt: str, ids: list[int]):
    assert len(tokenizer) == 49408
    assert tokenizer(prompt).input_ids == [49406, *ids, 49407]


def test_each_tokenizer_pads_in_its_own_way(text: DualClipText):
    first, second = (tokenize(tokenizer, ["a cat"], torch.device("cpu")) for tokenizer in text.tokenizers)
    assert first.shape == second.shape == (1, 77)
    assert first[0, 4:].unique().tolist() == [49407] and second[0, 4:].unique().tolist() == [0]


@pytest.mark.parametrize(
    ("prompt", "word", "expected"),
    [
        (ENGLISH, "cat", "cat"),
        (ENGLISH, "white", "white"),
        (ENGLISH, "black-and-white", "black - and - white"),
        (ENGLISH, "cafe\u0301", "café"),
        (ENGLISH.replace("é", "e\u0301"), "café", "café"),
        ("un «chat» noir", "chat", "chat"),
        ("cat/dog", "dog", "dog"),
        ("a photograph of an armchair", "armchair", "armchair"),
        (CHINESE, "黑猫", "黑猫"),
        (CHINESE, "灯", "灯"),
        ("黒いねこがソファにいる", "ねこ", "ねこ"),
    ],
)
def test_a_named_word_has_its_tokens_and_no_others(text: DualClipText, prompt: str, word: str, expected: str):
    assert spelled(text, prompt, word) == expected


@pytest.mark.parametrize(("prompt", "word"), [("two cats", "cat"), (CHINESE, "狗"), ("a cafe", "café")])
def test_a_word_that_is_not_there_is_refused(text: DualClipText, prompt: str, word: str):
    with pytest.raises(ValueError, match=f"the word {word!r} is not in the prompt"):
        named_tokens(text, prompt, word)


def test_only_what_differs_is_changed(tokenizer: CLIPTokenizer):
    def changed(source: str, target: str) -> list[str]:
        ids = [tokenizer(prompt).input_ids for prompt in (source, target)]
        pairs = zip(ids, (changed_tokens(tokenizer, [source], [target]), changed_tokens(tokenizer, [target], [source])))
        return [tokenizer.decode([found[i] for i in positions]).strip() for found, [positions] in pairs]

    assert changed(ENGLISH, ENGLISH.replace("é", "e\u0301").upper().replace("’S", "’s")) == ["", ""]
    assert changed("un «chat» noir", "un chat noir") == ["", ""]
    assert changed("a cat’s paw", "a dog’s paw") == ["cat ’ s", "dog ’ s"]
    assert changed(CHINESE, CHINESE.replace("黑", "白")) == ["黑", "白"]


def test_characters_that_share_bytes_are_no_common_tokens(text: DualClipText):
    source, target = "黑猫坐", "里猫坐"  # three bytes each
    found = refine_alignment(text, [source], [target])
    kept = {int(j) for j in torch.nonzero(found.share[0])} & set(range(1, len(read_tokens(text, target)[0]) - 1))
    assert kept == set(named_tokens(text, target, "猫坐"))
    composed = refine_alignment(text, ["un café"], ["un cafe\u0301"])
    assert composed.share.all()


def test_words_are_swapped_where_no_spaces_are(text: DualClipText):
    source, target = CHINESE, CHINESE.replace("黑猫", "白狗")
    found = replace_alignment(text, [source], [target])
    for old, new in (("黑", "白"), ("猫", "狗"), ("灯", "灯")):
        rows, columns = named_tokens(text, source, old), named_tokens(text, target, new)
        assert found.matrix[0][rows][:, columns].sum() == len(columns)
    scaled = reweight(found, text, [target], {"狗": 3.0}).scale[0]
    assert torch.nonzero(scaled == 3).flatten().tolist() == named_tokens(text, target, "狗")


class Answering:
    """A captioner with one answer."""

    def __init__(self, text: str) -> None:
        self.text = text

    def identity(self) -> dict[str, str]:
        return {}

    def answer(self, requests: list) -> list[str]:
        return [self.text for _ in requests]


@pytest.mark.parametrize(("sentence", "short"), [(ENGLISH + " ", 2 * (ENGLISH + " ")), (CHINESE, CHINESE)])
def test_captions_are_made_to_fit_in_any_script(text: DualClipText, sentence: str, short: str):
    limits = TokenLimits(text.tokenizers)
    assert limits.limits == (75, 75)
    long = (sentence * 12).strip()
    caption, cut = limits.cut(long)
    assert cut == "sentence" and long.startswith(caption) and caption.endswith((".", "。"))
    assert max(limits.count(caption)) <= 75 < max(limits.count(caption + sentence))
    [condensed] = condense(Answering(short), [long], limits)
    assert (condensed.text, condensed.attempts, condensed.cut) == (short.strip(), 1, "")


def test_a_text_without_a_stop_is_cut_at_a_word(text: DualClipText):
    limits = TokenLimits(text.tokenizers)
    for words in ("armchair, " * 60, "黑猫，" * 60):
        caption, cut = limits.cut(words)
        assert cut == "word" and words.startswith(caption) and caption[-1] not in ", ，"
        assert 60 < max(limits.count(caption)) <= 75


def test_a_tokenizer_without_a_limit_reads_as_clip(endless: CLIPTokenizer, tokenizer: CLIPTokenizer):
    long = " ".join([ENGLISH] * 9)
    assert token_limit(endless) == 77
    assert tokenize(endless, [long, "a"], torch.device("cpu")).tolist() == (
        tokenize(tokenizer, [long, "a"], torch.device("cpu")).tolist()
    )
    limits = TokenLimits([endless])
    assert limits.limits == (75,) and limits.identity() == TokenLimits([tokenizer]).identity()
    assert characters_read(long, limits) == characters_read(long, TokenLimits([tokenizer])) < len(long)
    assert read_tokens(ClipText(endless, None), long) == read_tokens(ClipText(tokenizer, None), long)


def test_a_backbone_without_a_limit_captions_and_inspects(backbone: str, tmp_path: Path):
    for number, caption in enumerate((ENGLISH, CHINESE * 9)):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(caption, encoding="utf-8")
    out = tmp_path / "shards"
    config = CaptionConfig(backbone=backbone, resolution=64)
    assert caption_folder(tmp_path, out, config)["checks"]["truncated"]["true"] == 1
    main([str(out), "--backbone", backbone, "--out", str(tmp_path / "page")])
    assert "75 are read" in (tmp_path / "page" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("source", "same", "other"),
    [
        (ENGLISH, ENGLISH.replace("é", "e\u0301"), ENGLISH.replace("cat", "dog")),
        (CHINESE, CHINESE.replace("。", "！"), CHINESE.replace("黑", "白")),
    ],
)
def test_a_mask_is_where_words_have_changed(pipeline: TurboEditPipeline, source: str, same: str, other: str):
    """The attention of a random network is everywhere."""
    inversion = pipeline.invert(Image.new("RGB", (64, 64), "grey"), source)
    nowhere, everywhere = (pipeline.edit(inversion, target, mask="attention").mask for target in (same, other))
    assert nowhere is not None and not nowhere.any()
    assert everywhere is not None and everywhere.all()


def test_words_that_are_cut_off_are_told(pipeline: TurboEditPipeline, caplog: pytest.LogCaptureFixture):
    pipeline.invert(Image.new("RGB", (64, 64), "grey"), " ".join([ENGLISH] * 5))
    assert "tokens and only the first 77 are read" in caplog.text
