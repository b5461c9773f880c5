r"""The one normaliser of mathematical answers: the right answer and the given one both go through it before parsing."""

import re
from dataclasses import dataclass

from entropy_rl.rewards import characters, numerals, units
from entropy_rl.rewards.wrappers import MAX_LAYERS, closing, plain


@dataclass(frozen=True)
class Written:
    r"""An answer as it is written, without what changes nothing.

    Attributes:
        text: LaTeX; what math-verify parses.
        label: the letter of a labelled choice, upper case: B of `\textbf{(B)}\ 12`, whose text is 12. "" without one.
        units: the known units that were taken off, by their canonical names.
        percent: whether a percent sign was taken off.
        listed: the text as a list if it is one number with commas, such as 100,200; "" otherwise.
        bases: (numeral, base) of the numerals with a base other than 10, sorted.
    """

    text: str
    label: str = ""
    units: frozenset[str] = frozenset()
    percent: bool = False
    listed: str = ""
    bases: tuple[tuple[str, int], ...] = ()


_TAGS = re.compile(r"</?(?:b|i|em|strong|sub|sup|p|br|span)\s*/?>", re.IGNORECASE)
_SIZES = re.compile(
    r"\\(?:displaystyle|textstyle|scriptstyle|tiny|small|normalsize|large|Large|LARGE|huge|Huge|bf|it|rm|sf|tt|"
    r"bfseries|limits|nolimits|centering|m?left|m?right|(?:big|Big|bigg|Bigg)[lrm]?)(?![A-Za-z])\.?\s*"
)
_COLOUR = re.compile(r"\\(?:textcolor|colorbox|color)\s*(?:\[[^\]{}]*\])?\s*\{[^{}]*\}")
_SPACES = re.compile(
    r"(?<!\\)\\[,;:> \n]|(?<!\\)~|\\(?:q?quad|enspace|enskip|(?:thin|med|thick)space|space|nobreakspace|hfill|null)"
    r"(?![A-Za-z])|\\(?:h|v|m)space\*?\s*\{[^{}]*\}|\\[hv]?phantom\s*\{[^{}]*\}|\\(?:tag|label)\*?\s*\{[^{}]*\}"
)
_FONTS = re.compile(
    r"\\(?:mathbf|boldsymbol|bm|pmb|mathit|mathsf|mathtt|mathnormal|underline|uline|ensuremath|fbox)\s*(?={)"
)
_TEXTS = re.compile(r"\\(?:text(?:bf|it|rm|tt|sf|sc|normal|up)|emph|mathrm|mbox|hbox|text)\s*(?={)")
_ROMAN_LETTER = re.compile(r"\\(?:mathrm|text|mathbf|mathit)\s*\{\s*([eid])\s*\}")
_SYNONYMS = (
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\varnothing(?![A-Za-z])"), r"\\emptyset"),
    (re.compile(r"\\(?:l|c|h|)dots[cbmio]?(?![A-Za-z])|\.{3,}|(?:\. ){2,}\."), r"\\ldots "),
    (re.compile(r"\\(?:lbrace)(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\(?:rbrace)(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\(?:lbrack)(?![A-Za-z])"), "["),
    (re.compile(r"\\(?:rbrack)(?![A-Za-z])"), "]"),
    (re.compile(r"\\langle(?![A-Za-z])"), "("),
    (re.compile(r"\\rangle(?![A-Za-z])"), ")"),
    (re.compile(r"\\(?:leq|leqslant|leqq)(?![A-Za-z])|<="), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant|geqq)(?![A-Za-z])|>="), r"\\ge "),
    (re.compile(r"\\ne(?![A-Za-z])|!="), r"\\neq "),
    (re.compile(r"\{\s*([-+])\s*\}"), r"\1"),
    (re.compile(r"(?:^|(?<=[\s(=]))\{\s*\}(?=\s*[-+\d])"), ""),
    (re.compile(r"\\(?:lor|vee)(?![A-Za-z])"), ","),
    (re.compile(r"\\(?:minus)(?![A-Za-z])"), "-"),
    (re.compile(r"(?<=[\w)}])\*\*(?=[\w({\-])"), "^"),
    (re.compile(r"\^\s*(-?\d{2,}(?![\d.]))"), r"^{\1}"),
    (re.compile(r"\^\s*-\s*(\d)"), r"^{-\1}"),
    (re.compile(r"(?:\\|(?<![A-Za-z\\]))sqrt\s*\(((?:[^()]|\([^()]*\))*)\)"), r"\\sqrt{\1}"),
)
_ANSWER = re.compile(
    r"^(?:\\text\s*\{\s*)?(?:(?:so|hence|thus|therefore),?\s+)?(?:(?:the|my)\s+)?(?:(?:final|correct|right)\s+)?"
    r"(?:answer|ans\.?|result|solution|choice|option)(?:\s+is|(?=\s*[:=]))\s*[:=]?\s*",
    re.IGNORECASE,
)
_LEADING = re.compile(r"^(?:=|\\approx|\\therefore|\\implies|\\Rightarrow|\\to|\\sim)(?![A-Za-z=])\s*")
_TRAILING = re.compile(r"(?:\\?[.,;:]|\s|\\\\|\\checkmark)+$")
_LABEL = re.compile(
    r"^\\text\s*\{\s*(?:\(([A-J])\)|([A-J])[.):])\s*:?\s*\}\s*[:.]?(?=\s*\S)|"
    r"^\(([A-J])\)[:.]?\s+(?![+*/^_=<>,]|-\s|\\(?:times|cdot|cup|cap|div|pm|le|ge)(?![A-Za-z]))(?=\S)|"
    r"^\{\s*\(([A-J])\)\s*\}(?=\s*\S)|"
    r"^\(\s*\\text\s*\{\s*([A-J])\s*\}\s*\)(?=\s*\S)|"
    r"^([A-J])[.):]\s+(?=\S)"
)
_CHOICE = re.compile(
    r"^(?:\\text\s*\{)?\s*(?:(?i:choice|option|answer)\s+)?\(?\s*(?:\\text\s*\{)?\s*([A-Ja-j])\s*\}?\s*\)?[.:]?\s*\}?$"
)


