"""The tokens with the highest and the lowest mean entropy, as word clouds and tables."""

import json
import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from entropy_rl.report.figure import Figure, Table, by
from entropy_rl.report.token_figures import Steps, labelled
from entropy_rl.report.tokens import Step, coded

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

MOST = 50  # tokens per cloud
_LONGEST = 24  # characters of a token in a cloud
_WIDTH, _SMALLEST, _LARGEST = 9.0, 9.0, 26.0  # of a cloud, inches; of its letters, points
_POINTS = 72  # per inch
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Word(NamedTuple):
    """A word's place in a cloud: inches from its upper left corner, and the size of its letters in points."""

    text: str
    x: float
    y: float
    size: float


def by_entropy(step: Step) -> tuple[list[dict[str, Any]], int]:
    """The tokens of a step with their count and mean entropy, the highest first, and how often one had to occur.

    That is 5 times, and once in 5,000 tokens: the mean of fewer says little.
    """
    texts, number = coded(step.token)
    count = np.bincount(number, minlength=len(texts))
    total = np.bincount(number, step.values["entropy"].astype(np.float64), len(texts))
    least = max(5, len(step.token) // 5000)
    rows = [
        {"token": text, "count": int(n), "mean entropy, nats": float(sum_ / n)}
        for text, n, sum_ in zip(texts, count, total)
        if n >= least
    ]
    return sorted(rows, key=lambda row: (-row["mean entropy, nats"], row["token"])), least


def words(runs: Steps) -> list[Figure]:
    """The highest and the lowest tokens of each run's last recorded step."""
    last = labelled({name: steps[-1:] for name, steps in runs.items()})
    ranked = {name: by_entropy(step) for name, step in last.items()}
    least = ", ".join(f"{least} times ({name})" for name, (_, least) in ranked.items())
    made = []
    for kind in ("highest", "lowest"):
        table: list[dict[str, Any]] = []
        for name, (rows, _) in ranked.items():
            some = rows[:MOST] if kind == "highest" else rows[::-1][:MOST]
            table += [{"of": name, "rank": i, **row} for i, row in enumerate(some, 1)]
        made.append(_cloud(kind, table, least))
    return made


def _cloud(kind: str, table: Table, least: str) -> Figure:
    parts = {name: placed(rows) for name, rows in by(table, "of")}
    heights = [0.4 + height for _, height in parts.values()]

    def draw(canvas: "Canvas") -> None:
        all_of_it = canvas.subplots()
        all_of_it.axis("off")
        all_of_it.set(xlim=(0, _WIDTH), ylim=(sum(heights), 0))  # inches, from above
        top = 0.0
        for (name, (cloud, _)), height in zip(parts.items(), heights):
            all_of_it.text(0, top, name, va="top", weight="bold")
            for word in cloud:
                all_of_it.text(word.x, top + 0.4 + word.y, word.text, va="top", size=word.size)
            top += height
        for text in all_of_it.texts:
            text.set_in_layout(False)

    return Figure(
        f"tokens_{kind}",
        f"Tokens with the {kind} mean entropy",
        f"In the order of their mean entropy, the {kind} first; a larger word has a higher one. Only tokens that "
        f"occurred at least {least} are counted.",
        "2506.01939, figure 2b" if kind == "highest" else "2506.01939, figure 2c",
        [{**row, "token": literal(row["token"])} for row in table],
        draw,
        (_WIDTH, max(1.0, sum(heights))),
    )


def placed(rows: Sequence[Any]) -> tuple[list[Word], float]:
    """The words in lines from left to right, and the height of them all, in inches.

    Their letters grow with their mean entropy, from the smallest to the largest size.
    """
    entropy = np.array([row["mean entropy, nats"] for row in rows])
    share = (entropy - entropy.min()) / (np.ptp(entropy) or 1.0) if len(rows) else entropy
    cloud: list[Word] = []
    x = y = line = 0.0
    for row, size in zip(rows, (_SMALLEST + share * (_LARGEST - _SMALLEST)).tolist()):
        text = visible(row["token"])
        text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
        width = sum(1.0 if unicodedata.east_asian_width(ch) in "WF" else 0.65 for ch in text) * size / _POINTS
        if x and x + width > _WIDTH:
            x, y, line = 0.0, y + line, 0.0
        cloud.append(Word(text, x, y, size))
        x, line = x + width + 0.2, max(line, 1.4 * size / _POINTS)
    return cloud, y + line


def visible(text: str) -> str:
    """What a reader sees of a token: control characters as their pictures, a space that is all of it as one too."""
    text = text if text.strip(" ") else "␣" * len(text)
    return _CONTROL.sub(lambda found: _picture(found[0]), text)


def _picture(character: str) -> str:
    code = ord(character)
    return "⏎" if character == "\n" or code > 0x9F else chr(0x2400 + code) if code < 0x20 else "␡"


def literal(text: str) -> str:
    r"""The text in quotes, with control characters as escapes: one line, which no spreadsheet takes for a formula.

    >>> print(literal(" a\n"), literal("=1+1"))
    " a\n" "=1+1"
    """
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))
