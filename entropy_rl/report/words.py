"""The tokens with the highest and the lowest mean entropy, as word clouds and tables."""

import html
import json
import math
import re
from typing import Any

import numpy as np

from entropy_rl.report.figure import Figure, Table, by
from entropy_rl.report.token_figures import Steps, labelled
from entropy_rl.report.tokens import Step, coded

MOST = 50  # tokens per cloud
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


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
        made.append(
            Figure(
                f"tokens_{kind}",
                f"Tokens with the {kind} mean entropy",
                f"In the order of their mean entropy, the {kind} first; a larger word occurred more often. Only tokens "
                f"that occurred at least {least} are counted.",
                "2506.01939, figure 2b and 2c",
                [row | {"token": literal(row["token"])} for row in table],
                body=cloud(table),
            )
        )
    return made


def cloud(table: Table) -> str:
    """HTML of the words, larger where they occurred more often."""
    parts = []
    for name, rows in by(table, "of"):
        least, most = (math.log(f(row["count"] for row in rows)) for f in (min, max))
        spans = []
        for row in rows:
            size = 0.8 + 1.4 * (math.log(row["count"]) - least) / max(most - least, 1e-9)
            about = f"{row['count']} times, mean entropy {row['mean entropy, nats']:.4g} nats"
            spans.append(
                f"<span style='font-size:{size:.2f}rem' title='{about}'>{html.escape(visible(row['token']))}</span>"
            )
        parts.append(f"<h3>{html.escape(name)}</h3><p class=words>{' '.join(spans)}</p>")
    return "".join(parts)


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
