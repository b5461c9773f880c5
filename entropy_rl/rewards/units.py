r"""Takes the units, currencies and degree signs off an answer, and says which they were.

A unit is a word in \text{…} after a number, or a known word of two letters or more. A bare letter, the t of 5t, is a
variable. Units are not converted: two answers whose known units differ are different, and one without a unit agrees
with any.
"""

import re

from entropy_rl.rewards.measures import CANONICAL, directions, measure

# Products of variables as well: 2mg may be 2·m·g; only 2 mg is taken for a unit.
_LETTERS_TOO = frozenset(["mg", "ml", "mi", "ms", "ns", "hr", "rs", "gm", "kn", "kj", "kw", "nm", "dm", "us", "um"])
_NOT_BARE = _LETTERS_TOO | frozenset(["in", "am", "pm", "pa", "ev"])
_BARE = [word for word in CANONICAL if len(word) > 1 and word.isalpha() and word not in _NOT_BARE]
_BARE += ["mph", "kmh", "kph", "kmph"]
_COUNTED = "unit people student child children men women apple coin way time point person"
_BARE += _COUNTED.split()
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
# Words that make a text a statement and not a unit.
_STATEMENT = re.compile(
    r"\b(?:not?|is|are|if|when|where|for|all|any|except|at|most|least|more|less|than|mod|or|and|but|wrong|right|with|"
    r"even|odd|prime|base)\b|[(){}=<>\\\d]",
    re.IGNORECASE,
)

_INSIDE = r"\{((?:[^{}]|\{[^{}]*\})*)\}"  # of \text, such as {m s^{-1}}
_POWER = r"(?:\s*\^\s*(?:\{\s*-?\d\s*\}|-?\d))?"
_TEXT = re.compile(
    rf"\\text\s*{_INSIDE}({_POWER})"
    rf"((?:\s*(?:/|\\cdot|\*)?\s*\\text\s*{_INSIDE.replace('((?', '(?:(?')}{_POWER})*)"
)
_LETTERS = {r"\mu": "μ", r"\Omega": "Ω", r"\AA": "Å"}  # of units, inside \text{…} and before it
_LETTER = re.compile(r"(\\(?:mu|Omega|AA))(?![A-Za-z])\s*(?=[^{}]*\})")
_EXPONENT = re.compile(r"\^\s*\{?\s*-?\d\s*\}?")
_TEXT_MARKUP = re.compile(rf"\\text\s*{_INSIDE}")
_LETTER_BEFORE = re.compile(r"(?<=[\d}])\s*\\mu\s*\\text\s*\{\s*(?=[A-Za-z])")
_ORDINAL = re.compile(r"(?<=\d)\s*(?:\^\s*(?:\{\s*)?)?(?:\\text\s*\{\s*)?(?:st|nd|rd|th)(?:\s*\}){0,2}$")
_FRACTION = re.compile(r"\\frac\s*\{\s*\\text\{([^{}]*)\}\s*\}\s*\{\s*\\text\{([^{}]*)\}(\s*\^\s*\{?\d\}?)?\s*\}")
_WORDS = re.compile(
    r"(?:(?<=[\d})!])|(?<=\\pi))(?:\s*(?:(?:(?:square|sq\.?|cubic|cu\.?)\s+)?"
    rf"(?:{'|'.join(sorted(_BARE, key=len, reverse=True))})(?:es|s)?\.?)|(?<=\d)\s+(?:{'|'.join(_LETTERS_TOO)}))"
    r"(?:\s*(?:/|per(?![a-z]))\s*(?:h|s|hr|hour|sec|second|min|minute|day|person|unit|gallon|mile)\b)?"
    r"(?![A-Za-z(])(?:\s*\^\s*\{?[23]\}?)?(?=\s*(?:$|[,;)\]]|\\\}))",
    re.IGNORECASE,
)
_SCALE = re.compile(rf"(?<=[\d}}])\s*(?:\\text\{{\s*)?({'|'.join(_SCALES)})(?![A-Za-z])s?\s*", re.IGNORECASE)
_CURRENCY = re.compile(
    r"(?:(?<![A-Za-z])(?:US|C|A))?\\?([$€£¥₹₩₽¢])|\\(pounds|euro|yen)(?![A-Za-z])|^\s*(USD|EUR|GBP|Rs\.?)\s*(?=[\d.])"
)
_DEGREE = re.compile(
    r"(?:\^\s*(?:\\circ(?![a-z])|\{\s*\\circ\s*\}|\\degree(?![a-z])|\\text\s*\{\s*o\s*\}|\{\s*\\text\s*\{\s*o\s*\}\s*\}|"
    r"(?<=\d\^)(?:o(?![a-z])|\{\s*o\s*\}))|\\degree(?![a-z]))(?:\s*\\text\s*\{\s*([CFK])\s*\}|\s*([CFK])(?![A-Za-z]))?"
)
_ARCS = re.compile(r"(?<![\d.])(\d+)\s*(\^\s*\{?\s*\\circ\s*\}?)\s*(\d{1,2})\s*'(?!')(?:\s*(\d{1,2})\s*(?:''|\"))?")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_PERCENT = re.compile(r"\\?%|\\text\s*\{\s*(?:%|\\%|percent(?:age)?(?: points?)?|pct)\s*\}|\b(?:percent(?:age)?|pct)\b")
_CLOCK = re.compile(
    r"(\d{1,2}:\d{2})\s*(?:\\text\s*\{\s*([ap])\.?\s?m\.?\s*\}|([ap])\.?\s?m(?![A-Za-z])\.?)", re.IGNORECASE
)


