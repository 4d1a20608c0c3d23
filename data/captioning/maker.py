"""Captions for pictures: by an engine or as they are there, checked, and made to fit the backbone's tokenizers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from PIL import Image

from data.captioning.checks import find_repetition, is_refusal, plain_text, strip_opening
from data.captioning.config import CaptioningConfig
from data.captioning.interface import Captioner, NoAnswer
from data.captioning.tasks import condense, describe
from data.captioning.tokens import TokenLimits

_DETAIL = 200


@dataclass(frozen=True)
class Caption:
    """A caption that training may use.

    Args:
        text: the final caption, on one line.
        raw: text as the engine or the file gave it.
        checks: plain JSON, of which only what applies is there. `opening_stripped`: the stock opening that was taken
            off. With a backbone: `tokens_raw` and `tokens`, number of tokens of the raw and the final caption by each
            tokenizer, without start and end; `truncated_raw` and `truncated`, whether the backbone would not read them
            to the end. `condensed`: how often the engine was asked to shorten it; `cut`: "sentence" or "word" where its
            end had to be cut off after all. Of a picture with several captions the first has `captions`, their number,
            and `captions_left_out`, the number of those that were no good, by reason.
        others: the captions after the first, of a picture that has several.
    """

    text: str
    raw: str
    checks: dict[str, Any] = field(default_factory=dict)
    others: tuple["Caption", ...] = ()


@dataclass(frozen=True)
class Rejected:
    """A picture that gets no caption.

    Args:
        reason: "no caption", "empty caption", "refusal", "repetition", "refused by the server", "server error" or
            "time-out".
        detail: what exactly was found.
    """

    reason: str
    detail: str = ""


class CaptionMaker:
    """Makes captions as the config says. Models are loaded when they are first needed.

    Args:
        config: how captions are made.
    """

    def __init__(self, config: CaptioningConfig) -> None:
        self.config = config
        self._captioner: Captioner | None = None
        self._limits: TokenLimits | None = None

    @property
    def batch(self) -> int:
        """Number of pictures that suits one call of `captions`."""
        return self.config.requests_at_once

    @property
    def packages(self) -> tuple[str, ...]:
        """The libraries that take part, for the record of versions."""
        return tuple(sorted({*self.config.packages, *(("transformers",) if self.config.backbone else ())}))

    def identity(self) -> dict[str, Any]:
        """All that decides the captions, as flat plain JSON.

        Raises:
            CaptionerError: for a model or a backbone that is not there.
        """
        config = self.config
        found = {"engine": config.engine, "clean": config.clean, **config.identity()}
        if config.writes:
            found |= {"prompt": config.prompt, "keep_existing": config.keep_existing, "condense": self._condenses}
        if config.backbone is not None:
            found["tokenizers"] = self.token_limits().identity()
        return found

    def captions(
        self,
        pictures: Sequence[Image.Image],
        existing: Sequence[str | None],
        others: Sequence[Sequence[str]] | None = None,
    ) -> list["Caption | Rejected"]:
        """A caption for each picture, or why there is none.

        Args:
            pictures: RGB, as they will be stored.
            existing: captions that are there, None where there is none.
            others: the captions that are there after the first, of each picture; by default none. All are kept that are
                good; the first of them is the first caption.

        Raises:
            CaptionerError: when the engine cannot go on.
        """
        raws = self._raw_captions(pictures, existing)
        lists = [
            [(raw, written), *((text, False) for text in more if not written)]
            for (raw, written), more in zip(raws, others or [()] * len(raws), strict=True)
        ]
        found = [self._check(raw, written) for texts in lists for raw, written in texts]
        if self.config.backbone is not None:
            found = self._fit(found)
        rest = iter(found)
        return [_together(list(islice(rest, len(texts)))) for texts in lists]

    def _raw_captions(
        self, pictures: Sequence[Image.Image], existing: Sequence[str | None]
    ) -> list[tuple[str | None, bool]]:
        """Captions as they come, and whether the engine wrote them."""
        raws: list[tuple[str | None, bool]] = [(text, False) for text in existing]
        if self.config.engine == "existing":
            return raws
        keeps = self.config.keep_existing
        rows = [row for row, text in enumerate(existing) if not (keeps and text is not None and text.strip())]
        if rows:
            written = describe(self.captioner(), [pictures[row] for row in rows], self.config.prompt)
            for row, answer in zip(rows, written, strict=True):
                raws[row] = (answer, True)
        return raws

    def _check(self, raw: str | None, written: bool) -> "Caption | Rejected":
        return checked(raw, cleans=written if self.config.clean is None else self.config.clean)

    def _fit(self, found: Sequence["Caption | Rejected"]) -> list["Caption | Rejected"]:
        """Counts tokens, and condenses captions that are too long."""
        limits = self.token_limits()
        fitting = condensed(self.captioner(), found, limits) if self._condenses else found
        return [_counted(one, limits) if isinstance(one, Caption) else one for one in fitting]

    @property
    def _condenses(self) -> bool:
        config = self.config
        possible = config.writes and config.backbone is not None
        return possible if config.condense is None else config.condense

    def captioner(self) -> Captioner:
        """The engine, loaded; it serves other tasks of `data.captioning.tasks` too.

        Raises:
            ValueError: for the engine "existing", which writes nothing.
            CaptionerError: for a model that cannot be loaded.
        """
        if self._captioner is None:
            self._captioner = self.config.load()
        return self._captioner

    def token_limits(self) -> TokenLimits:
        """The tokenizers of the backbone, loaded.

        Raises:
            CaptionerError: without a backbone, or for one without tokenizers.
        """
        if self._limits is None:
            self._limits = TokenLimits.load(self.config.backbone or "")
        return self._limits


def _together(found: Sequence[Caption | Rejected]) -> Caption | Rejected:
    """The captions of one picture as one: the first good one, with those after it."""
    good = [one for one in found if isinstance(one, Caption)]
    if not good:
        return found[0]
    bad = Counter(one.reason for one in found if isinstance(one, Rejected))
    number = {"captions": len(good)} if len(good) > 1 else {}
    left_out = {"captions_left_out": dict(sorted(bad.items()))} if bad else {}
    return replace(good[0], checks=good[0].checks | number | left_out, others=tuple(good[1:]))


def checked(raw: str | None, cleans: bool = True) -> Caption | Rejected:
    """A caption as it came, on one line and without its opening; or what is wrong with it.

    Args:
        raw: an engine's answer, or the caption that is there; None for none.
        cleans: False leaves openings, and keeps refusals and repetition.
    """
    if raw is None:
        return Rejected("no caption")
    if isinstance(raw, NoAnswer):
        return Rejected(raw.reason, raw.detail)
    if not cleans:
        text = " ".join(raw.split())
        return Caption(text, raw) if text else Rejected("empty caption")
    text = plain_text(raw)
    if is_refusal(text):
        return Rejected("refusal", text[:_DETAIL])
    repeated = find_repetition(text)
    if repeated:
        return Rejected("repetition", repeated[:_DETAIL])
    text, opening = strip_opening(text)
    if not text.strip(" .!?"):
        return Rejected("empty caption", raw[:_DETAIL])
    return Caption(text, raw, {"opening_stripped": opening} if opening else {})


def condensed(
    captioner: Captioner, found: Sequence[Caption | Rejected], limits: TokenLimits
) -> list[Caption | Rejected]:
    """Captions short enough for all tokenizers: the captioner shortens those that are not.

    Raises:
        CaptionerError: when the engine cannot go on.
    """
    fitting = list(found)
    long = {row: one for row, one in enumerate(found) if isinstance(one, Caption) and not limits.fits(one.text)}
    shortened = condense(captioner, [one.text for one in long.values()], limits) if long else []
    for (row, one), short in zip(long.items(), shortened, strict=True):
        checks = {"condensed": short.attempts} | ({"cut": short.cut} if short.cut else {})
        fits = Caption(short.text, one.raw, one.checks | checks)
        fitting[row] = fits if short.text else Rejected("empty caption", one.raw[:_DETAIL])
    return fitting


def _counted(caption: Caption, limits: TokenLimits) -> Caption:
    """The caption with its number of tokens, before and after."""
    raw, final = limits.count(caption.raw), limits.count(caption.text)
    counts = {
        "tokens_raw": raw,
        "tokens": final,
        "truncated_raw": any(count > limit for count, limit in zip(raw, limits.limits)),
        "truncated": any(count > limit for count, limit in zip(final, limits.limits)),
    }
    return Caption(caption.text, caption.raw, caption.checks | counts)
