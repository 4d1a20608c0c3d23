"""What is said of composites: captions as noun phrases, prompts before and after an edit, and its instruction."""

import re

PLACES = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
"""Words for the places at which an object may stand."""

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
"""Colours by which objects are called; see `data.compositing.colours`."""

OTHER_COLOURS = ("black", "white", "grey", "gray", "silver", "golden", "gold", "beige", "violet", "turquoise", "teal")

_DETERMINERS = ("a", "an", "the", "some", "two", "three", "several")
_SENTENCE_END = re.compile(r"[.!?;:—](?:\s|$)|—")
_PHRASE_END = re.compile(
    r",|\s(?:is|are|was|were|has|have|can|lets?|resembles?|that|which|for|on an? (?:plain|white|black|transparent))\b"
)
_PREPOSITIONS = ("of", "in", "on", "with", "from", "at", "by", "to", "without", "and", "or")


def first_sentence(caption: str) -> str:
    """The first sentence of a caption, without its full stop and without brackets, which mark words in prompts."""
    text = " ".join(caption.replace("[", "").replace("]", "").split())
    return _SENTENCE_END.split(text, maxsplit=1)[0].strip(" .,")


def noun_phrase(caption: str) -> str:
    """What a caption names, in the form in which it stands inside a sentence: "a cup of tea"; "" where it is empty.

    It is the first sentence up to its verb, comma or relative clause. The article is the caption's own.
    """
    phrase = _PHRASE_END.split(first_sentence(caption), maxsplit=1)[0].strip()
    return inside_sentence(phrase)


def inside_sentence(text: str) -> str:
    """A sentence's beginning as it stands inside another one: with a small letter, but for what is written TV."""
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def definite(phrase: str) -> str:
    """A noun phrase as one that is known already: "the cup of tea"."""
    return f"the {_without_determiner(phrase)}"


def head_noun(phrase: str) -> str:
    """The word of a noun phrase that names the thing: "cup" of "a cup of tea"."""
    words = _without_determiner(phrase).split()
    end = next((place for place, word in enumerate(words) if place and word in _PREPOSITIONS), len(words))
    return words[end - 1]


def can_be_coloured(phrase: str, colour: str) -> bool:
    """Whether a noun phrase may get another colour: it names none, or once the one that its object has.

    A thing that is called after a colour, "an orange", may not.
    """
    words = phrase.lower().replace("-", " ").split()
    named = [word for word in words if word in (*COLOURS, *OTHER_COLOURS)]
    return named in ([], [colour]) and head_noun(phrase).lower() not in named


def coloured(phrase: str, own: str, colour: str) -> str:
    """A noun phrase with a colour in the place of its own: "a blue apple" of "an apple" or "a red apple"."""
    words = [word for word in phrase.split() if word != own]
    first = words[0] if words[0] in _DETERMINERS else ""
    rest = " ".join(words[1:] if first else words)
    if first in ("a", "an"):
        first = "an" if colour[0] in "aeiou" else "a"
    return f"{first} {colour} {rest}".strip()


def placed(photograph: str, phrase: str, place: str | None) -> str:
    """The short prompt of a photograph (its caption) with an object on it, at one of `PLACES` where that matters."""
    return " ".join(filter(None, (photograph, "with", phrase, "in the foreground", place and PLACES[place])))


def detailed_prompt(caption: str, phrase: str, place: str) -> str:
    """The long prompt: the object first, since encoders read the beginning of what is too long for them."""
    return f"{phrase[:1].upper()}{phrase[1:]} in the foreground {PLACES[place]}. {' '.join(caption.split())}"


def marked(source: str, target: str) -> tuple[str, str]:
    """Two prompts with the words between what they share at both ends in square brackets, as in PIE-Bench."""
    a, b = source.split(), target.split()
    shared = min(len(a), len(b))
    start = next((i for i in range(shared) if a[i] != b[i]), shared)
    end = next((i for i in range(shared - start) if a[-1 - i] != b[-1 - i]), shared - start)
    return _bracketed_middle(a, start, end), _bracketed_middle(b, start, end)


def _bracketed_middle(words: list[str], start: int, end: int) -> str:
    middle = " ".join(words[start : len(words) - end])
    return " ".join([*words[:start], *([f"[{middle}]"] if middle else []), *words[len(words) - end :]])


def _without_determiner(phrase: str) -> str:
    first, _, rest = phrase.partition(" ")
    return rest if first in _DETERMINERS and rest else phrase
