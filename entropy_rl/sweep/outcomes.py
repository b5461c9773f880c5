"""A run as a few numbers and curves, from the rows of its metrics.jsonl."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Rows = Sequence[Mapping[str, Any]]

TAIL = 0.1  # the share of the steps, at the end, that "at the end" means
HEAD = 0.02  # and at the start

# What a user compares methods by: name -> (unit, better if higher).
MEANING = {
    "accuracy": "held-out, greedy, last evaluation; the mean over the sets",
    "accuracy_gain": "accuracy minus that before step 1",
    "reward": "mean over the last tenth of the steps",
    "train_accuracy": "the verifier's verdict on training's responses, whatever the reward; likewise",
    "entropy": "nats per token, mean over the last tenth of the steps",
    "entropy_kept": "entropy over that of the first fiftieth of the steps",
    "kept_frac": "share of the tokens that no mask stopped, mean over the steps",
    "length": "tokens per response, mean over the last tenth of the steps",
    "step_s": "seconds per step, median, without evaluations",
}


def outcomes(rows: Rows) -> dict[str, float]:
    """The numbers of one finished run; NaN if it was not measured.

    Besides the names in `MEANING`: `accuracy/<set>` if there are several evaluation sets, and whatever the last
    evaluation has at k (pass@k, maj@k, distinct@k and the like), the mean over the sets.

    Args:
        rows: of metrics.jsonl, in order.
    """
    steps = [row for row in rows if row["step"] > 0]
    tail, head = steps[-max(1, round(TAIL * len(steps))) :], steps[: max(1, round(HEAD * len(steps)))]
    final, first = last_accuracies(rows), first_accuracies(rows)
    entropy, start = _mean(tail, "entropy/mean"), _mean(head, "entropy/mean")
    found = {
        "accuracy": _average(final.values()),
        "accuracy_gain": _average(final[name] - first[name] for name in final if name in first),
        "reward": _mean(tail, "reward/mean"),
        "train_accuracy": _mean(tail, "reward/answer"),
        "entropy": entropy,
        "entropy_kept": entropy / start if start > 0 else np.nan,
        "kept_frac": _mean(steps, "tokens/kept_frac"),
        "length": _mean(tail, "length/mean"),
        "step_s": float(np.median([_seconds(row) for row in steps])) if steps else np.nan,
    }
    if len(final) > 1:
        found |= {f"accuracy/{name}": value for name, value in final.items()}
    return found | _at_k(rows)


def last_accuracies(rows: Rows) -> dict[str, float]:
    """The accuracy of the last evaluation of every set, by its name."""
    return {_set_of(k): v for row in rows for k, v in row.items() if _is_accuracy(k) and v is not None}


def first_accuracies(rows: Rows) -> dict[str, float]:
    """The accuracy of every set before step 1, if it was measured."""
    return last_accuracies([row for row in rows if row["step"] == 0])


def curve(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(steps, seconds, values) of a metric; the seconds are those of training up to the step, without evaluations."""
    seconds = np.cumsum([_seconds(row) if row["step"] else 0.0 for row in rows])
    value_of = accuracy if key == "accuracy" else lambda row: row.get(key)
    found = [(r["step"], s, v) for r, s in zip(rows, seconds, strict=True) if (v := value_of(r)) is not None]
    steps, times, values = np.array(found, np.float64).reshape(-1, 3).T
    return steps, times, values


def accuracy(row: Mapping[str, Any]) -> float | None:
    """The mean accuracy over the evaluation sets at one step; None if it was not measured."""
    values = [v for k, v in row.items() if _is_accuracy(k) and v is not None]
    return float(np.mean(values)) if values else None


def _is_accuracy(key: str) -> bool:
    return key.startswith("eval/") and key.endswith("/accuracy")


def _set_of(key: str) -> str:
    return key.removeprefix("eval/").removesuffix("/accuracy")


def _at_k(rows: Rows) -> dict[str, float]:
    """The values at k of the last evaluation, the mean over the sets."""
    last: dict[str, dict[str, float]] = {}
    for row in rows:
        for key, value in row.items():
            if key.startswith("eval/") and "@" in (name := key.rsplit("/", 1)[1]) and value is not None:
                last.setdefault(name, {})[key] = value
    return {name: _average(by_set.values()) for name, by_set in sorted(last.items())}


def _seconds(row: Mapping[str, Any]) -> float:
    return sum(v for k, v in row.items() if k.startswith("time/") and k != "time/eval_s" and v is not None)


def _mean(rows: Rows, key: str) -> float:
    return _average(row[key] for row in rows if row.get(key) is not None)


def _average(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else np.nan
