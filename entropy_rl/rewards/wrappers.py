r"""Markup around an answer that changes nothing about it: $…$, \text{…}, **…**."""

import re

MAX_LAYERS = 10  # of markup that are taken off: thousands would take quadratic time
_STYLES = (
    "text textbf textit textrm texttt textsf textsc textnormal textup emph mathrm mathbf mathit mathsf mathtt "
    "mathnormal boldsymbol bm pmb mbox hbox fbox boxed underline uline ensuremath operatorname"
)
_STYLE = re.compile(rf"\\({_STYLES.replace(' ', '|')})\s*\*?\s*{{")
_SPACE = re.compile(
    r"^(?:\s|~|\\[,;:!> ]|\\q?quad(?![A-Za-z]))+|(?:\s|(?<!\\)~|(?<!\\)\\[,;:!> ]|\\q?quad(?![A-Za-z])|(?<!\\)\\$)+$"
)
_PAIRS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("__", "__"), ("*", "*"), ("`", "`"))
_BRACE = re.compile(r"\\[{}\\]|[{}]")


def plain(answer: str) -> str:
    r"""The answer without the markup around all of it. What is inside stays as it is.

    >>> plain(r"$\text{**B**}$")
    'B'
    >>> plain("$4 and $5")
    '$4 and $5'
    """
    for _ in range(MAX_LAYERS):
        inner = _inner(answer := _SPACE.sub("", answer))
        if inner is None:
            break
        answer = inner
    return answer


def _inner(answer: str) -> str | None:
    """The text inside one layer of markup, or None if there is none around the whole answer."""
    for left, right in _PAIRS:
        inside = answer[len(left) : -len(right)]
        if inside and answer.startswith(left) and answer.endswith(right) and left not in inside and right not in inside:
            return inside
    if (style := _STYLE.match(answer)) and closing(answer, style.end() - 1) == len(answer) - 1:
        return answer[style.end() : -1]
    return None


def closing(text: str, start: int) -> int:
    """The index of the brace that closes the one at `start`; -1 without one. Escaped braces do not count."""
    depth = 0
    for brace in _BRACE.finditer(text, start):
        if brace.group() == "{":
            depth += 1
        elif brace.group() == "}":
            depth -= 1
            if depth == 0:
                return brace.start()
    return -1
