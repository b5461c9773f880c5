r"""Numbers as people write them, as LaTeX that can only be read in one way.

12 345, 12\,345 and 10{,}000 (thousands), 2 1/3 (mixed), 0.\overline{3} (repeating), 4.5e33, 1011_2 (another base).
"""

import math
import re
from decimal import Decimal

_MAX_WRITTEN_OUT = 400  # decimal places of a number in e-notation that is written out; the others become m·10^n

_E_NOTATION = re.compile(
    r"(?<![A-Za-z\d.\\}_^])(\d+(?:\.\d*)?|\.\d+)(?:[eE]|\\text\s*\{\s*[eE]\s*\})(\{)?([+-]?\d{1,9})(?(2)\})(?![\w.]*[A-Za-z\d_])"
)
_LETTER_TIMES = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)")
_BRACED_COMMA = re.compile(r"(?<=\d)\s*\{\s*,\s*\}\s*(?=\d)")
_COMMAS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_SPACES = re.compile(r"(?<![\d.,_^])[1-9]\d{0,2}(?:[ ]\d{3})+(?![\d/]|\s*/)")
_DECIMAL_SPACES = re.compile(r"(?<=\.)\d{3}(?: \d{3})*(?: \d{1,3})(?![\d/])")
_DOTS = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{3}){2,}(?![\d.])")
_APOSTROPHES = re.compile(r"(?<![\d.'])\d{1,3}(?:'\d{3})+(?![\d'])")
_OVERLINE = re.compile(
    r"(?<![\d.])(\d*)\.(\d*)\s*(?:\\(?:overline|bar|dot|overbar|overset\{\\cdot\})\s*(?:\{\s*(\d+)\s*\}|(\d)))"
)
_TWO_DOTS = re.compile(r"(?<![\d.])(\d*)\.(\d*)\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?")
_PARENTHESIS = re.compile(r"(?<![\d.\w)])(0?)\.(\d*)\((\d+)\)(?![\w(^])")
_ELLIPSIS = re.compile(r"(?<![\d.])(\d*)\.(\d*?)(\d{1,6}?)\3{2,}\s*\\ldots")
_ROUNDED = re.compile(r"(?<=\d)(\.\d+)\s*\\ldots(?!\s*[,\d])")
_MIXED = re.compile(r"(?<![\w.^_}/])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])")
_MIXED_LATEX = re.compile(r"(?<![\w.^_}/])(\d+)\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_DOUBLE_FACTORIAL = re.compile(r"(?<![\d.])(\d{1,3})!!(?!!)")  # 7!! is 7·5·3·1, not (7!)!
_DIGIT_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\d)")
_NAMES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_WORDS = _NAMES.split()
_NUMERAL = r"(\d[\dA-F]*)"
_NUMBER = rf"(?:base\s*-?\s*)?(\d+|{'|'.join(_WORDS)})"
_BASE = re.compile(
    rf"(?<![\w.])(?:\(\s*{_NUMERAL}\s*\)|\\text\s*\{{\s*{_NUMERAL}\s*\}}|{_NUMERAL})\s*_\s*"
    rf"(?:(\d+)(?!\w)|\{{\s*\(?\s*{_NUMBER}\s*\)?\s*\}}|\\text\s*\{{\s*{_NUMBER}\s*\}}|"
    rf"\{{\s*\\text\s*\{{\s*{_NUMBER}\s*\}}\s*\}}|\{{\s*\\text\s*\{{\s*base\s*\}}\s*(\d+)\s*\}})"
)
_NAMED = rf"(?:in\s+)?base\s*-?\s*(\d+|{'|'.join(_WORDS)})"
_BASE_WORD = re.compile(
    rf"(?<![\w.]){_NUMERAL}\s*(?:\(\s*{_NAMED}\s*\)|\\text\s*\{{\s*\(?\s*{_NAMED}\s*\)?\s*\}}|{_NAMED}(?!\w)|"
    r"\\text\s*\{\s*(?:in\s+)?base\s*\}\s*(\d+))"
)


