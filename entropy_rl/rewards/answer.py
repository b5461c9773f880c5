r"""The one place where an answer is read out of a response. Linear time whatever the text."""

import re

# An answer is looked for in this much of a response's end: room for 50,000 tokens, not for a 10 MB flood.
MAX_RESPONSE_CHARS = 200_000
# No task has longer answers; a longer one is no answer, and no verifier gets to see it.
MAX_ANSWER_CHARS = 20_000
_MAX_BARE_CHARS = 64

_BRACES = re.compile(r"\\boxed\s*\{|\\[{}]|[{}]")


def extract_answer(response: str) -> str | None:
    r"""The answer in a response, stripped, or None where there is none.

    The content of the last balanced `\boxed{…}`; else of the last `<answer>…</answer>`; else the whole
    response if it is one line of at most 64 characters. Only the last 200,000 characters are looked at, and
    an answer of more than 20,000 is None.
    """
    tail = response[-MAX_RESPONSE_CHARS:]
    answer = _boxed(tail)
    if answer is None:
        answer = _tagged(tail)
    if answer is None:
        bare = tail.strip()
        if len(bare) <= _MAX_BARE_CHARS and len(bare.splitlines()) == 1 and len(tail) == len(response):
            answer = bare
    return _checked(answer)


def extract_boxed(response: str) -> str | None:
    r"""The content of the last balanced `\boxed{…}`, stripped, or None; within the same limits."""
    return _checked(_boxed(response[-MAX_RESPONSE_CHARS:]))


def _boxed(text: str) -> str | None:
    # One pass with a stack: looking for a partner from every \boxed{ would be quadratic in a hostile text.
    open_braces: list[int | None] = []
    last_start, last_content = -1, None
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None and start > last_start:
                last_start, last_content = start, text[start : match.start()]
        elif token == "{":
            open_braces.append(None)
        elif token.startswith("\\boxed"):
            open_braces.append(match.end())
    return last_content


def _tagged(text: str) -> str | None:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    return text[start + len("<answer>") : end] if start >= 0 else None


def _checked(answer: str | None) -> str | None:
    if answer is None or len(answer) > MAX_ANSWER_CHARS:
        return None
    return answer.strip()
