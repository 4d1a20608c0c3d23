"""The texts of edits as captioners write them: the miniature's LLaVA, a server, and answers that cannot be used."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from data.captioning.interface import NoAnswer, Request
from data.captioning.tokens import TokenLimits
from data.world.captions import read_caption
from data.world.description import attribute_targets
from data.world.render import render
from data.world.splits import sample_scene
from eval.photo_edits.options import PhotoEditOptions
from eval.photo_edits.texts import write_texts
from eval.photo_edits.writer import Writer, captioner_config
from tests.test_caption_checks import long_text

STUDENT, LLAVA = "models/miniature/student", "models/miniature/llava"


class Answering:
    """A captioner that gives one answer to everything, or as many answers in turn."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def identity(self) -> dict[str, object]:
        return {}

    def answer(self, requests: Sequence[Request]) -> list[str]:
        self.asked += [request.text for request in requests]
        return [self.answers.pop(0) if len(self.answers) > 1 else self.answers[0] for _ in requests]


@pytest.fixture(scope="module")
def limits() -> TokenLimits:
    return TokenLimits.load(STUDENT)


@pytest.fixture(scope="module")
def miniature(limits: TokenLimits) -> Writer:
    return Writer(captioner_config(LLAVA, device="cpu").load(), limits)


def picture(index: int = 0) -> Image.Image:
    return Image.fromarray(render(sample_scene("test", 1, index)))


def options(**others: object) -> PhotoEditOptions:
    usual = {"encoder": "unused", "image": ("photo.jpg",), "captioner": LLAVA}
    return PhotoEditOptions(**{**usual, **others})


def test_the_miniature_describes_changes_and_keeps_within_the_tokens(miniature: Writer, limits: TokenLimits):
    notes = []
    for index in range(8):
        found = miniature.caption(picture(index))
        targets = attribute_targets(sample_scene("test", 1, index))
        right = [read_caption(found.text)[name] == value for name, value in targets.items() if value >= 0]
        assert sum(right) >= 0.7 * len(right) and limits.fits(found.text)
        assert not found.text.startswith("The image")
        notes += found.notes
    assert set(notes) <= {"the captioner's text was condensed to fit the text encoder"}
    changed = miniature.target("a red star and a blue circle on a brick wall", "change the background to sky")
    assert (changed.text, changed.notes) == ("a red star and a blue circle in the sky", ())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I'm sorry, I cannot do that.", r"\(refusal: I'm sorry"),
        ("a cat and a cat and a cat and a cat and a cat", r"\(repetition: "),
        ("", r"\(empty caption"),
        ("...", r"\(empty caption: \.\.\."),
        (NoAnswer("server error", "500: out of memory"), r"\(server error: 500: out of memory\)"),
    ],
)
def test_answers_that_cannot_be_used_end_in_a_sentence(limits: TokenLimits, answer: str, reason: str):
    writer = Writer(Answering(answer), limits)
    with pytest.raises(ValueError, match=rf"the captioner did not describe the picture {reason}.*; give --prompt$"):
        writer.caption(picture())
    wish = "change the description by 'make the cat black'"
    with pytest.raises(ValueError, match=rf"the captioner did not {wish} {reason}.*; give another instruction, or"):
        writer.target("a cat", "make the cat black")
    with pytest.raises(ValueError, match=rf"the captioner did not say more of 'black cat' {reason}"):
        writer.expand("black cat")


def test_what_is_empty_is_not_asked(limits: TokenLimits):
    captioner = Answering("a cat")
    with pytest.raises(ValueError, match="the instruction is empty"):
        Writer(captioner, limits).target("a cat", " \n")
    with pytest.raises(ValueError, match="the prompt is empty"):
        Writer(captioner, limits).expand(" ")
    assert not captioner.asked


def test_an_opening_is_stripped_but_not_where_the_prompt_has_one(limits: TokenLimits):
    writer = Writer(Answering('Sure! Here is the sentence: "A picture of a black cat"'), limits)
    assert writer.target("a white cat", "make it black").text == "A black cat"
    assert writer.target("A picture of a white cat", "make it black").text == "A picture of a black cat"


def test_a_target_that_is_too_long_is_condensed_with_the_changed_words(limits: TokenLimits):
    prompt = long_text(60)
    long = f"a purple heart, {prompt}"
    short = "a purple heart, a red star left of a blue circle on a brick wall"
    assert limits.fits(short) and not limits.fits(long)
    found = Writer(Answering(long, short), limits).target(prompt, "add a purple heart")
    assert found.text == short and "condensed to fit" in found.notes[0]
    lost = "a red star left of a blue circle on a brick wall, and a red star"
    kept = Writer(Answering(long, lost), limits).target(prompt, "add a purple heart")
    assert kept.text == long and "it lost what changed" in kept.notes[0]


def test_short_prompts_are_expanded_and_their_targets_with_them(limits: TokenLimits):
    answers = "A black cat asleep on a sofa", "A white cat asleep on a sofa", "A black cat asleep on a sofa at night"
    captioner = Answering(*answers)
    asked = options(target=("white cat",), prompt=("black cat",), also=("black cat at night=0.5",))
    found = write_texts(asked, "black cat", picture, Writer(captioner, limits))
    assert found.prompt.text == answers[0] and "'black cat' was expanded" in found.prompt.notes
    assert [target.written.text for target in found.targets] == [answers[1]]
    assert [(aim.text, aim.strength) for aim in found.also] == [(answers[2], 0.5)]
    assert captioner.asked[1].endswith("show white cat instead of black cat: A black cat asleep on a sofa")


@pytest.mark.parametrize(("prompt", "below"), [("black cat", 0), ("a black cat asleep", 4)])
def test_other_prompts_stay_as_they_are(limits: TokenLimits, prompt: str, below: int):
    captioner = Answering("no")
    asked = options(target=("white cat",), prompt=(prompt,), expand_below=below)
    found = write_texts(asked, prompt, picture, Writer(captioner, limits))
    assert found.prompt.text == prompt and found.targets[0].written.text == "white cat" and not captioner.asked


def test_an_instruction_that_fails_does_not_take_others_with_it(limits: TokenLimits):
    writer = Writer(Answering("I cannot do that.", "a black cat"), limits)
    asked = options(instruction=("do harm", "make it black"))
    found = write_texts(asked, "a white cat on a sofa", picture, writer)
    assert [(target.written.text, target.instruction) for target in found.targets] == [("a black cat", "make it black")]
    assert len(found.unwritten) == 1 and "'do harm' (refusal" in found.unwritten[0]
    with pytest.raises(ValueError, match="refusal"):
        write_texts(
            options(instruction=("do harm",)), "a white cat on a sofa", picture, Writer(Answering("I'm sorry"), limits)
        )


def test_a_model_is_named_by_its_folder_or_served(tmp_path: Path):
    local = captioner_config(LLAVA, device="cpu")
    assert (local.engine, local.model, local.device) == ("transformers", LLAVA, "cpu")
    served = captioner_config("https://captions.example/v1", "llava")
    assert (served.engine, served.model, served.server) == ("server", "llava", "https://captions.example/v1")
    with pytest.raises(ValueError, match=r"--captioner http://127\.0\.0\.1:9/v1: no server answers there"):
        captioner_config("http://127.0.0.1:9/v1")
