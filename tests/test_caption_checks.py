"""Checks of captions, the tokens that a backbone reads, and condensing: on captions such as LLaVA writes them."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from transformers import CLIPTokenizer

from data.captioning.checks import find_repetition, is_refusal, plain_text, strip_opening
from data.captioning.interface import NoAnswer, Request
from data.captioning.tasks import (
    DEFAULT_PROMPT,
    condense,
    condense_prompt,
    describe_prompt,
    expand,
    expand_prompt,
    rewrite,
    rewrite_prompt,
    words_for_tokens,
)
from data.captioning.tokens import TokenLimits, is_former_identity, tokenizer_name
from data.jobs.errors import CaptionerError
from data.world.captions import long_caption
from data.world.splits import sample_scene
from scripts.clip_vocabulary.tokenizer import clip_tokenizer

STUDENT = "models/miniature/student"

GOOD = [
    "The image features a brown dog lying on a green couch, with its head resting on a pillow. The couch is positioned "
    "in the center of the room, and there are two potted plants, one on the left side of the couch and the other on "
    "the right side. A dining table is located in the background, with a few chairs placed around it. The dog appears "
    "to be relaxed and comfortable as it rests on the couch.",
    "The image depicts a busy city street with several cars and a red double-decker bus driving down the road. There "
    "are at least five cars visible in the scene, with one car on the left side of the street, another car in the "
    "middle, and three more cars on the right side. In addition to the vehicles, there are several people walking on "
    "the sidewalk, some of them carrying handbags. One person is near the left edge of the image, another person is "
    "closer to the center, and a third person is on the far right side. A traffic light can be seen hanging above the "
    "street, and the sky is blue with a few white clouds.",
    "In the image, there is a vase filled with pink and white flowers sitting on a wooden table. The vase is made of "
    "glass, and the flowers are arranged in a beautiful bouquet. The table is brown, and the wall behind is white.",
    "The image showcases a chessboard with black and white squares, black pieces on one side of the board and white "
    "pieces on the other side of the board.",
]


@pytest.mark.parametrize(
    ("text", "rest", "opening"),
    [
        (GOOD[0][:39], "A brown dog lying on", "The image features"),
        (GOOD[1][:36], "A busy city street", "The image depicts"),
        (GOOD[2][:33], "A vase fil", "In the image, there is"),
        ("The image is of a small kitchen.", "A small kitchen.", "The image is of"),
        ("The image is a black and white photo of a cat.", "A black and white photo of a cat.", "The image is"),
        ("The image prominently displays a clock.", "A clock.", "The image prominently displays"),
        ("This picture shows two zebras.", "Two zebras.", "This picture shows"),
        ("In this image we can see a man.", "A man.", "In this image we can see"),
        ("In the photo, a man is surfing.", "A man is surfing.", "In the photo,"),
        ("This is an image of a bridge.", "A bridge.", "This is an image of"),
        ("We can see a red star.", "A red star.", "We can see"),
        ("the image features a cat", "a cat", "the image features"),
        ("An image of a cat", "A cat", "An image of"),
    ],
)
def test_stock_openings_are_taken_off(text, rest, opening):
    assert strip_opening(text) == (rest, opening)


@pytest.mark.parametrize(
    "text",
    [
        "A brown dog lies on a couch.",
        "The black and white image shows a cat.",  # this says something about the picture
        "The image is divided into four panels.",
        "A photo of a cat",
        "A painting of a lake. The image features a boat.",
        "The imagery features in a book.",
        "Images featuring dogs",
    ],
)
def test_other_beginnings_stay(text):
    assert strip_opening(text) == (text, "")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (" A cat.\n\nA  dog.\n", "A cat. A dog."),
        ("Sure! Here is a shortened description: A cat.", "A cat."),
        ('Here\'s a caption of at most 34 words:\n\n"A cat on a mat."', "A cat on a mat."),
        ("ASSISTANT: A cat.", "A cat."),
        ("<think>The user wants\na caption.</think>\n\nA cat.", "A cat."),
        ("## Layout\n- **Cat** on the left\n- **Dog** on the right", "Layout Cat on the left Dog on the right"),
        ("1. A cat\n2. A dog", "A cat A dog"),
        ('A sign says "stop" and "go"', 'A sign says "stop" and "go"'),
        ('"Stop" and "go"', '"Stop" and "go"'),
        ("A snake_case name, 3 * 4 and 2.5 m", "A snake_case name, 3 * 4 and 2.5 m"),
        ("Here are two dogs on a beach.", "Here are two dogs on a beach."),
        ("", ""),
    ],
)
def test_what_stands_around_an_answer_goes(raw, text):
    assert plain_text(raw) == text


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I cannot assist with that request.",
        "I am unable to see the image you are referring to.",
        "Sorry, I can't help with identifying people.",
        "Unfortunately, I don't have the ability to view images.",
        "As an AI language model, I cannot describe images.",
        "I apologize, but there is no image attached.",
        "I’m sorry, I can’t provide that.",
        "It seems that the image is missing or did not load.",
        "Please provide the image you would like me to describe.",
        "There is no image to describe.",
        "You haven't uploaded an image.",
    ],
)
def test_refusals_are_seen(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        *GOOD,
        "A sign on the door reads: I'm sorry, we are closed.",
        "It seems to be late in the afternoon.",
        "It appears that the image was taken at night.",
        "Sorry-looking dog in the rain",
        "No images hang on the white wall.",
        "A man provides an image of his family.",
    ],
)
def test_descriptions_are_no_refusals(text):
    assert not is_refusal(text)


def test_loops_are_seen():
    assert find_repetition(GOOD[0] + " There is a chair near the table." * 3).startswith("there is a chair")
    assert find_repetition("a book " * 4) == "a book"
    assert find_repetition("a red, red, red, red door") == "red"
    assert find_repetition("A shelf with " + "a blue book on the left, a red book on the right, " * 3)
    shuffled = "The scene has {}. A man walks by. There is a {} next to it. ".format
    many = "".join(shuffled(name, name) for name in ("car", "bus", "dog"))
    assert find_repetition(many) == "a man walks by"
    words = ["person", "in", "the", "scene", "near", "another"]
    rng = np.random.default_rng(0)
    mixed = " ".join(" ".join(words[number : number + 5]) for number in rng.integers(0, 2, 60))
    assert find_repetition(mixed)


@pytest.mark.parametrize("text", [*GOOD, " ".join(GOOD), "", "cat", "very, very, very small", "no no no"])
def test_descriptions_are_no_loops(text):
    assert find_repetition(text) == ""


def test_scenes_pass_all_checks():
    for index in range(200):
        caption = long_caption(sample_scene("train", 0, index))
        assert strip_opening(plain_text(caption)) == (caption, "")
        assert not find_repetition(caption) and not is_refusal(caption)


# --- prompts -----------------------------------------------------------------------------------------------------


def test_the_prompts_are_the_papers():
    """The miniature's LLaVA is trained on exactly these."""
    assert describe_prompt() == DEFAULT_PROMPT
    assert DEFAULT_PROMPT == "please describe the image as detailed as possible, including layout, objects, and color"
    assert rewrite_prompt("a cat on a mat", "make the cat black") == (
        "please make the smallest change possible to the following sentence, but make the cat black: a cat on a mat"
    )
    assert condense_prompt("a cat on a mat", 34) == (
        "please shorten the following description to at most 34 words, keeping all objects, their colors and their "
        "places: a cat on a mat"
    )
    assert expand_prompt("black cat") == "please describe an image of a black cat in detail"
    assert words_for_tokens(46) == 34