def take_off(text: str) -> tuple[str, frozenset[str], bool]:
    r"""The text without units, the known units among them, and whether there was a percent sign.

    >>> take_off(r"12\text{ cm}^2")
    ('12', frozenset({'cm^2'}), False)
    >>> take_off("5t")
    ('5t', frozenset(), False)
    """
    found: set[str] = set()

    def currency(match: re.Match[str]) -> str:
        word = next(group for group in match.groups() if group).lower().rstrip(".")
        found.add({"pounds": "pound sterling"}.get(word) or CANONICAL.get(word, word))
        return ""

    def degree(match: re.Match[str]) -> str:
        scale = {"C": "celsius", "F": "fahrenheit", "K": "kelvin"}.get(match[1] or match[2] or "", "degree")
        if scale == "degree" and _TRIGONOMETRIC.search(text):
            return r"\cdot\frac{\pi}{180}"
        found.add(scale)
        return ""

    def clock(match: re.Match[str]) -> str:
        found.add((match[2] or match[3]).lower() + "m")
        return match[1]

    text = _LETTER_BEFORE.sub(r"\\text{μ", _LETTER.sub(lambda match: _LETTERS[match[1]], text))
    text = _ARCS.sub(_in_degrees, _ORDINAL.sub("", _CLOCK.sub(clock, text)))
    text, percents = _PERCENT.subn("", text)
    text = _CURRENCY.sub(currency, text)
    text = _SCALE.sub(_scaled, text)
    text = _DEGREE.sub(degree, text)
    text = _FRACTION.sub(r"\\text{\1/\2\3}", text)
    text = _TEXT.sub(lambda match: _worded(match, found), text)
    if not _TRIGONOMETRIC.search(text):
        text = _WORDS.sub(lambda match: _named(match.group(), found), text)
    return text.strip(), frozenset(found), percents > 0


def _scaled(match: re.Match[str]) -> str:
    opened = match.group().lstrip().startswith("\\text")
    power = rf"\times 10^{{{_SCALES[match[1].lower()]}}}"
    return power + (r"\text{" if opened else " ")


def _in_degrees(match: re.Match[str]) -> str:
    """Degrees, minutes and seconds as degrees."""
    minutes, seconds = int(match[3] or 0), int(match[4] or 0)
    return rf"({match[1]}+\frac{{{minutes * 60 + seconds}}}{{3600}}){match[2]}"


def _worded(match: re.Match[str], found: set[str]) -> str:
    r"""What replaces one or several \text{…} in a row."""
    words = match[1].strip()
    if re.fullmatch(r",?\s*(?:and|or)", words):
        return "," + match[3]
    if not any(character.isalpha() for character in words):
        return f" {words} {match[2] or ''}" + match[3]
    before = match.string[: match.start()].rstrip()
    after = match.string[match.end() :].lstrip()
    if not before or (after and after[0] not in ",;)]" and not after.startswith("\\}")):
        return match.group()
    every = _TEXT_MARKUP.sub(r" \1 ", match.group())
    if measure(every) is None:  # then it is a unit only where it cannot be anything else
        is_number = before[-1].isdigit() or before[-1] in "})!" or before.endswith("\\pi")
        if not is_number or _STATEMENT.search(_EXPONENT.sub("", every)):
            return match.group()
    return _named(every, found)


def _named(words: str, found: set[str]) -> str:
    if (unit := measure(words)) is not None:
        found.add(unit)
    found |= directions(words)
    return ""
