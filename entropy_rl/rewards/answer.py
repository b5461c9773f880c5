r"""The only place that reads an answer out of a response. It takes linear time, whatever the text."""

import re

# Only this much of the end of a response is searched for an answer: enough for 50,000 tokens, and a 10 MB response
# costs no more.
MAX_RESPONSE_CHARS = 200_000
# No task has longer answers: a longer text is not an answer, and no verifier receives it.
MAX_ANSWER_CHARS = 20_000
_MAX_BARE_CHARS = 64

_BRACES = re.compile(r"\\boxed\s*\{|\\\\(?!boxed)|\\[{}]|[{}]")
# Without braces, TeX boxes the next character; a model means the number or the letter.
_UNBRACED = re.compile(r"\\boxed\s*(-?\d[\d.,/]*|[A-Za-z](?=\s*(?:\$|\\[)\]]|\.?\s*$)))(?![\w{])")
# What an instruction that is repeated after the answer has in its box.
_PLACEHOLDER = re.compile(
    r"(?:\s|~|\\[,;:! ]|\.{2,}(?!\.)|…|\\[lc]?dots(?![a-z])|_{2,}(?!_)|\\q?quad(?![a-z])|"
    r"\\(?:text|mathrm|textbf)\s*\{\s*(?:(?:your|the|final)\s+)*(?:answer(?:\s+here)?)?\s*\}|"
    r"[<\[]?(?:(?:your|the|final)\s+)*answer(?:\s+here)?[>\]]?)*",
    re.IGNORECASE,
)
_MAX_PLACEHOLDER = 80  # characters


def extract_answer(response: str) -> str | None:
    r"""The answer in a response, without white space around it, or None if there is none.

    It is the content of the last balanced `\boxed{…}` that is not empty (or `...`, or the word "answer", as in an
    instruction that is repeated), or the number or letter of a `\boxed 5`;
    without one, of the last `<answer>…</answer>`; without either, the whole response if this is one line of at most 64
    characters. Only the last 200,000 characters are searched, and an answer of more than 20,000 characters counts as
    none. If all boxes are empty, so is the answer.

    >>> extract_answer(r"so \boxed{\frac{1}{2}} or \boxed{0.5}.")
    '0.5'
    >>> extract_answer(" 42 ")
    '42'
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
    r"""The content of the last `\boxed{…}` as `extract_answer` reads it, or None; the same limits apply."""
    return _checked(_boxed(response[-MAX_RESPONSE_CHARS:]))


def _boxed(text: str) -> str | None:
    # One pass with a stack: a search for the closing brace of each \boxed{ would be quadratic in a hostile text.
    open_braces: list[int | None] = []
    last_start, last_content = -1, None
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None and start > last_start:
                content = text[start : match.start()]
                if not _is_placeholder(content):
                    last_start, last_content = start, content
                elif last_content is None:
                    last_content = content
        elif token == "{":
            open_braces.append(None)
        elif token.startswith("\\boxed"):
            open_braces.append(match.end())
    for match in _UNBRACED.finditer(text, max(last_start, 0)):
        last_content = match[1].rstrip(".,")
    return last_content


def _is_placeholder(content: str) -> bool:
    return len(content) <= _MAX_PLACEHOLDER and _PLACEHOLDER.fullmatch(content) is not None


def _tagged(text: str) -> str | None:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    return text[start + len("<answer>") : end] if start >= 0 else None


def _checked(answer: str | None) -> str | None:
    if answer is None or len(answer) > MAX_ANSWER_CHARS:
        return None
    return answer.strip()
