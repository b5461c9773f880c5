r"""What people and models type instead of LaTeX, as LaTeX: ½, –, π, full-width digits, superscripts."""

import re
import unicodedata

_SIGNS = {
    "−–—‐‑‒―﹣⁃": "-",
    "×✕✖⨯": r"\times ",
    "·⋅∙⸱": r"\cdot ",
    "÷∕⁄": "/",
    "±": r"\pm ",
    "∓": r"\mp ",
    "≤⩽≦": r"\le ",
    "≥⩾≧": r"\ge ",
    "≠": r"\neq ",
    "≈≃≅": r"\approx ",
    "∞": r"\infty ",
    "°º˚": r"^{\circ}",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∖": r"\setminus ",
    "∅": r"\emptyset ",
    "⟨〈": r"\langle ",
    "⟩〉": r"\rangle ",
    "…⋯": r"\ldots ",
    "√": r"\sqrt ",
    "∛": r"\sqrt[3]",
    "、": ", ",
    "。": ".",
    "【": "[",
    "】": "]",
    "‘’": "'",
    "“”": '"',
    "′": "'",
    "″": "''",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "∠": r"\angle ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}",
}
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi "
    "psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega phi epsilon theta"
)
_GREEK = {
    letter: f"\\{name} "
    for letter, name in zip(
        "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩϕϵϑ",
        _GREEK_NAMES.split(),
        strict=True,
    )
}
_INVISIBLE = "\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufeff\u00ad\ufe0e\ufe0f"
_KEPT = "€£¥₹₽₩¢"  # currencies, which `units` reads
_TABLE = str.maketrans(
    {sign: latex for signs, latex in _SIGNS.items() for sign in signs} | _GREEK | dict.fromkeys(_INVISIBLE, "")
)

_SUPERSCRIPT = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni", strict=True))
_SUBSCRIPT = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₐₑₙₓ", "0123456789+-()aenx", strict=True))
_ROOT = re.compile(r"([√∛])\s*(\d+(?:\.\d+)?|[A-Za-z])")
_SUPERSCRIPTS = re.compile(f"[{''.join(map(re.escape, _SUPERSCRIPT))}]+")
_SUBSCRIPTS = re.compile(f"[{''.join(map(re.escape, _SUBSCRIPT))}]+")


def latex(text: str) -> str:
    r"""The text with its typographic characters as LaTeX or ASCII; other characters stay.

    >>> latex("２½π–３")
    '2\\frac{1}{2}\\pi -3'
    """
    if text.isascii():
        return text
    text = _ROOT.sub(lambda root: f"\\sqrt{'[3]' * (root[1] == '∛')}{{{root[2]}}}", text)
    text = _SUPERSCRIPTS.sub(lambda run: f"^{{{_spelt(run, _SUPERSCRIPT)}}}", text)
    text = _SUBSCRIPTS.sub(lambda run: f"_{{{_spelt(run, _SUBSCRIPT)}}}", text)
    return "".join(map(_one, text.translate(_TABLE))).translate(_TABLE)


def _spelt(run: re.Match[str], table: dict[str, str]) -> str:
    return "".join(table[character] for character in run.group())


def _one(character: str) -> str:
    if character.isascii() or character in _KEPT:
        return character
    if character.isspace():
        return " "
    if (digit := unicodedata.digit(character, None)) is not None and character.isdecimal():
        return str(digit)
    plain = unicodedata.normalize("NFKC", character)
    top, slash, bottom = plain.partition("\N{FRACTION SLASH}")
    return f"\\frac{{{top}}}{{{bottom}}}" if slash and top and bottom else plain
