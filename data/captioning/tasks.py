"""Tasks of captioners: to describe a picture, to condense, rewrite or expand a caption, to propose its edit.

Prompts are the paper's (TurboEdit, arXiv 2408.08332) where it gives one; condensing is ours, because CLIP's text
encoders read 75 tokens and a detailed caption has more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from data.captioning.checks import find_repetition, is_refusal, plain_text, strip_opening
from data.captioning.interface import Captioner, NoAnswer, Request
from models.words import word_spans

DEFAULT_PROMPT = "please describe the image as detailed as possible, including layout, objects, and color"
"""The paper's prompt for captions of training images."""

CAPTION = "{caption}"
"""Stands for the caption in a prompt that asks for an edit."""

DEFAULT_EDIT_PROMPT = f"""\
You are given the caption of a picture. Think of one change that somebody might want to make to the picture: another \
object, colour, material, place, weather, time of day or style. Answer with two lines: the instruction, and the \
caption of the changed picture, which says all else in the same words.

Caption: a brown dog asleep on a green couch, a lamp behind it
Instruction: make the dog a fox
Result: a brown fox asleep on a green couch, a lamp behind it

Caption: a photograph of a quiet street with parked cars in summer
Instruction: let it snow
Result: a photograph of a quiet street with parked cars in winter, covered with snow

Caption: a glass vase with red tulips on a wooden table
Instruction: turn it into a watercolour
Result: a watercolour of a glass vase with red tulips on a wooden table

Caption: a woman in a white dress holding a bouquet by the sea
Instruction: give her a black leather jacket
Result: a woman in a white dress and a black leather jacket holding a bouquet by the sea

Caption: {CAPTION}"""
"""Asks for an edit of a caption; InstructPix2Pix asked a GPT-3 that was trained on 700 such triplets."""

# English has about three words to four of CLIP's tokens.
_WORDS_PER_TOKEN = 0.75
_ATTEMPTS = 3
_FEWER_WORDS = 0.8
_FEWEST_WORDS = 0.25
"""Share of the words asked for below which a condensed caption has lost too much."""


def describe_prompt() -> str:
    """The prompt that asks for a caption of a picture."""
    return DEFAULT_PROMPT


def rewrite_prompt(caption: str, instruction: str) -> str:
    """The prompt that asks for a caption changed by an instruction ("make the cat black")."""
    return f"please make the smallest change possible to the following sentence, but {instruction}: {caption}"


def condense_prompt(caption: str, max_words: int) -> str:
    """The prompt that asks for a caption in at most `max_words` words."""
    return (
        f"please shorten the following description to at most {max_words} words, "
        f"keeping all objects, their colors and their places: {caption}"
    )


def expand_prompt(short: str) -> str:
    """The prompt that asks for a detailed description from a few words ("black cat")."""
    return f"please describe an image of a {short} in detail"


def words_for_tokens(max_tokens: int) -> int:
    """Number of words to ask for so that they make about `max_tokens` tokens."""
    return max(1, int(_WORDS_PER_TOKEN * max_tokens))


def describe(captioner: Captioner, pictures: Sequence[Image.Image], prompt: str = DEFAULT_PROMPT) -> list[str]:
    """Captions of pictures, as the captioner gives them."""
    return captioner.answer([Request(prompt, picture) for picture in pictures])


def rewrite(captioner: Captioner, captions: Sequence[str], instructions: Sequence[str]) -> list[str]:
    """Captions changed by one instruction each ("make the cat black"), the target prompts of instruction-based edits.

    "" stands where there is no answer.

    Raises:
        CaptionerError: when no request can be answered.
    """
    pairs = zip(captions, instructions, strict=True)
    return _written(captioner, [rewrite_prompt(caption, instruction) for caption, instruction in pairs])


def propose(captioner: Captioner, captions: Sequence[str], prompt: str = DEFAULT_EDIT_PROMPT) -> list[str]:
    """An edit of each caption, `rewrite` in reverse: the captioner's answers as they come, instruction and result.

    Args:
        prompt: holds CAPTION where the caption goes, and shows what an answer looks like.

    Raises:
        CaptionerError: when no request can be answered.
    """
    return captioner.answer([Request(prompt.replace(CAPTION, caption)) for caption in captions])


def expand(captioner: Captioner, shorts: Sequence[str]) -> list[str]:
    """Detailed descriptions made of a few words each ("black cat"); "" stands where there is no answer.

    Raises:
        CaptionerError: when no request can be answered.
    """
    return _written(captioner, [expand_prompt(short) for short in shorts])


class TextLimit(Protocol):
    """A bound on the length of a caption, such as `data.captioning.tokens.TokenLimits`."""

    limits: tuple[int, ...]

    def fits(self, text: str) -> bool:
        """Whether all of the text is read."""

    def cut(self, text: str) -> tuple[str, str]:
        """The beginning that is read, and where it was cut: "sentence", "word" or ""."""


@dataclass(frozen=True)
class Condensed:
    """A caption that fits.

    Args:
        text: the caption.
        attempts: how often the captioner was asked.
        cut: "sentence" or "word" where the end had to be cut off, "" where the captioner's own words fit.
    """

    text: str
    attempts: int
    cut: str


def condense(captioner: Captioner, captions: Sequence[str], limit: TextLimit) -> list[Condensed]:
    """Captions short enough for `limit`: those that are not are shortened by the captioner, in a few attempts.

    Each attempt starts from the shortest good text so far and asks for fewer words than the one before. What is still
    too long is cut.

    Raises:
        CaptionerError: when no request can be answered.
    """
    texts = list(captions)
    attempts = [0] * len(texts)
    max_words = words_for_tokens(min(limit.limits))
    for _ in range(_ATTEMPTS):
        rows = [row for row, text in enumerate(texts) if not limit.fits(text)]
        if not rows:
            break
        for row, text in zip(rows, _written(captioner, [condense_prompt(texts[row], max_words) for row in rows])):
            attempts[row] += 1
            text, _ = strip_opening(text)
            words, before = len(word_spans(text)), len(word_spans(texts[row]))
            if _FEWEST_WORDS * max_words <= words < before and not _is_bad(text):
                texts[row] = text
        max_words = max(1, int(_FEWER_WORDS * max_words))
    return [Condensed(*_fitting(text, limit, number)) for text, number in zip(texts, attempts)]


def _fitting(text: str, limit: TextLimit, attempts: int) -> tuple[str, int, str]:
    text, cut = limit.cut(text)
    return text, attempts, cut


def _written(captioner: Captioner, prompts: Sequence[str]) -> list[str]:
    """Answers to texts, without what stands around them; those that failed still say why."""
    answers = captioner.answer([Request(prompt) for prompt in prompts])
    return [answer if isinstance(answer, NoAnswer) else plain_text(answer) for answer in answers]


def _is_bad(text: str) -> bool:
    return is_refusal(text) or bool(find_repetition(text))
