r"""The verifier of mathematical answers: writing (`normalise`), parsing (math-verify's grammar), meaning (`guard`)."""

import contextlib
import functools
import logging
import re
from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy, normalize_latex
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from latex2sympy2_extended.math_normalization import NormalizationConfig
from math_verify.grader import should_treat_as_complex
from math_verify.parser import get_last_eq

from entropy_rl.rewards import guard, measures
from entropy_rl.rewards.answer import extract_boxed
from entropy_rl.rewards.normalise import Written, normalise
from entropy_rl.rewards.sizes import TooLarge, check_size

# The library's limits use SIGALRM, which works only on the main thread; the grader has its own limits, so the library's
# warnings that they are turned off would only alarm.
logging.getLogger("math_verify").setLevel(logging.ERROR)

# `units` takes units off: this library takes any last letter for one, the t of 5t too.
_GRAMMAR_FIXES = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
)
_TWO_NUMBERS = re.compile(r"(?<![_^\d])\d+\s+\d")  # the grammar reads 1 2 as 1+2
_NUMERAL_SUBSCRIPT = re.compile(r"\d\s*_")  # 12_b is in base b; the grammar drops it
_SPACE = re.compile(r"\s+(?!\d)|(?<!\d)\s+")  # but not the one of 1 2
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[^\W\d_][^\W\d_\s\-'.,;]*(?:[\s\-'.,;]+[^\W\d_][^\W\d_\s\-'.,;]*)*")
_SHORT_WORDS = frozenset(["no", "on", "yes", "true", "even", "odd", "none", "east", "west"])
_ARTICLE = re.compile(r"^(?:an?|the) (?=\w{2})")
_LAYOUT = re.compile(r"\\(?:ldots|text|frac|sqrt)(?![A-Za-z])")
_GREEK = re.compile(r"\\(gamma|delta|theta|lambda|xi|pi|sigma|upsilon|phi|psi|omega)(?![A-Za-z])", re.IGNORECASE)
_LONG = 5  # letters: fewer in a row may be a product of variables
_MAX_BRACKETS, _MAX_BRACES = 12, 60  # nested in each other
_BRACKET = re.compile(r"\\[{}]|[{}()\[\]]")
_TOWER = re.compile(r"(?:\^\s*\{?\s*[A-Za-z\d]{1,3}){13}")
_ENDS = 60  # characters of an answer in a message


def judge(given: str, answer: Any) -> float:
    r"""1.0 if an answer is right, 0.0 if it is wrong.

    Args:
        given: the content of the response's `\boxed{}`.
        answer: the right answer, as text; with or without `\boxed{}`.

    Raises:
        ValueError: If the right answer cannot be read, or has too many digits to be computed.
    """
    right = str(answer)
    boxed = extract_boxed(right)
    gold = _gold(right if boxed is None else boxed)
    written = normalise(given) if not _is_endless(given) else Written("")
    if not written.text or _is_endless(written.text) or not _marks_agree(gold, written):
        return 0.0
    if gold.label and gold.label == written.label and _is_letter(gold, written):
        return 1.0
    pairs = ((a, b) for a in _readings(gold) for b in _readings(written))
    return float(any(_same_text(a, b) or _same_meaning(a, b, gold, written) for a, b in pairs))


@functools.lru_cache(maxsize=4096)
def _gold(answer: str) -> Written:
    """A right answer, parsed and with its numbers computed: a bad one is found whatever it is compared to."""
    shown = answer if len(answer) <= _ENDS else f"{answer[:_ENDS]}…"
    if _is_endless(answer):
        raise ValueError(f"the right answer {shown!r} cannot be read: its brackets are nested too deeply")
    written = normalise(answer)
    if (
        not any(character.isalnum() for character in _LAYOUT.sub("", written.text))
        and written.text.replace(" ", "") != "\\{\\}"
    ):
        raise ValueError(f"the right answer {shown!r} cannot be read: it has neither a digit nor a letter")
    for left, right in (("{", "}"), ("\\begin", "\\end")):
        if written.text.count(left) != written.text.count(right):
            raise ValueError(f"the right answer {shown!r} cannot be read: its {left} and {right} do not match")
    parsed, undefined = _parse(written.text, True, True), False
    try:
        check_size(parsed)
        if parsed is not None:
            with contextlib.suppress(AttributeError, TypeError, NotImplementedError):  # what sympy cannot compute
                undefined = ":" not in written.text and guard.is_undefined(parsed)  # 12:00 is parsed as 12/0
                guard.same(parsed, parsed)
    except TooLarge as error:
        raise ValueError(f"the right answer {shown!r} cannot be computed: {error}") from error
    if undefined:
        raise ValueError(f"the right answer {shown!r} cannot be computed: it is undefined, as 1/0 is")
    return written


def _marks_agree(gold: Written, given: Written) -> bool:
    """Whether labels, known units, Greek letters, bases and primes do not contradict each other."""
    if gold.label and given.label and gold.label != given.label:
        return False
    if measures.contradict(gold.units, given.units):
        return False
    ours, theirs = set(_GREEK.findall(gold.text)), set(_GREEK.findall(given.text))
    if {letter.lower() for letter in ours - theirs} & {letter.lower() for letter in theirs - ours}:
        return False  # \Delta is not \delta
    return gold.bases == given.bases and gold.text.count("'") == given.text.count("'")


def _is_letter(gold: Written, given: Written) -> bool:
    """Whether one of two answers with the same label is the letter alone."""
    return any(written.text.upper() == written.label for written in (gold, given))


def _readings(written: Written) -> list[str]:
    return [written.text, written.listed] if written.listed else [written.text]


def _same_text(gold: str, given: str) -> bool:
    return _SPACE.sub("", gold) == _SPACE.sub("", given)


def _same_meaning(gold: str, given: str, gold_written: Written, written: Written) -> bool:
    if "\\ldots" in gold or "\\ldots" in given:
        return _same_around_dots(gold, given)
    clocks = _CLOCK.fullmatch(gold), _CLOCK.fullmatch(given)
    if clocks[0] and clocks[1]:  # as a ratio, 12:00 would be 1:05
        return all(int(a) == int(b) for a, b in zip(clocks[0].groups(), clocks[1].groups()))
    if gold.count(":") > 1 or given.count(":") > 1:  # the grammar reads a:b:c as (a/b)/c
        return _same_ratio(gold.split(":"), given.split(":"))
    if "\\angle" in gold or "\\angle" in given:  # the order of its points counts, but for the direction
        ours, theirs = _letters(gold), _letters(given)
        return theirs in (ours, ours[:-3] + ours[:-4:-1])
    words = _words(gold), _words(given)
    if words[0] is not None or words[1] is not None:
        return words[0] == words[1] if None not in words else _letters(gold) == _letters(given)
    real = not (should_treat_as_complex(gold) or should_treat_as_complex(given))
    lower = not (_has_both_cases(gold) or _has_both_cases(given))
    ours, theirs = _parse(gold, real, lower), _parse(given, real, lower)
    if ours is None or theirs is None:
        return False
    try:
        check_size(theirs)
        if written.is_set and isinstance(ours, sympy.Set):  # {x | x>3} for (3,∞)
            theirs = guard.solutions(theirs)
        if guard.same(ours, theirs, _is_bare(gold, ours) or _is_bare(given, theirs)):
            return True
        if gold_written.percent != written.percent:
            ours, theirs = (ours / 100, theirs) if gold_written.percent else (ours, theirs / 100)
            return guard.same(ours, theirs)
    except MemoryError:
        raise
    except Exception:  # of any kind, from sympy; the right answer alone can be compared
        return False
    return False


def _same_ratio(gold: list[str], given: list[str]) -> bool:
    """Whether all the parts of two ratios differ by the same factor."""
    ours, theirs = ([_parse(part, True, True) for part in side] for side in (gold, given))
    if len(ours) != len(theirs) or not all(isinstance(part, sympy.Expr) for part in ours + theirs):
        return False
    return all(guard.same(a * theirs[0], b * ours[0]) for a, b in zip(ours, theirs)) and ours[0] != 0


def _same_around_dots(gold: str, given: str) -> bool:
    r"""Sequences such as 1, 2, \ldots, n: the same number of elements, each equal; other texts only as they are."""
    ours, theirs = gold.split(","), given.split(",")
    if len(ours) != len(theirs) or len(ours) == 1:
        return False
    return all(
        _same_text(a, b)
        or ("\\ldots" not in a and "\\ldots" not in b and _same_meaning(a.strip(), b.strip(), Written(a), Written(b)))
        for a, b in zip(ours, theirs)
    )


def _words(text: str) -> list[str] | None:
    """The words of an answer that is no formula, in lower case and sorted if they are a list; None for a formula."""
    bare = _TEXT.sub(r" \1 ", text).strip().lower()
    if not _WORDS.fullmatch(bare):
        return None
    runs = re.split(r"[\s\-'.,;]+", bare)
    if bare == text.lower() and not any(len(run) >= _LONG or run in _SHORT_WORDS for run in runs):
        return None
    parts = [" ".join(re.split(r"[\s\-'.]+", part.strip())) for part in re.split(r"[,;]|\band\b|\bor\b", bare)]
    return sorted(_ARTICLE.sub("", part) for part in parts if part)


def _is_endless(text: str) -> bool:
    """Whether brackets or powers are nested so deeply that the grammar, exponential in them, needs seconds."""
    brackets = braces = 0
    for match in _BRACKET.finditer(text):
        step = 1 if match.group()[-1] in "({[" else -1
        if match.group() in "{}":
            braces = max(braces + step, 0)
        else:
            brackets = max(brackets + step, 0)
        if brackets > _MAX_BRACKETS or braces > _MAX_BRACES:
            return True
    return _TOWER.search(text) is not None


def _letters(text: str) -> str:
    return re.sub(r"\W", "", _TEXT.sub(r"\1", text)).lower()


def _has_both_cases(text: str) -> bool:
    """Whether a letter is there as a capital and as a small one, which are then two variables."""
    letters = set(re.sub(r"\\[A-Za-z]+", "", text))
    return any(letter.islower() and letter.upper() in letters for letter in letters)


def _is_bare(text: str, parsed: Any) -> bool:
    """Whether an answer is a list without brackets."""
    inner = parsed.rhs if isinstance(parsed, sympy.Eq) else parsed
    return isinstance(inner, sympy.FiniteSet) and "\\{" not in text and "\\pm" not in text


@functools.lru_cache(maxsize=4096)
def _parse(text: str, real: bool, lower: bool) -> Any:
    """A sympy object, or None if the text is no mathematics that the grammar knows."""
    if _TWO_NUMBERS.search(text) or _NUMERAL_SUBSCRIPT.search(text):
        return None
    latex = normalize_latex(text, _GRAMMAR_FIXES)
    for attempt in dict.fromkeys((latex, get_last_eq(latex))):
        try:
            return latex2sympy(
                attempt,
                is_real=real,
                convert_degrees=False,
                normalization_config=None,
                conversion_config=ConversionConfig(lowercase_symbols=lower),
            )
        except Exception:  # the grammar's and sympy's, of any kind
            continue
    return None
