"""Words and phrases of a prompt, and the positions of their tokens in one tokenizer or in both of SDXL."""

import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from models.backbone import Backbone
from models.text import ClipText, DualClipText
from models.words import changed_tokens, changed_words, find_spans, has_word, named_tokens, read_tokens, word_tokens


def spelling_tokenizer(folder: Path, merges: list[tuple[str, str]], limit: int = 12) -> CLIPTokenizer:
    """CLIP's tokenizer that spells everything but what `merges` puts together."""
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{x}</w>" for x in letters), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]))
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=limit)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    """It knows "red" and "ca" and reads twelve tokens."""
    return spelling_tokenizer(tmp_path_factory.mktemp("tokenizer"), [("r", "e"), ("re", "d</w>"), ("c", "a")])


@pytest.fixture(scope="module", params=["teacher", "student"])
def text(request: pytest.FixtureRequest) -> ClipText | DualClipText:
    """The miniature's text encoders: one as in Stable Diffusion, two as in SDXL, of real pairs of letters."""
    found = Backbone.load(f"models/miniature/{request.param}", parts=("text",)).text
    assert found is not None and len(found.tokenizers) == {"teacher": 1, "student": 2}[request.param]
    return found


def tokens(tokenizer: CLIPTokenizer, text: str, words: list[int]) -> list[str]:
    ids = tokenizer(text, truncation=True, max_length=tokenizer.model_max_length).input_ids
    return [tokenizer.convert_ids_to_tokens(ids[position]) for position in word_tokens(tokenizer, text, words)]


def named(text: ClipText | DualClipText, prompt: str, word: str) -> str:
    """The tokens at named_tokens, as one string."""
    ids, _ = read_tokens(text, prompt)
    pieces = [text.tokenizers[0].convert_ids_to_tokens(ids[i]) for i in named_tokens(text, prompt, word)]
    return "".join(pieces).replace("</w>", " ").strip()


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("a red circle", "a blue circle", ([1], [1])),
        ("a red circle", "a red circle", ([], [])),
        ("a circle", "a small red circle", ([], [1, 2])),
        ("a circle and a star", "a circle", ([2, 3, 4], [])),
        ("a circle, on grass.", "A circle on grass", ([], [])),
        ("a red star and a red ring", "a red star and a blue ring", ([5], [5])),
        ("", "a star", ([], [0, 1])),
        ("a  star\non   grass", "a ring on grass", ([1], [1])),
        ("«caf\u00e9» ¿noir?", "cafe\u0301 noir", ([], [])),
        ("一只黑猫，坐在沙发上", "一只白猫坐在椅子上", ([2, 6, 7], [2, 6, 7])),
    ],
)
def test_changed_words(source: str, target: str, expected: tuple[list[int], list[int]]):
    assert changed_words(source, target) == expected
    assert changed_words(target, source) == expected[::-1]


def test_changed_tokens_are_those_of_the_changed_words(tokenizer: CLIPTokenizer):
    texts, others = ["a red cat", "a red cat"], ["a blue cat", "red cat"]
    assert changed_tokens(tokenizer, texts, others) == [[2], [1]]
    assert changed_tokens(tokenizer, others, texts) == [[2, 3, 4, 5], []]


def test_a_word_of_several_tokens_has_them_all(tokenizer: CLIPTokenizer):
    assert tokens(tokenizer, "a red cat", [1]) == ["red</w>"]
    assert tokens(tokenizer, "a red cat", [2]) == ["ca", "t</w>"]
    assert word_tokens(tokenizer, "a red cat", [0, 1, 2]) == [1, 2, 3, 4]
    assert word_tokens(tokenizer, "a red cat", []) == []


def test_punctuation_and_capitals_belong_to_their_word(tokenizer: CLIPTokenizer):
    assert tokens(tokenizer, "Red, cat.", [0]) == ["red</w>", ",</w>"]
    assert tokens(tokenizer, "Red, cat.", [1]) == ["ca", "t</w>", ".</w>"]


def test_repeated_words_are_told_apart(tokenizer: CLIPTokenizer):
    assert word_tokens(tokenizer, "red ed red", [0]) == [1]
    assert word_tokens(tokenizer, "red ed red", [1]) == [2, 3]
    assert word_tokens(tokenizer, "red  ed\tred", [2]) == [4]


def test_words_behind_the_length_limit_have_no_tokens(tokenizer: CLIPTokenizer):
    text = "red " * 9 + "cat red"
    assert word_tokens(tokenizer, text, [8]) == [9]
    assert word_tokens(tokenizer, text, [9]) == [10]
    assert word_tokens(tokenizer, text, [10]) == []


