r"""Takes the units, currencies and degree signs off an answer, and says which they were.

A unit is a word in \text{…} after a number, or a known word of two letters or more. A bare letter, the t of 5t, is a
variable. Units are not converted: two answers whose known units differ are different, and one without a unit agrees
with any.
"""

import re

# Canonical name: the spellings that mean it. Words that are not here are taken off as well if they are in \text{…},
# but are compared with nothing: "7 apples" is 7.
_SPELLINGS = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "m": "meter metre",
    "km": "kilometer kilometre",
    "inch": "in inches",
    "foot": "ft feet",
    "yard": "yd",
    "mile": "mi",
    "mg": "milligram",
    "g": "gram gm",
    "kg": "kilogram",
    "pound": "lb",
    "ounce": "oz",
    "ton": "tonne",
    "ml": "milliliter millilitre",
    "l": "liter litre",
    "gallon": "gal",
    "s": "second sec",
    "ms": "millisecond",
    "minute": "min",
    "hour": "h hr",
    "day": "",
    "week": "",
    "month": "",
    "year": "yr",
    "dollar": "$ usd",
    "cent": "¢",
    "euro": "€ eur",
    "pound sterling": "£ gbp",
    "yen": "¥ jpy",
    "rupee": "₹ rs inr",
    "degree": "deg",
    "radian": "rad",
    "celsius": "",
    "fahrenheit": "",
    "kelvin": "k",
    "am": "a.m",
    "pm": "p.m",
    "mph": "",
    "km/h": "kmh kmph kph",
    "hz": "hertz",
    "n": "newton",
    "j": "joule",
    "w": "watt",
    "v": "volt",
    "pa": "pascal",
    "ev": "",
    "mol": "mole",
}
_CANONICAL = {word: name for name, words in _SPELLINGS.items() for word in [name, *words.split()]}
_BARE = [word for word in _CANONICAL if len(word) > 1 and word.isalpha() and word not in ("in", "am", "pm", "pa", "ev")]
_COUNTED = "unit people student child children men women apple coin way time point person"
_BARE += _COUNTED.split()
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
# Words that make a text a statement and not a unit.
_STATEMENT = re.compile(
    r"\b(?:not?|is|are|if|when|where|for|all|any|except|at|most|least|more|less|than|mod|or|and|but|wrong|right|with|"
    r"even|odd|prime|base)\b|[(){}=<>\\\d]",
    re.IGNORECASE,
)

_TEXT = re.compile(
    r"\\text\s*\{([^{}]*)\}(\s*\^\s*(?:\{\s*-?\d\s*\}|-?\d))?"
    r"((?:\s*(?:/|\\cdot|\*)?\s*\\text\s*\{[^{}]*\}(?:\s*\^\s*(?:\{\s*-?\d\s*\}|-?\d))?)*)"
)
_FRACTION = re.compile(r"\\frac\s*\{\s*\\text\{([^{}]*)\}\s*\}\s*\{\s*\\text\{([^{}]*)\}(\s*\^\s*\{?\d\}?)?\s*\}")
_WORDS = re.compile(
    r"(?<=[\d})!])\s*((?:(?:square|sq\.?|cubic|cu\.?)\s+)?"
    rf"(?:{'|'.join(sorted(_BARE, key=len, reverse=True))})(?:es|s)?\.?"
    r"(?:\s*/\s*(?:h|s|hr|hour|sec|second|min|minute|day|person|unit)\b)?)"
    r"(?![A-Za-z(])(?:\s*\^\s*\{?[23]\}?)?(?=\s*(?:$|[,;)\]]|\\\}))",
    re.IGNORECASE,
)
_SCALE = re.compile(rf"(?<=[\d}}])\s*(?:\\text\{{\s*)?({'|'.join(_SCALES)})(?![A-Za-z])s?\s*", re.IGNORECASE)
_CURRENCY = re.compile(r"\\?([$€£¥₹₩₽])|\\(pounds|euro|yen)(?![A-Za-z])|^\s*(USD|EUR|GBP|Rs\.?)\s*(?=[\d.])")
_DEGREE = re.compile(
    r"(?:\^\s*(?:\\circ(?![a-z])|\{\s*\\circ\s*\}|\\degree(?![a-z])|\\text\s*\{\s*o\s*\}|\{\s*\\text\s*\{\s*o\s*\}\s*\}|"
    r"(?<=\d\^)(?:o(?![a-z])|\{\s*o\s*\}))|\\degree(?![a-z]))(?:\s*\\text\s*\{\s*([CFK])\s*\}|\s*([CFK])(?![A-Za-z]))?"
)
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_PERCENT = re.compile(r"\\?%|\\text\s*\{\s*(?:%|\\%|percent(?:age)?(?: points?)?|pct)\s*\}|\b(?:percent(?:age)?|pct)\b")
_CLOCK = re.compile(
    r"(\d{1,2}:\d{2})\s*(?:\\text\s*\{\s*([ap])\.?\s?m\.?\s*\}|([ap])\.?\s?m(?![A-Za-z])\.?)", re.IGNORECASE
)


