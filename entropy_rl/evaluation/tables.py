"""What an evaluation's responses add up to: accuracy with intervals, and accuracy by properties of the response."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from entropy_rl.evaluation.estimators import bootstrap, distinct_at_k, maj_at_k, pass_at_k, wilson
from entropy_rl.evaluation.respond import Answered
from entropy_rl.rewards.votes import answer_entropy

Interval = tuple[float, float, float]  # (value, low, high)
_BINS = 4  # of length and entropy
_LEVELS = 12  # the largest number of difficulties that are shown one by one


def greedy_row(answered: Sequence[Answered]) -> dict[str, Any]:
    """`accuracy` with its Wilson interval, `low` and `high`, and the number of `problems` that could be scored.

    Without any the three are None.
    """
    scored = [a for a in answered if a.score is not None]
    right = sum(a.right for a in scored)
    if not scored:
        return {"accuracy": None, "low": None, "high": None, "problems": 0}
    low, high = wilson(right, len(scored))
    return {"accuracy": right / len(scored), "low": low, "high": high, "problems": len(scored)}


def sampled_row(answered: Sequence[Sequence[Answered]], ks: Sequence[int]) -> dict[str, Interval]:
    """What n samples per problem say, each as (value, low, high) with a bootstrap over problems.

    `avg@n`; for each k `pass@k`, `maj@k` and `distinct@k`, the number of different answers among k samples; and
    `answer_entropy@n`, the entropy of a problem's answers in nats, see `rewards/votes.py`. Responses that could not be
    scored are left out; a problem with fewer than k scored ones has no value at k, one without an answer no entropy.
    """
    n = max(map(len, answered))
    scored = [[a for a in some if a.score is not None] for some in answered]
    right = [sum(a.right for a in some) for some in scored]
    answers = [[a.answer for a in some] for some in scored]
    found = {f"avg@{n}": bootstrap(right, [len(some) for some in scored])}
    for k in ks:
        enough = [some if len(some) >= k else None for some in scored]
        found[f"pass@{k}"] = bootstrap(
            [math.nan if s is None else pass_at_k(len(s), c, k) for s, c in zip(enough, right, strict=True)]
        )
        found[f"maj@{k}"] = bootstrap(
            [math.nan if s is None else maj_at_k([a.answer for a in s], [a.right for a in s], k) for s in enough]
        )
        found[f"distinct@{k}"] = bootstrap([math.nan if len(a) < k else distinct_at_k(a, k) for a in answers])
    found[f"answer_entropy@{n}"] = bootstrap([answer_entropy(a) for a in answers])
    return found


def by_groups(answered: Sequence[Answered]) -> dict[str, list[tuple[str, int, float, float, float]]]:
    """Accuracy by difficulty, length, truncation and entropy.

    Returns:
        property -> rows (label, responses, accuracy, low, high), with intervals from a bootstrap over problems. Length
        and entropy are cut at their quartiles; a property that is the same for all responses is left out.
    """
    scored = [a for a in answered if a.score is not None]
    keys: dict[str, Callable[[Answered], Any]] = {
        "difficulty": _difficulty(scored),
        "truncation": lambda a: "ended by itself" if a.finished else "cut",
        "length, tokens": _quartile([a.length for a in scored], lambda a: a.length, "{:.0f}"),
    }
    if not any(math.isnan(a.entropy) for a in scored):
        keys["entropy, nats"] = _quartile([a.entropy for a in scored], lambda a: a.entropy, "{:.3f}")
    tables = {}
    for what, key in keys.items():
        labels = sorted({key(a) for a in scored}, key=_natural)
        if len(labels) > 1:
            tables[what] = [(str(label), *_accuracy([a for a in scored if key(a) == label])) for label in labels]
    return tables


def _difficulty(scored: Sequence[Answered]) -> Callable[[Answered], str]:
    """The level itself if there are few; its quartile if there are many; one label for all if these are not numbers."""
    levels = {a.problem.difficulty for a in scored}
    if len(levels) <= _LEVELS:
        return lambda a: a.problem.difficulty
    if any(_natural(level)[0] for level in levels):
        return lambda a: ""

    def value(a: Answered) -> float:
        return _natural(a.problem.difficulty)[1]

    return _quartile([value(a) for a in scored], value, "{:g}")


def _accuracy(some: Sequence[Answered]) -> tuple[int, float, float, float]:
    """(responses, accuracy, low, high)."""
    uids = sorted({a.problem.uid for a in some})
    place = {uid: i for i, uid in enumerate(uids)}
    right, count = np.zeros(len(uids)), np.zeros(len(uids))
    for a in some:
        right[place[a.problem.uid]] += a.right
        count[place[a.problem.uid]] += 1
    return len(some), *bootstrap(right, count)


def _quartile(values: Sequence[float], of: Callable[[Answered], float], form: str) -> Callable[[Answered], str]:
    """A function that labels a response with the quartile of `values` that `of` puts it in."""
    if not values:
        return lambda a: ""
    edges = sorted(set(np.quantile(values, np.linspace(0, 1, _BINS + 1), method="nearest").tolist()))

    def label(a: Answered) -> str:
        i = min(max(0, int(np.searchsorted(edges, of(a), side="left")) - 1), max(0, len(edges) - 2))
        return f"{form.format(edges[i])} to {form.format(edges[min(i + 1, len(edges) - 1)])}"

    return label


def _natural(label: str) -> tuple[int, float, str]:
    """The key to sort labels by: numbers by value, before all other text."""
    first = label.split(" ")[0].rpartition("=")[2]
    try:
        return 0, float(first), label
    except ValueError:
        return 1, 0.0, label
