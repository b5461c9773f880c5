"""What a sweep found: runs.csv, table.csv, curves.csv, curves.png and .svg, and a page that shows them."""

import csv
import html
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from entropy_rl.record import jsonl
from entropy_rl.sweep import statistics
from entropy_rl.sweep.outcomes import MEANING, Rows, curve, outcomes
from entropy_rl.sweep.plan import Arm, Job, Plan
from entropy_rl.sweep.runner import is_done
from entropy_rl.sweep.statistics import Estimate

CURVES = {"reward/mean": "reward", "entropy/mean": "entropy (nats per token)", "accuracy": "held-out accuracy (greedy)"}
_SHOWN = ("accuracy", "reward", "entropy", "entropy_kept", "step_s")  # outcomes on the page; table.csv has all
_POINTS = 200  # of a curve by seconds

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}
td,th{padding:.25rem .75rem;border-bottom:1px solid #ccc;text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left}img{max-width:100%}pre{white-space:pre-wrap}
"""

Runs = dict[str, dict[int, Rows]]  # arm -> seed -> rows


def write(out: pathlib.Path, plan: Plan, failed: Mapping[str, str], title: str) -> str:
    """Writes the files into the sweep's directory, from the runs that are done.

    Args:
        out: the sweep's directory.
        plan: what was to be run.
        failed: the folders of the runs that failed, each with the reason.
        title: the sweep's command.

    Returns:
        The table as text.
    """
    finished = [job for job in plan.jobs if is_done(out, job)]
    runs: Runs = {arm.name: {} for arm in plan.arms}
    for job in finished:
        runs[job.arm][job.seed] = jsonl.read(out / job.folder / "metrics.jsonl")
    found = {arm: {seed: outcomes(rows) for seed, rows in by_seed.items()} for arm, by_seed in runs.items()}
    _write_csv(out / "runs.csv", [_run_row(out, job, found[job.arm].get(job.seed), failed) for job in plan.jobs])
    table = table_rows(plan.arms, found)
    _write_csv(out / "table.csv", table)
    _write_csv(out / "curves.csv", curve_rows(runs))
    if finished:
        plot(runs, out)
    text = "\n\n".join(_text_table(table, name) for name in _SHOWN if any(row["outcome"] == name for row in table))
    missing = len(plan.jobs) - len(finished)
    state = f"{len(finished)} of {len(plan.jobs)} runs" + (f", {len(failed)} failed" if failed else "")
    notes = [f"{folder}: {reason}" for folder, reason in failed.items()]
    page = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>sweep</title><style>{_STYLE}</style>",
        f"<h1>Sweep</h1><pre>{html.escape(title)}</pre><p>{state}{'; the same command continues' if missing else ''}.",
        *(f"<p>Failed: {html.escape(note)}" for note in notes),
        "<img src=curves.svg alt='reward, entropy and held-out accuracy by step and by seconds of training'>",
        *(_html_table(table, name) for name in _SHOWN if any(row["outcome"] == name for row in table)),
        f"<p>{html.escape(_LEGEND)}",
        "<p>All outcomes: <a href=table.csv>table.csv</a>; every run with its command and commit: "
        "<a href=runs.csv>runs.csv</a>; the curves: <a href=curves.csv>curves.csv</a>.</html>\n",
    ]
    (out / "index.html").write_text("\n".join(page))
    return "\n\n".join([state, *notes, text])


_LEGEND = (
    "Intervals are at 95%. Mean and interquartile mean: percentile bootstrap over seeds. Difference: to the arm named, "
    "paired by seed, Student's t. P(better): the probability that a random seed of the arm gives more than a random "
    "seed of that other arm. Detectable: the smallest true difference that these seeds would find with a power of 80%."
)


def table_rows(arms: Sequence[Arm], found: Mapping[str, Mapping[int, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """One row per outcome and arm.

    Args:
        arms: in the order of the table.
        found: arm -> seed -> outcomes.
    """
    names = list(MEANING)
    names += sorted({name for by_seed in found.values() for row in by_seed.values() for name in row} - set(names))
    rows = []
    for name in names:
        for arm in arms:
            own = {seed: row.get(name, np.nan) for seed, row in found[arm.name].items()}
            other = {seed: row.get(name, np.nan) for seed, row in found[arm.base].items()}
            if not np.isfinite(list(own.values())).any():
                continue
            row = {"outcome": name, "arm": arm.name, "seeds": int(np.isfinite(list(own.values())).sum())}
            row |= _estimate("mean", statistics.mean(list(own.values())))
            row |= _estimate("iqm", statistics.iqm(list(own.values())))
            if arm.base != arm.name:
                both = sorted(own.keys() & other.keys())
                pair = [own[seed] for seed in both], [other[seed] for seed in both]
                row |= {"base": arm.base, "pairs": len(both)}
                row |= _estimate("difference", statistics.difference(*pair))
                row |= _estimate("better", statistics.improvement(list(own.values()), list(other.values())))
                row["detectable"] = statistics.detectable(*pair)
            rows.append(row)
    return rows


def _estimate(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def curve_rows(runs: Runs) -> list[dict[str, Any]]:
    """The curves of every run: one row per point, with its step and its seconds of training."""
    rows = []
    for arm, by_seed in runs.items():
        for seed, record in by_seed.items():
            for key in CURVES:
                for step, seconds, value in zip(*curve(record, key), strict=True):
                    rows.append(dict(arm=arm, seed=seed, metric=key, step=int(step), seconds=seconds, value=value))
    return rows


def band(points: Sequence[tuple[np.ndarray, np.ndarray]], x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean over runs of curves (x, y), read at `x`, with Student's 95% interval; equal to the mean for one run."""
    y = np.array([np.interp(x, *one) for one in points])
    mean = y.mean(axis=0)
    half = np.zeros_like(mean)
    if len(y) > 1:
        half = statistics.student(len(y)) * y.std(axis=0, ddof=1) / math.sqrt(len(y))
    return mean, mean - half, mean + half


def plot(runs: Runs, out: pathlib.Path) -> None:
    """Draws curves.png and curves.svg: the mean over seeds with its interval, by step and by seconds of training."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 11, "axes.grid": True, "grid.alpha": 0.3, "svg.hashsalt": "sweep"}):
        figure = Figure(figsize=(12, 7), layout="constrained")
        panels = figure.subplots(2, len(CURVES))
        for row, (unit, label) in enumerate((("step", "step"), ("seconds", "seconds of training"))):
            for axes, (key, title) in zip(panels[row], CURVES.items(), strict=True):
                for i, (arm, by_seed) in enumerate(runs.items()):
                    read = [curve(record, key) for record in by_seed.values()]
                    points = [(p[0] if unit == "step" else p[1], p[2]) for p in read if p[2].size]
                    if not points:
                        continue
                    x = _common(points, exact=unit == "step")
                    mean, low, high = band(points, x)
                    axes.plot(x, mean, color=f"C{i % 10}", label=arm)
                    axes.fill_between(x, low, high, color=f"C{i % 10}", alpha=0.2, lw=0)
                axes.set(xlabel=label, ylabel=title)
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(5, len(labels) or 1), frameon=False)
        figure.savefig(out / "curves.png", dpi=120)
        figure.savefig(out / "curves.svg", metadata={"Date": None})


def _common(points: Sequence[tuple[np.ndarray, np.ndarray]], exact: bool) -> np.ndarray:
    """The x at which all runs have values: the steps of the first run, or evenly spaced seconds."""
    low, high = max(x[0] for x, _ in points), min(x[-1] for x, _ in points)
    if exact:
        return points[0][0][(points[0][0] >= low) & (points[0][0] <= high)]
    return np.linspace(low, high, _POINTS)


def _run_row(
    out: pathlib.Path, job: Job, found: Mapping[str, float] | None, failed: Mapping[str, str]
) -> dict[str, Any]:
    starts = out / job.folder / "starts.jsonl"
    noted = [json.loads(line) for line in starts.read_text().splitlines()] if starts.exists() else []
    state = "failed" if job.folder in failed else "done" if found is not None else "missing"
    row: dict[str, Any] = {"arm": job.arm, "seed": job.seed, "state": state, "folder": job.folder}
    row |= {"command": job.command("WORKDIR"), "commit": " ".join(dict.fromkeys(s["commit"] for s in noted))}
    row |= {"jax": " ".join(dict.fromkeys(s["jax"] for s in noted)), "starts": len(noted)}
    return row | dict(found or {})


def _write_csv(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows
        )


_COLUMNS = ("arm", "seeds", "mean", "IQM", "difference", "to", "P(better)", "detectable")


def _cells(row: Mapping[str, Any]) -> list[str]:
    def show(name: str) -> str:
        value, low, high = (row.get(key, math.nan) for key in (name, f"{name}_low", f"{name}_high"))
        if math.isnan(value):
            return ""
        return f"{value:.4g}" + ("" if math.isnan(low) else f" [{low:.4g}, {high:.4g}]")

    gain = row.get("detectable", math.nan)
    last = "" if math.isnan(gain) else f"{gain:.2g}"
    return [
        row["arm"],
        str(row["seeds"]),
        show("mean"),
        show("iqm"),
        show("difference"),
        row.get("base", ""),
        show("better"),
        last,
    ]


def _of(table: Sequence[Mapping[str, Any]], name: str) -> list[list[str]]:
    return [_cells(row) for row in table if row["outcome"] == name]


def _text_table(table: Sequence[Mapping[str, Any]], name: str) -> str:
    rows = [list(_COLUMNS), *_of(table, name)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([f"{name}: {MEANING.get(name, '')}", *lines])


def _html_table(table: Sequence[Mapping[str, Any]], name: str) -> str:
    def line(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)

    body = [line(_COLUMNS, "th"), *(line(cells, "td") for cells in _of(table, name))]
    return f"<h2>{html.escape(name)}</h2><p>{html.escape(MEANING.get(name, ''))}<table>{''.join(body)}</table>"