def take_off(text: str) -> tuple[str, frozenset[str], bool]:
    r"""The text without units, the known units among them, and whether there was a percent sign.

    >>> take_off(r"12\text{ cm}^2")
    ('12', frozenset({'cm'}), False)
    >>> take_off("5t")
    ('5t', frozenset(), False)
    """
    found: set[str] = set()

    def currency(match: re.Match[str]) -> str:
        word = next(group for group in match.groups() if group).lower().rstrip(".")
        found.add({"pounds": "pound sterling"}.get(word) or _CANONICAL.get(word, word))
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

    text = _CLOCK.sub(clock, text)
    text, percents = _PERCENT.subn("", text)
    text = _CURRENCY.sub(currency, text)
    text = _SCALE.sub(_scaled, text)
    text = _DEGREE.sub(degree, text)
    text = _FRACTION.sub(r"\\text{\1/\2}", text)
    text = _TEXT.sub(lambda match: _worded(match, found), text)
    if not _TRIGONOMETRIC.search(text):
        text = _WORDS.sub(lambda match: _bare(match, found), text)
    return text.strip(), frozenset(found), percents > 0


def _scaled(match: re.Match[str]) -> str:
    opened = match.group().lstrip().startswith("\\text")
    power = rf"\times 10^{{{_SCALES[match[1].lower()]}}}"
    return power + (r"\text{" if opened else " ")


def _worded(match: re.Match[str], found: set[str]) -> str:
    r"""What replaces one or several \text{…} in a row."""
    words = match[1].strip()
    if re.fullmatch(r",?\s*(?:and|or)", words):
        return "," + match[3]
    if not any(character.isalpha() for character in words):
        return f" {words} {match[2] or ''}" + match[3]
    before = match.string[: match.start()].rstrip()
    after = match.string[match.end() :].lstrip()
    every = " ".join([words, *re.findall(r"\\text\s*\{([^{}]*)\}", match[3])])
    if not before or not (before[-1].isdigit() or before[-1] in "})!") or _STATEMENT.search(every):
        return match.group()
    if after and after[0] not in ",;)]" and not after.startswith("\\}"):
        return match.group()
    found |= _known(words, bool(match[3]))
    return ""


def _bare(match: re.Match[str], found: set[str]) -> str:
    found |= _known(match[1], several=False)
    return ""


def _known(words: str, several: bool) -> set[str]:
    words = re.sub(r"^(?:square|sq\.?|cubic|cu\.?)\s+", "", words.strip().lower().rstrip("."))
    for candidate in (words, words.removesuffix("s"), words.removesuffix("es")):
        if not several and candidate in _CANONICAL:
            return {_CANONICAL[candidate]}
    return set()
