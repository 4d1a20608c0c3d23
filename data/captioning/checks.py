"""Faults of captions that models write, and the words that only cost tokens: openings, refusals, loops."""

import re
from collections import Counter

_THOUGHTS = re.compile(r"^.*</think>", re.DOTALL)
_MARKUP = re.compile(r"\*\*|__|^\s*(?:#+|[-*•]|\d+[.)])\s+|^\s*-{3,}\s*$", re.MULTILINE)

# What stands before the answer itself.
_LEAD_INS = re.compile(
    r"(?:(?:sure|certainly|of course|absolutely|okay|ok)(?: thing)?[!,.:]\s*"
    r"|here(?:'s| is| are) [^.:\n]{0,100}:\s*"
    r"|the (?:image|picture) (?:can be|is) described as follows:\s*"
    r"|(?:caption|(?:\w+ )?description|(?:\w+ )?sentence|answer|assistant)\s*:\s*)+",
    re.IGNORECASE,
)

_PICTURE = r"(?:image|picture|photo|photograph|scene)"
_SHOWS = (
    r"(?:features?|shows?|depicts?|displays?|presents?|portrays?|captures?|showcases?|contains?|illustrates?|includes?|"
    r"consists of|is of|is showing|is featuring|is depicting)"
)
_SEEN = r"(?:there (?:is|are)|(?:we|you|one|i) (?:can )?(?:also |clearly )?see)"
_OPENING = re.compile(
    rf"(?:(?:the|this) {_PICTURE} (?:\w+ly )?{_SHOWS} "
    rf"|(?:the|this) {_PICTURE} is (?=an? )"
    rf"|in (?:the|this) {_PICTURE},? {_SEEN} "
    rf"|in (?:the|this) {_PICTURE}, "
    r"|(?:we|you|i) (?:can )?see "
    rf"|(?:this|it) is an? {_PICTURE} (?:of|showing|featuring|depicting) "
    r"|an? (?:image|picture) (?:of|showing|featuring|depicting) )",
    re.IGNORECASE,
)

_REFUSAL = re.compile(
    r"(?:(?:i'?m|i am) (?:\w+ )?sorry\b|sorry,|sorry but|(?:my )?apologies\b|i apologi[sz]e\b"
    r"|(?:unfortunately,? )?(?:as an? (?:\w+ )?(?:ai|artificial|language)\b"
    r"|i(?: cannot| can't| can ?not|'m unable| am unable|'m not able| am not able| do not have| don't have)\b"
    r"|(?:there is|i see) no (?:image|picture)\b|no (?:image|picture) (?:is|was|has been)\b"
    r"|(?:please|could you(?: please)?) (?:provide|upload|share|attach)\b"
    r"|you (?:have not|haven't|did not|didn't) (?:provide|upload|share|attach)"
    r"|it (?:seems|appears|looks like)(?: that)?(?: the| there is no| no) (?:image|picture)\b[^.]*"
    r"(?:missing|not|no |unable|fail|blank)))",
    re.IGNORECASE,
)

_LONGEST_LOOP = 30
_FEW_DIFFERENT, _MANY_WORDS = 0.5, 60


def plain_text(raw: str) -> str:
    """An answer without reasoning, Markdown, a lead-in ("Sure! Here is ...:") or quotes around it, on one line."""
    text = " ".join(_MARKUP.sub(" ", _THOUGHTS.sub("", raw)).split())
    rest = text[match.end() :] if (match := _LEAD_INS.match(text)) else text
    for left, right in ('""', "''", "“”"):
        if len(rest) > 1 and rest[0] == left and rest[-1] == right and not {left, right} & set(rest[1:-1]):
            rest = rest[1:-1].strip()
    return rest


def strip_opening(text: str) -> tuple[str, str]:
    """The text without a stock opening such as "The image features ", and that opening ("" for none).

    The rest begins with a capital where the text did.
    """
    match = _OPENING.match(text)
    if match is None:
        return text, ""
    rest = text[match.end() :]
    return (rest[:1].upper() + rest[1:] if text[:1].isupper() else rest), match.group().strip()


def is_refusal(text: str) -> bool:
    """Whether the text begins as models do that will not or cannot answer."""
    return _REFUSAL.match(text.replace("’", "'")) is not None


def find_repetition(text: str) -> str:
    """The piece that a text repeats like a model caught in a loop; "" where there is none.

    Loops are: up to 30 words said three times in a row (up to three words: four times), a sentence said three times
    anywhere, and a long text fewer than half of whose runs of four words are different. One object on the left and
    another on the right are none.
    """
    words = re.findall(r"\w+", text.lower())
    for length in range(1, _LONGEST_LOOP + 1):
        needed = length * (3 if length < 4 else 2)
        same = 0
        for place in range(length, len(words)):
            same = same + 1 if words[place] == words[place - length] else 0
            if same == needed:
                return " ".join(words[place - length + 1 : place + 1])
    sentences = Counter(s for s in re.split(r"[.!?;]\s*", text.lower()) if len(s.split()) > 2)
    for sentence, count in sentences.most_common(1):
        if count > 2:
            return sentence
    runs = Counter(zip(words, words[1:], words[2:], words[3:]))
    if len(words) >= _MANY_WORDS and len(runs) < _FEW_DIFFERENT * runs.total():
        return " ".join(runs.most_common(1)[0][0])
    return ""