# --- tokens ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limits() -> TokenLimits:
    return TokenLimits.load(STUDENT)


def test_tokens_are_counted_as_the_text_encoders_get_them(limits, tiny_sd_backbone):
    assert limits.limits == (46, 46)
    assert TokenLimits.load(tiny_sd_backbone).limits == (75,)
    for text in ("", "a red star", *GOOD):
        expected = [
            len(CLIPTokenizer.from_pretrained(STUDENT, subfolder=name)(text).input_ids) - 2
            for name in ("tokenizer", "tokenizer_2")
        ]
        assert limits.count(text) == expected
        assert limits.fits(text) == (max(expected) <= 46)


def test_tokenizers_have_an_identity(limits, tiny_backbone):
    assert limits.identity() == TokenLimits.load(STUDENT).identity()
    assert limits.identity() != TokenLimits.load(tiny_backbone).identity()
    assert not is_former_identity(limits.identity()) and is_former_identity("0123456789abcdef 0123456789abcdef")


# What folders of today hold. A change here makes all of them unknown: it needs a reason, and a way as that of
# data/captioning/renewal.py.
KNOWN_TOKENIZERS = {
    "miniature": "BPE:05ad379d11fd1e0d",
    "CLIP": "BPE:155dae50642d5dce",
    "CLIP, padded with !": "BPE:2d31aa074ed3a282",
}


