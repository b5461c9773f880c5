"""The numbers of the report's text, as tables: spans of steps, evaluations, laws, predictions of entropy's change."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from entropy_rl import law
from entropy_rl.report.figure import Figure, Rows, Runs, Table

SPANS = 10
SPAN_KEYS = {"reward": "reward/mean", "entropy": "entropy/mean", "length": "length/mean", "|grad|": "grad/norm"}
PREDICTIONS = {"exact first order": "predicted", "Theorem 1": "thm1", "Theorem 2": "thm2"}  # name -> entropy/delta_…
LATER_PREDICTIONS = {"entropy score": "score"}  # which runs of an earlier version lack
LAWS = {"law R = −a·exp(H) + b": "entropy/mean", "  with the mean of H over responses (eq. 5)": "entropy/response_mean"}


def figures(runs: Runs) -> list[Figure]:
    """The tables that these runs suffice for."""
    made = (
        Figure(
            "spans",
            "The run in ten spans of steps",
            "Each row is the mean over the steps of one span. Reward that no longer rises while entropy has gone is "
            "where a method that holds entropy would have to begin.",
            "",
            _of(runs, spans),
        ),
        Figure(
            "evaluations",
            "Every evaluation",
            "The greedy accuracy on problems that were held out, with its 95% Wilson interval. Two that lie within "
            "each other's intervals do not differ by these problems.",
            "",
            _of(runs, evaluations),
        ),
        Figure(
            "laws",
            "The law with either mean of the entropy",
            "The fit to all steps with the mean of H over all tokens, and with the paper's: the mean over responses of "
            "each one's mean. They differ if long responses have another entropy than short ones.",
            "2505.22617, equations 5 and 6",
            _of(runs, laws),
        ),
        Figure(
            "predictions",
            "How well the change of entropy is predicted",
            "Over all measured updates: the means of the prediction and of the change, the median of |error| / "
            "|change|, their correlation, and how often their signs agree. The theorems' scale is that of other steps.",
            "2505.22617, theorems 1 and 2",
            _of(runs, predictions),
        ),
    )
    return [figure for figure in made if figure.table]


def _of(runs: Runs, table: Any) -> Table:
    return [{"run": name, **row} for name, rows in runs.items() for row in table(rows)]


def spans(rows: Rows) -> list[dict[str, Any]]:
    """Means over ten spans of steps, fewer if there are fewer steps; NaN where nothing was measured."""
    rl = [row for row in rows if row["step"] > 0]
    found = []
    for part in np.array_split(np.arange(len(rl)), min(SPANS, len(rl))) if rl else []:
        some = [rl[i] for i in part]
        means = {name: _mean([row[key] for row in some if row.get(key) is not None]) for name, key in SPAN_KEYS.items()}
        found.append({"from step": some[0]["step"], "to step": some[-1]["step"], **means})
    return found


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def accuracy_keys(rows: Rows) -> list[str]:
    """The `eval/<name>/accuracy` keys of a run."""
    return sorted({k for r in rows for k in r if k.startswith("eval/") and k.endswith("/accuracy")})


def evaluations(rows: Rows) -> list[dict[str, Any]]:
    """Every evaluation of every set, with its interval."""
    return [
        {"set": name, "step": row["step"], "greedy accuracy": row[key]}
        | {end: row[f"{name}/{end}"] for end in ("low", "high", "problems")}
        for key in accuracy_keys(rows)
        for name in [key.rsplit("/", 1)[0]]
        for row in rows
        if row.get(key) is not None
    ]


def trained(rows: Rows, key: str = "entropy/mean") -> tuple[np.ndarray, np.ndarray]:
    """(entropy, reward) of the steps that have a reward, float64; NaN for an entropy that was not measured."""
    rows = [r for r in rows if r.get("reward/mean") is not None]
    return np.array([r.get(key) for r in rows], float), np.array([r["reward/mean"] for r in rows], float)


def laws(rows: Rows) -> list[dict[str, Any]]:
    """The law with either mean of the entropy; those that could be fitted."""
    found = []
    for name, key in LAWS.items():
        fitted = law.fit(*trained(rows, key))
        if not fitted.message:
            row = {"entropy": key, "a": fitted.a, "b": fitted.b, "ceiling": fitted.ceiling}
            found.append({"law": name.strip(), **row, "R²": fitted.r2, "RMSE": fitted.rmse})
    return found


def predictions(rows: Rows) -> list[dict[str, Any]]:
    """Each prediction of an update's entropy change beside the change; [] if fewer than two updates were measured."""
    rows = [r for r in rows if r.get("entropy/delta") is not None]
    if len(rows) < 2:
        return []
    measured = np.array([r["entropy/delta"] for r in rows])
    later = {name: key for name, key in LATER_PREDICTIONS.items() if all(f"entropy/delta_{key}" in r for r in rows)}
    found = []
    for name, key in (PREDICTIONS | later).items():
        guess = np.array([r[f"entropy/delta_{key}"] for r in rows], float)
        error = np.median(np.abs(guess - measured) / np.maximum(np.abs(measured), 1e-30))
        flat = min(np.ptp(guess), np.ptp(measured)) == 0
        found.append(
            {"prediction": name, "updates": len(rows), "mean": guess.mean(), "mean of the change": measured.mean()}
            | {"mean size of the change": np.abs(measured).mean(), "median |error| / |change|": error}
            | {"correlation": np.nan if flat else np.corrcoef(guess, measured)[0, 1]}
            | {"same sign": np.mean(np.sign(guess) == np.sign(measured))}
        )
    return found
