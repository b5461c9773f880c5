r"""The one normaliser of mathematical answers: the right answer and the given one both go through it before parsing."""

import re
from dataclasses import dataclass, replace

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
        is_set: the text is the condition x>3 of a set {x | x>3}.
    """

    text: str
    label: str = ""
    units: frozenset[str] = frozenset()
    percent: bool = False
    listed: str = ""
    bases: tuple[tuple[str, int], ...] = ()
    is_set: bool = False


_DOUBLED = re.compile(r"\\\\(?=[A-Za-z]{2}|[{}%$])")  # as in a text of JSON that was not read as such
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
    (re.compile(r"\\(?:nice|s)frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}"), r"\\binom{\1}{\2}"),
    (re.compile(r"^([^{}]*)\\choose(?![A-Za-z])([^{}]*)$"), r"\\binom{\1}{\2}"),
    (re.compile(r"\\varnothing(?![A-Za-z])"), r"\\emptyset"),
    (re.compile(r"\\var(phi|epsilon|theta)(?![A-Za-z])"), r"\\\1"),
    (re.compile(r"\\mathbb\s*([A-Z])(?![A-Za-z])|\\([RZNQ])(?![A-Za-z])"), r"\\mathbb{\1\2}"),
    (re.compile(r"\\lg(?![A-Za-z])"), r"\\log_{10}"),
    (re.compile(r"\\log\s*_\s*e(?![A-Za-z])"), r"\\ln"),
    (re.compile(r"\\bmod(?![A-Za-z])"), r"\\mod"),
    (re.compile(r"\\hat\s*(?:\{\s*)?(?:\\(?=[ij]math))?([ijk])(?:math)?(?![A-Za-z])(?:\s*\})?"), r"\1"),
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


# Three dots or more: a sequence goes on. They are no punctuation, so they are read first.
_DOTS = re.compile(r"\\(?:l|c|h|)dots[cbmio]?(?![A-Za-z])|\.{3,}|(?:\. ){2,}\.")
_OUTWARD = re.compile(
    r"(?:(?<=^)|(?<=\\cup)|(?<=\\cap))(\s*)([\[\]])([^\[\](){}]*[,;][^\[\](){}]*)([\[\]])(?=\s*(?:$|\\c[ua]p))"
)
_SET_BUILDER = re.compile(
    r"^\\\{\s*([A-Za-z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\\(?:mid|vert)(?![A-Za-z])|\\?\||:)\s*(.*)\\\}$"
)


def normalise(answer: str) -> Written:
    r"""Reads an answer's writing.

    >>> normalise(r"\textbf{(B)}\ ½ €.")
    Written(text='\\frac{1}{2}', label='B', units=frozenset({'euro'}), percent=False, listed='', bases=(), is_set=False)
    """
    text = _tidied(characters.latex(answer))
    label = ""
    if match := _LABEL.match(text):
        label = next(letter for letter in match.groups() if letter)
        text = _bare(text[match.end() :])
    elif match := _CHOICE.match(text):
        label = match[1].upper() if match[1].isupper() or match.group() != match[1] else ""
        return Written(match[1], label)
    if (builder := _SET_BUILDER.match(text)) and re.search(rf"(?<![A-Za-z\\]){builder[1]}(?![A-Za-z])", builder[2]):
        return replace(normalise(builder[2]), is_set=True)
    text, bases = numerals.bases(text)
    text, found, percent = units.take_off(text)
    text = _bare(text)
    listed = numerals.as_list(text)
    text = _bare(numerals.rewrite(text))
    return Written(re.sub(r"\s+", " ", text).strip(), label, found, percent, listed, bases)


def _tidied(text: str) -> str:
    """Without markup anywhere in the text and around it."""
    if "\\begin" not in text:  # there, two backslashes end a row
        text = _DOUBLED.sub(r"\\", text)
    text = _DOTS.sub(r"\\ldots ", _TAGS.sub("", text).replace("\\!", ""))
    text = _SIZES.sub(" ", _COLOUR.sub("", text))
    text = _bare(text)
    text = _SPACES.sub(" ", text)
    text = _ROMAN_LETTER.sub(r"\1", text) if not re.search(r"\d\s*\\mathrm\s*\{\s*d\s*\}", text) else text
    text = _TEXTS.sub(r"\\text", _FONTS.sub("", text))
    for pattern, latex in _SYNONYMS:
        text = pattern.sub(latex, text)
    return _OUTWARD.sub(_french, _bare(text))


def _french(match: re.Match[str]) -> str:
    """]0,1[ as (0,1): a bracket that faces away leaves the end out."""
    space, left, ends, right = match.groups()
    if (left, right) == ("[", "]"):
        return match.group()
    return space + ("(" if left == "]" else "[") + ends + (")" if right == "[" else "]")


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