def test_names_of_today_stay(limits):
    made = {
        "miniature": limits.identity().split()[0],
        "CLIP": TokenLimits([clip_tokenizer()]).identity(),
        "CLIP, padded with !": TokenLimits([clip_tokenizer("!")]).identity(),
    }
    assert made == KNOWN_TOKENIZERS


def test_versions_and_fields_that_the_library_adds_or_lacks_are_not_looked_at(limits):
    today = limits.tokenizers[0].backend_tokenizer.to_str()
    other = json.loads(today)
    other |= {"version": "2.0", "a_part_of_tomorrow": {"type": "New"}, "truncation": None, "padding": None}
    other["model"] |= {"an_option_of_tomorrow": False, "dropout": 0.0}
    other["model"]["merges"] = [" ".join(pair) for pair in other["model"]["merges"]]  # as before 0.20
    for name in ("fuse_unk", "byte_fallback", "ignore_merges"):
        del other["model"][name]
    for token in other["added_tokens"]:
        token["a_field_of_tomorrow"] = True
        other["model"]["vocab"].pop(token["content"])
    for step in (*other["normalizer"]["normalizers"], *other["pre_tokenizer"]["pretokenizers"], other["decoder"]):
        step["a_field_of_tomorrow"] = 1
    assert other != json.loads(today)
    assert tokenizer_name(json.dumps(other), 48) == tokenizer_name(today, 48) == limits.identity().split()[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["model"]["vocab"].update({"new": 999}),
        lambda found: found["model"]["merges"].reverse(),
        lambda found: found["model"].update(end_of_word_suffix="_"),
        lambda found: found["model"].update(ignore_merges=True),
        lambda found: found["normalizer"]["normalizers"].pop(),
        lambda found: found.update(normalizer=None),
        lambda found: found["pre_tokenizer"]["pretokenizers"].reverse(),
        lambda found: found["added_tokens"][0].update(content="<start>"),
        lambda found: found["added_tokens"][0].update(special=False),
    ],
)
def test_what_decides_token_numbers_is_looked_at(limits, change):
    today = limits.tokenizers[0].backend_tokenizer.to_str()
    other = json.loads(today)
    change(other)
    assert tokenizer_name(json.dumps(other), 48) != tokenizer_name(today, 48) != tokenizer_name(today, 77)


def test_a_backbone_without_tokenizers_is_refused(tmp_path):
    with pytest.raises(CaptionerError, match=r"--backbone .* has no tokenizer"):
        TokenLimits.load(str(tmp_path))
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(CaptionerError, match=r"--backbone .* has no tokenizer"):
        TokenLimits.load(str(tmp_path))
    with pytest.raises(CaptionerError, match=r"cannot load the tokenizers of --backbone no such name"):
        TokenLimits.load("no such name")


