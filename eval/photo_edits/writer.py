"""The texts of an edit as a captioner writes them: the photograph's description, its change, more of a few words.

Answers are checked and condensed as captions are for training (data/captioning/maker.py).
"""

from dataclasses import dataclass

import httpx
from PIL import Image

from data.captioning.checks import strip_opening
from data.captioning.engines import EngineConfig
from data.captioning.interface import Captioner
from data.captioning.maker import Caption, Rejected, checked, condensed
from data.captioning.server import served_models
from data.captioning.tasks import DEFAULT_PROMPT, describe, expand, rewrite
from data.captioning.tokens import TokenLimits
from models.words import bare_words, changed_words

_GIVE_UP_MIN = 1.0
"""Minutes without an answer after which a server counts as gone: somebody waits for the edit."""


@dataclass(frozen=True)
class WrittenPrompt:
    """A text that a captioner wrote, and what its reader should know of it."""

    text: str
    notes: tuple[str, ...] = ()


class Writer:
    """Writes the prompts of edits.

    Args:
        captioner: the engine.
        limits: the tokenizers of the pipeline that is to read the prompts.
        question: what the captioner is asked about a photograph; TurboEdit's by default.
        advice: what a user can do where the captioner describes nothing.
    """

    def __init__(
        self,
        captioner: Captioner,
        limits: TokenLimits,
        question: str = DEFAULT_PROMPT,
        advice: str = "give --prompt",
    ) -> None:
        self.captioner = captioner
        self.limits = limits
        self.question = question
        self.advice = advice

    def caption(self, picture: Image.Image) -> WrittenPrompt:
        """The description of a picture, as training has it: of what the networks see, and short enough for them.

        Raises:
            ValueError: the captioner gave none.
            CaptionerError: the captioner cannot go on.
        """
        (raw,) = describe(self.captioner, [picture], self.question)
        found = _accepted(checked(raw), "describe the picture", self.advice)
        short = self._condensed(found, "describe the picture", self.advice)
        return WrittenPrompt(short.text, _notes(short))

    def target(self, prompt: str, instruction: str) -> WrittenPrompt:
        """`prompt` after the smallest change by an instruction such as "make the cat black".

        What is too long for the tokenizers is condensed where all changed words stay; else it is left, and told.

        Raises:
            ValueError: no instruction, or the captioner gave no such text.
            CaptionerError: the captioner cannot go on.
        """
        instruction = " ".join(instruction.split())
        if not instruction:
            raise ValueError('the instruction is empty; expected one such as "make the cat black"')
        (raw,) = rewrite(self.captioner, [prompt], [instruction])
        wish = f"change the description by {instruction!r}"
        found = _accepted(checked(raw), wish, "give another instruction, or the target itself")
        if strip_opening(prompt)[1]:  # the prompt has such an opening too, and it is no change
            found = Caption(" ".join(raw.split()), raw)
        if self.limits.fits(found.text):
            return WrittenPrompt(found.text)
        (short,) = condensed(self.captioner, [found], self.limits)
        wanted = [bare_words(found.text)[i] for i in changed_words(prompt, found.text)[1]]
        if isinstance(short, Caption) and set(wanted) <= set(bare_words(short.text)):
            return WrittenPrompt(short.text, _notes(short))
        note = "the changed description is too long for the text encoder, and shorter it lost what changed: it is whole"
        return WrittenPrompt(found.text, (note,))

    def expand(self, short: str) -> WrittenPrompt:
        """A detailed description made of a few words ("black cat").

        Raises:
            ValueError: no words, or the captioner gave no such text.
            CaptionerError: the captioner cannot go on.
        """
        if not short.strip():
            raise ValueError("the prompt is empty; expected a few words such as black cat")
        (raw,) = expand(self.captioner, [short])
        advice = "give a longer --prompt, or --expand_below 0"
        found = _accepted(checked(raw), f"say more of {short!r}", advice)
        ready = self._condensed(found, f"say more of {short!r}", advice)
        return WrittenPrompt(ready.text, (f"{short!r} was expanded", *_notes(ready)))

    def _condensed(self, caption: Caption, wish: str, advice: str) -> Caption:
        (found,) = condensed(self.captioner, [caption], self.limits)
        return _accepted(found, wish, advice)


def captioner_config(captioner: str, model: str | None = None, device: str = "auto") -> EngineConfig:
    """The engine that answers: a model in this process, or one behind a URL.

    Args:
        captioner: folder or hub id of an image-and-text model, or the base URL of an OpenAI-compatible server.
        model: name under which the server has its model; by default the only one that it names.
        device: place of a model in this process.

    Raises:
        ValueError: no server answers at the URL, or it does not name one model.
    """
    if not captioner.startswith(("http://", "https://")):
        return EngineConfig("transformers", model=captioner, device=device)
    return EngineConfig("server", model=model or _only_model(captioner), server=captioner, give_up_min=_GIVE_UP_MIN)


def _only_model(url: str) -> str:
    """The model that a server names. Raises ValueError where it names none or several, or does not answer."""
    try:
        names = served_models(url)
    except httpx.HTTPError as error:
        raise ValueError(f"--captioner {url}: no server answers there ({error or type(error).__name__})") from error
    if len(names) != 1:
        known = ", ".join(names[:5]) or "none"
        raise ValueError(f"--captioner {url}: the server names {known}; give --captioner_model, the one to ask")
    return names[0]


def _accepted(found: Caption | Rejected, wish: str, advice: str) -> Caption:
    """A caption that can be used. Raises ValueError with the reason where it cannot."""
    if isinstance(found, Caption):
        return found
    what = f"{found.reason}: {found.detail}" if found.detail else found.reason
    raise ValueError(f"the captioner did not {wish} ({what}); {advice}")


def _notes(caption: Caption) -> tuple[str, ...]:
    """How a caption was made to fit, in words."""
    cut = caption.checks.get("cut")
    if cut:
        return (f"the captioner's text was too long for the text encoder: its end was cut off behind a {cut}",)
    return ("the captioner's text was condensed to fit the text encoder",) if "condensed" in caption.checks else ()
