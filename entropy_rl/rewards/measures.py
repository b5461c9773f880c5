r"""The names of units: which spellings mean the same, also of products and powers such as kg m/s^2."""

import re
from collections import Counter

# Canonical name: the spellings that mean it. Words that are not here are taken off as well if they are in \text{…},
# but are compared with nothing: "7 apples" is 7.
_SPELLINGS = {
    "nm": "nanometer nanometre",
    "μm": "µm um micrometer micrometre micron",
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "dm": "decimeter decimetre",
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
    "ns": "nanosecond",
    "μs": "µs us microsecond",
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
    "hz": "hertz",
    "khz": "kilohertz",
    "n": "newton",
    "kn": "kilonewton",
    "j": "joule",
    "kj": "kilojoule",
    "w": "watt",
    "kw": "kilowatt",
    "v": "volt",
    "ohm": "Ω",
    "pa": "pascal",
    "kpa": "kilopascal",
    "ev": "",
    "mol": "mole",
}
CANONICAL = {word.lower(): name for name, words in _SPELLINGS.items() for word in [name, *words.split()]}
_RATES = {"mph": "mile/hour", "kmh": "km/hour", "kph": "km/hour", "kmph": "km/hour"}
# Which way a quantity points: 5 km north is not 5 km south.
_DIRECTIONS = {
    word: name
    for name, words in {
        "north": "northward",
        "south": "southward",
        "east": "eastward",
        "west": "westward",
        "up": "upward upwards above",
        "down": "downward downwards below",
        "increase": "increased gain profit",
        "decrease": "decreased loss",
        "clockwise": "",
        "counterclockwise": "anticlockwise",
    }.items()
    for word in [name, *words.split()]
}
_DEGREES = {"degree", "celsius"}, {"degree", "fahrenheit"}  # 20° may be 20 °C
_TOKEN = re.compile(
    r"\s*(?:(?P<per>/|per(?![a-z]))|(?P<bracket>[()])|(?P<before>square|sq\.?|cubic|cu\.?)\s|(?P<after>squared|cubed)"
    r"(?![a-z])|\^\s*\{?\s*(?P<power>-?\d)\s*\}?|(?P<word>a\.m|p\.m|[^\W\d_]+|[$€£¥₹¢])\.?|(?:[·*-]|\\cdot(?![a-z])))\s*"
)
_POWERS = {"sq": 2, "cu": 3}  # by the first two letters


def measure(words: str) -> str | None:
    r"""The canonical name of a unit or a product of units; None if one of them is not known, or there is none.

    >>> measure("kilograms m/s^2"), measure("square feet"), measure("mph"), measure("apples")
    ('kg m s^-2', 'foot^2', 'hour^-1 mile', None)
    """
    words = words.strip().lower()
    powers: Counter[str] = Counter()
    at, sign, grouped, pending, last = 0, 1, False, 1, ("", 1)
    while at < len(words):
        token = _TOKEN.match(words, at)
        if token is None:
            return None
        at = token.end()
        if token["per"]:
            sign = -1
        elif token["bracket"]:
            grouped = token["bracket"] == "("
            sign = sign if grouped else 1
        elif token["before"]:
            pending = _POWERS[token["before"][:2]]
        elif token["after"] or token["power"]:
            power = int(token["power"]) if token["power"] else _POWERS.get(token["after"][:2], 2)
            powers[last[0]] += last[1] * (power - 1)
        elif token["word"]:
            if (name := _name(token["word"])) is None:
                return None
            for part, way in zip(name.split("/"), (sign, -sign)):
                powers[part] += way * pending
            last, pending = (name, sign * pending), 1
            sign = sign if grouped else 1
    names = sorted(name for name, power in powers.items() if name and power)
    return " ".join(name if powers[name] == 1 else f"{name}^{powers[name]}" for name in names) or None


def directions(words: str) -> set[str]:
    """The directions in a text, by their canonical names: "5 km to the north" has north."""
    return {_DIRECTIONS[word] for word in re.findall(r"[a-z]+", words.lower()) if word in _DIRECTIONS}


def contradict(ours: frozenset[str], theirs: frozenset[str]) -> bool:
    """Whether the units of two answers differ. Units, rates (per …) and directions that one leaves out agree."""
    pairs = zip(_sorted_out(ours), _sorted_out(theirs))
    return any(a and b and a != b and a | b not in _DEGREES for a, b in pairs)


def _sorted_out(names: frozenset[str]) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Units, rates and directions."""
    ways = names & set(_DIRECTIONS.values())
    rates = frozenset(name for name in names - ways if all("^-" in part for part in name.split()))
    return names - ways - rates, rates, ways


def _name(word: str) -> str | None:
    for candidate in (word, word.removesuffix("s"), word.removesuffix("es")):
        if candidate in CANONICAL:
            return CANONICAL[candidate]
        if candidate in _RATES:
            return _RATES[candidate]
    return None