def normalise(answer: str) -> Written:
    r"""Reads an answer's writing.

    >>> normalise(r"\textbf{(B)}\ ½ €.")
    Written(text='\\frac{1}{2}', label='B', units=frozenset({'euro'}), percent=False, listed='', bases=())
    """
    text = _tidied(characters.latex(answer))
    label = ""
    if match := _LABEL.match(text):
        label = next(letter for letter in match.groups() if letter)
        text = _bare(text[match.end() :])
    elif match := _CHOICE.match(text):
        label = match[1].upper() if match[1].isupper() or match.group() != match[1] else ""
        return Written(match[1], label)
    text, bases = numerals.bases(text)
    text, found, percent = units.take_off(text)
    text = _bare(text)
    listed = numerals.as_list(text)
    text = _bare(numerals.rewrite(text))
    return Written(re.sub(r"\s+", " ", text).strip(), label, found, percent, listed, bases)


def _tidied(text: str) -> str:
    """Without markup anywhere in the text and around it."""
    text = _TAGS.sub("", text).replace("\\!", "")
    text = _SIZES.sub(" ", _COLOUR.sub("", text))
    text = _bare(text)
    text = _SPACES.sub(" ", text)
    text = _ROMAN_LETTER.sub(r"\1", text) if not re.search(r"\d\s*\\mathrm\s*\{\s*d\s*\}", text) else text
    text = _TEXTS.sub(r"\\text", _FONTS.sub("", text))
    for pattern, latex in _SYNONYMS:
        text = pattern.sub(latex, text)
    return _bare(text)


def _bare(text: str) -> str:
    """Without wrappers, labels and punctuation around the whole text, whatever their order."""
    for _ in range(MAX_LAYERS):
        before = text
        text = _TRAILING.sub("", plain(text))
        text = _LEADING.sub("", _unlabelled(text))
        if text.startswith("{") and closing(text, 0) == len(text) - 1:
            text = text[1:-1]
        if text == before:
            break
    return text


def _unlabelled(text: str) -> str:
    """Without an "Answer:" in front."""
    match = _ANSWER.match(text)
    if match is None or match.end() == len(text):
        return text
    rest = text[match.end() :]
    if "{" not in match.group():
        return rest
    # \text{Answer: } 5 and \text{Answer: 5}
    end = closing("{" + rest, 0) - 1
    return rest[:end] + " " + rest[end + 1 :] if end >= 0 else text