def rewrite(text: str) -> str:
    r"""The text with its numbers rewritten.

    >>> rewrite("2 1/3"), rewrite("12 345"), rewrite(r"0.\overline{3}"), rewrite("1e-05"), rewrite("2e")
    ('(2+\\frac{1}{3})', '12345', '\\frac{3}{9}', '0.00001', '2e')
    """
    text = _E_NOTATION.sub(_written_out, text)
    text = _LETTER_TIMES.sub(r"\\times ", text)
    text = _braced_commas(text)
    text = _joined_outside_brackets(text)
    for pattern in (_SPACES, _DECIMAL_SPACES):
        text = pattern.sub(lambda match: match.group().replace(" ", ""), text)
    text = _DOTS.sub(lambda match: match.group().replace(".", ""), text)
    text = _APOSTROPHES.sub(lambda match: match.group().replace("'", ""), text)
    text = _TWO_DOTS.sub(lambda m: _repeating(m[1], m[2], m[3] + m[4] + m[5]), text)
    text = _OVERLINE.sub(lambda m: _repeating(m[1], m[2], m[3] or m[4]), text)
    text = _PARENTHESIS.sub(lambda m: _repeating(m[1], m[2], m[3]), text)
    text = _ELLIPSIS.sub(lambda m: _repeating(m[1], m[2], m[3]), text)
    text = _ROUNDED.sub(r"\1", text)
    text = _DOUBLE_FACTORIAL.sub(lambda m: str(math.prod(range(int(m[1]), 0, -2))), text)
    text = _DIGIT_FRACTION.sub(r"\\frac{\1}{\2}", text)
    return _MIXED_LATEX.sub(_mixed, _MIXED.sub(_mixed, text))


def as_list(text: str) -> str:
    """A number such as 100,200 read as a list; "" if the text is anything else, such as 1,000: no element is 000."""
    is_list = _COMMAS.fullmatch(text) and not any(part.startswith("0") for part in text.split(","))
    return text.replace(",", ", ") if is_list else ""


def bases(text: str) -> tuple[str, tuple[tuple[str, int], ...]]:
    """The text without the subscripts of numerals, and (numeral, base) in order; base 10 is not listed.

    >>> bases("1011_2 + 7_{10}")
    ('1011 + 7', (('1011', 2),))
    """
    found = []

    def without(match: re.Match[str]) -> str:
        numeral, name = filter(None, match.groups())
        base = int(name) if name.isdigit() else _WORDS.index(name)
        if not 2 <= base <= 36 or not (numeral.isdigit() or base > 10):
            return match.group()
        if base != 10:
            found.append((numeral.lstrip("0") or "0", base))
        return numeral if numeral.isdigit() else str(int(numeral, 36))

    return _BASE_WORD.sub(without, _BASE.sub(without, text)), tuple(sorted(found))


def _written_out(match: re.Match[str]) -> str:
    mantissa, exponent = match[1], int(match[3])
    if abs(exponent) > _MAX_WRITTEN_OUT:
        return rf"({mantissa}\times 10^{{{exponent}}})"
    digits = f"{Decimal(mantissa).scaleb(exponent):f}"
    # 4.5e33 is a measured number, compared to six digits; 1e5 is an integer.
    return f"{digits}.0" if "." in mantissa and "." not in digits else digits


def _braced_commas(text: str) -> str:
    """10{,}000 is ten thousand and 1{,}5 is one and a half."""
    if "{" not in text:
        return text
    joined = _BRACED_COMMA.sub("\0", text)
    joined = re.sub(r"(?<![\d.\0])[1-9]\d{0,2}(?:\0\d{3})+(?![\d\0])", lambda m: m.group().replace("\0", ""), joined)
    return joined.replace("\0", ".")


def _joined_outside_brackets(text: str) -> str:
    """1,000 without its comma; inside (…), […] and {…} a comma separates elements."""
    if "," not in text:
        return text
    depth, at, parts = 0, 0, []
    for bracket in re.finditer(r"\\\{|\\\}|[()\[\]]|$", text):
        piece = text[at : bracket.start()]
        parts.append(_COMMAS.sub(lambda m: m.group().replace(",", ""), piece) if depth == 0 else piece)
        parts.append(bracket.group())
        depth += 1 if bracket.group() in ("\\{", "(", "[") else -1
        at = bracket.end()
    return "".join(parts)


def _repeating(whole: str, start: str, period: str) -> str:
    r"""The fraction whole.start\overline{period}."""
    bottom = (10 ** len(period) - 1) * 10 ** len(start)
    top = int((whole + start + period) or "0") - int((whole + start) or "0")
    return rf"\frac{{{top}}}{{{bottom}}}"


def _mixed(match: re.Match[str]) -> str:
    whole, top, bottom = match.groups()
    proper = int(top) < int(bottom)  # after a number, an improper fraction may be meant as a factor
    return rf"({whole}+\frac{{{top}}}{{{bottom}}})" if proper else match.group()