def test_a_cut_ends_with_a_sentence_or_a_word(tiny_sd_backbone):
    letters = TokenLimits.load(tiny_sd_backbone)  # a token for each letter, 75 of them
    assert letters.cut("a cat") == ("a cat", "")
    words = " ".join(["ten-letter"] * 9)
    assert letters.cut(words) == (" ".join(["ten-letter"] * 7), "word")
    first = " ".join(["ten-letter"] * 4) + "."
    assert letters.cut(f"{first} {words}") == (first, "sentence")
    assert letters.cut(f'{first}" Then {words}') == (f'{first}"', "sentence")
    # A sentence that would lose most of the room is not worth its full stop.
    assert letters.cut(f"A cat. {words}") == ("A cat. " + " ".join(["ten-letter"] * 7), "word")
    assert letters.cut(", ".join(["ten-letter"] * 9)) == (", ".join(["ten-letter"] * 6), "word")
    assert letters.cut("x" * 80 + " cat") == ("", "word")


# --- condensing --------------------------------------------------------------------------------------------------


def long_text(num_words: int) -> str:
    """Words that are one token each for the miniature, in no order."""
    words = ["red", "blue", "green", "star", "circle", "square", "small", "large", "left", "right", "top", "stone"]
    return " ".join(np.random.default_rng(0).choice(words, num_words))


class Shortener:
    """A captioner that answers with the first words of what it is given: as many as asked for, and `extra`."""

    def __init__(self, extra: int = 0, around: str = "{}") -> None:
        self.extra, self.around = extra, around
        self.asked: list[list[str]] = []

    def identity(self) -> dict[str, int]:
        return {"extra": self.extra}

    def answer(self, requests: Sequence[Request]) -> list[str]:
        self.asked.append([request.text for request in requests])
        return [self.around.format(self._shorten(request.text)) for request in requests]

    def _shorten(self, prompt: str) -> str:
        asked, caption = prompt.split(": ", 1)
        number = next(int(word) for word in asked.split() if word.isdigit())
        return " ".join(caption.split()[: number + self.extra])


def test_only_long_captions_are_condensed(limits):
    shortener = Shortener(around='Sure! Here is the shortened description: "The image features {}"')
    short, long = long_caption(sample_scene("test", 0, 0)), long_text(60)
    kept, condensed = condense(shortener, [short, long], limits)
    assert (kept.text, kept.attempts, kept.cut) == (short, 0, "")
    assert (condensed.text, condensed.attempts, condensed.cut) == (" ".join(long.split()[:34]).capitalize(), 1, "")
    assert len(shortener.asked) == 1


def test_condensing_asks_for_fewer_words_until_it_fits(limits):
    long = long_text(140)
    shortener = Shortener(extra=15)
    (condensed,) = condense(shortener, [long], limits)
    assert limits.fits(condensed.text) and not condensed.cut
    assert condensed.attempts == len(shortener.asked) == 2
    first, second = (asked[0] for asked in shortener.asked)
    assert first == condense_prompt(long, 34)
    # The next attempt starts from the shorter text.
    assert second == condense_prompt(" ".join(long.split()[:49]), 27)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        NoAnswer("server error"),
        "I'm sorry, but I cannot shorten that.",
        "A star.",  # it has lost too much
        "a red star " * 12,
        "longer " * 200,
    ],
)
def test_bad_answers_are_not_taken_and_the_end_is_cut(limits, answer):
    class Stubborn(Shortener):
        def answer(self, requests: Sequence[Request]) -> list[str]:
            return [answer for _ in requests]

    text = " ".join(GOOD)
    (condensed,) = condense(Stubborn(), [text], limits)
    assert condensed.attempts == 3 and condensed.cut == "word"
    assert text.startswith(condensed.text) and limits.fits(condensed.text)
    assert len(condensed.text.split()) > 10


def test_texts_are_rewritten_and_expanded():
    class Echo(Shortener):
        def answer(self, requests: Sequence[Request]) -> list[str]:
            return [f'Sure! Here is the sentence: "{request.text}"' for request in requests]

    assert rewrite(Echo(), ["a cat", "a dog"], ["make it black", "make it white"]) == [
        rewrite_prompt("a cat", "make it black"),
        rewrite_prompt("a dog", "make it white"),
    ]
    assert expand(Echo(), ["black cat"]) == [expand_prompt("black cat")]
    with pytest.raises(ValueError, match="shorter"):
        rewrite(Echo(), ["a cat", "a dog"], ["make it black"])