def test_special_tokens_belong_to_no_word(tokenizer: CLIPTokenizer):
    text = "a red cat"
    assert word_tokens(tokenizer, text, [0, 1, 2]) == list(range(1, len(tokenizer(text).input_ids) - 1))


def test_tokenizer_files_are_read_back(tokenizer: CLIPTokenizer, tmp_path: Path):
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert word_tokens(again, "a red cat", [2]) == [3, 4]


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [
        ("a cat and a dog", "dog", [(12, 15)]),
        ("a cat and a dog", "a", [(0, 1), (10, 11)]),
        ("A Cat, and a dog.", "cat", [(2, 5)]),
        ('one "Red"  (cat)!', "red cat", [(5, 8), (12, 15)]),
        ("a red cat", "Red, CAT.", [(2, 5), (6, 9)]),
        ("red red red", "red red", [(0, 3), (4, 7), (4, 7), (8, 11)]),
        ("the dog’s bowl and the dog", "dog", [(4, 7), (23, 26)]),
        ("a blue-eyed cat", "blue-eyed", [(2, 11)]),
        ("a blue eyed cat", "blue-eyed", [(2, 6), (7, 11)]),
        ("black-and-white", "white", [(10, 15)]),
        ("«chat» noir", "chat", [(1, 5)]),
        ("cat/dog, cats", "cat", [(0, 3)]),
        ("un cafe\u0301", "caf\u00e9", [(3, 8)]),
        ("un CAF\u00c9", "cafe\u0301", [(3, 7)]),
        ("a snake_case name", "case", [(8, 12)]),
        ("一只黑猫坐在沙发上", "黑猫", [(2, 4)]),
        ("「黒い」猫がいる", "猫", [(4, 5)]),
        ("か\u3099く", "\u304cく", [(0, 3)]),
        ("a 猫 and a cat猫", "猫", [(2, 3), (13, 14)]),
    ],
)
def test_places_of_a_word(text: str, word: str, expected: list[tuple[int, int]]):
    assert find_spans(text, word) == expected
    assert has_word(text, word)


@pytest.mark.parametrize("word", ["ed", "cat red", "blue", "", "  ", ",", "a red cat on", "猫"])
def test_a_word_that_is_not_there_is_named_with_the_prompt(word: str):
    with pytest.raises(ValueError, match="'a red cat, here'") as error:
        find_spans("a red cat, here", word)
    assert repr(word) in str(error.value)
    assert not has_word("a red cat, here", word)


@pytest.mark.parametrize(
    ("prompt", "word", "expected"),
    [
        ("a small red circle, on grass.", "circle", "circle"),
        ("a small red circle, on grass.", "Red circle", "red circle"),
        ("Zebra's (cat), a zebra, two zebras", "zebra", "zebra zebra"),
        ("Zebra's (cat), a cat", "cat", "cat cat"),
        ('a "red star" on grass', "a red star", "a red star"),
        ("a blue-eyed cat", "blue-eyed", "blue - eyed"),
    ],
)
def test_named_tokens_spell_the_word(text: ClipText | DualClipText, prompt: str, word: str, expected: str):
    assert named(text, prompt, word) == expected


def test_named_tokens_are_positions_behind_the_start(text: ClipText | DualClipText):
    assert named_tokens(text, "a red star and a red ring", "red") == [2, 6]


def test_a_named_word_behind_the_length_limit_is_refused(text: ClipText | DualClipText):
    prompt = "red " * text.tokenizers[0].model_max_length + "star"
    with pytest.raises(ValueError, match="'star' lies behind the 48 tokens"):
        named_tokens(text, prompt, "star")
    assert len(named_tokens(text, prompt, "red")) == 46


def test_read_tokens_is_the_unpadded_prompt(text: ClipText | DualClipText):
    for prompt in ("a red star", "", "red " * 60):
        ids, offsets = read_tokens(text, prompt)
        padded = text.tokenizers[0](prompt, padding="max_length", max_length=48, truncation=True)
        assert ids == padded.input_ids[: sum(padded.attention_mask)]
        assert len(offsets) == len(ids)
        assert [prompt[slice(*span)] for span in offsets][1:-1] == prompt.split()[:46]


def test_tokenizers_that_disagree_are_refused(tokenizer: CLIPTokenizer, tmp_path: Path):
    other = spelling_tokenizer(tmp_path / "other", [("r", "e"), ("c", "a"), ("ca", "t</w>")])
    text = DualClipText([tokenizer, other], [None, None])
    assert named_tokens(text, "a star", "star") == [2, 3, 4, 5]
    with pytest.raises(ValueError, match="'a red cat' into 6 and 6 tokens at different places"):
        named_tokens(text, "a red cat", "cat")
