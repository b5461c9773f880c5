"""Reports what a run did to reward and entropy: a table, the law that ties them, and a figure.

python -m entropy_rl.analyze --workdir=runs/q [--compare=runs/other,…]
"""

import argparse
import html
import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from entropy_rl import covariance, law
from entropy_rl.record import jsonl, metrics
from entropy_rl.runtime.files import expand

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]  # of a run's metrics.jsonl: one per step, values by metric

_TABLE_ROWS = 10
_PREDICTIONS = {"exact first order": "predicted", "Theorem 1": "thm1", "Theorem 2": "thm2"}  # name -> entropy/delta_…
_LATER_PREDICTIONS = {"entropy score": "score"}  # which runs of an earlier version lack
_QUADRANT_FIELDS = ("share", "covariance", "entropy_change")
_COLORS = [f"C{i}" for i in range(10)]  # of the runs, in turn
_STYLES = ("-", "--", ":", "-.")  # of the evaluation sets, in turn


def read_run(workdir: str) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl.

    Raises:
        ValueError: If there are none, or if a line is not a row with what this report reads; names the line.
    """
    path = epath.Path(workdir) / "metrics.jsonl"
    if not jsonl.exists(path) or not (rows := metrics.rows(path)):
        raise ValueError(f"--workdir: {path} holds no metrics; give the directory of a run")
    for place, row in rows:
        needed = [
            f"{key.rsplit('/', 1)[0]}/{bound}"
            for key in accuracy_keys([row])
            if row[key] is not None
            for bound in ("low", "high", "problems")
        ]
        if row.get("entropy/delta") is not None:
            needed += [f"entropy/delta_{name}" for name in _PREDICTIONS.values()]
            needed += [f"quadrant/{name}/{field}" for name in covariance.QUADRANTS for field in _QUADRANT_FIELDS]
        metrics.need(place, row, needed)
    return [row for _, row in rows]


def series(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of a metric, without the steps at which it was not measured.

    >>> steps, values = series([{"step": 1, "x": 0.5}, {"step": 2, "x": None}, {"step": 3, "x": 0.25}], "x")
    >>> steps.tolist(), values.tolist()
    ([1, 3], [0.5, 0.25])
    """
    found = [(r["step"], r[key]) for r in rows if r.get(key) is not None]
    return np.array([step for step, _ in found]), np.array([value for _, value in found])


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the `window` points, an odd number, around each point; near the ends of those that exist.

    >>> running_mean(np.array([3.0, 0.0, 6.0, 0.0]), 3).tolist()
    [1.5, 3.0, 2.0, 3.0]
    """
    sums, counts = (np.convolve(x, np.ones(window))[window // 2 :][: x.size] for x in (values, np.ones(values.size)))
    return sums / counts


def accuracy_keys(rows: Rows) -> list[str]:
    """The `eval/<name>/accuracy` keys of a run."""
    return sorted({k for r in rows for k in r if k.startswith("eval/") and k.endswith("/accuracy")})


def trained(rows: Rows, key: str = "entropy/mean") -> tuple[np.ndarray, np.ndarray]:
    """(entropy, reward) of the steps that have a reward, float64; NaN for an entropy that was not measured."""
    rows = [r for r in rows if r.get("reward/mean") is not None]
    return np.array([r.get(key) for r in rows], float), np.array([r["reward/mean"] for r in rows], float)


def table(rows: Rows) -> str:
    """Reward and entropy over the run in ten spans of steps, and every evaluation."""
    rl = [r for r in rows if r["step"] > 0]
    spans = np.array_split(np.arange(len(rl)), min(_TABLE_ROWS, len(rl)))
    keys = ("reward/mean", "entropy/mean", "length/mean", "grad/norm")
    lines = [f"{'steps':>11}  {'reward':>7}  {'entropy':>8}  {'length':>7}  {'|grad|':>7}"]
    for span in spans:
        means = [np.mean([rl[i][k] for i in span if rl[i].get(k) is not None] or [np.nan]) for k in keys]
        name = f"{rl[span[0]]['step']}–{rl[span[-1]]['step']}"
        lines.append(f"{name:>11}  {means[0]:7.3f}  {means[1]:8.3f}  {means[2]:7.1f}  {means[3]:7.3f}")
    for key in accuracy_keys(rows):
        name = key.rsplit("/", 1)[0]
        lines.append("")
        for r in rows:
            if r.get(key) is not None:
                lines.append(
                    f"{name} at step {r['step']:>4}: greedy accuracy {r[key]:6.1%}  "
                    f"[{r[name + '/low']:.1%}, {r[name + '/high']:.1%}]  of {r[name + '/problems']}"
                )
    return "\n".join(lines)


def entropy_changes(rows: Rows) -> str:
    """The predictions of an update's entropy change beside the change, over the updates that were measured.

    Returns:
        The table; "" if fewer than two updates were measured.
    """
    rows = [r for r in rows if r.get("entropy/delta") is not None]
    if len(rows) < 2:
        return ""
    measured = np.array([r["entropy/delta"] for r in rows])
    lines = [
        f"entropy change of an update, {len(rows)} measured: mean {measured.mean():.2e} nats, mean size "
        f"{np.abs(measured).mean():.2e}",
        f"{'':>18}  {'mean':>9}  {'median |error| / |change|':>25}  {'correlation':>11}  {'same sign':>9}",
    ]
    later = {name: key for name, key in _LATER_PREDICTIONS.items() if all(f"entropy/delta_{key}" in r for r in rows)}
    for name, key in (_PREDICTIONS | later).items():
        guess = np.array([r[f"entropy/delta_{key}"] for r in rows])
        error = np.median(np.abs(guess - measured) / np.maximum(np.abs(measured), 1e-30))
        flat = min(guess.std(), measured.std()) == 0
        correlation = np.nan if flat else np.corrcoef(guess, measured)[0, 1]
        same = np.mean(np.sign(guess) == np.sign(measured))
        lines.append(f"{name:>18}  {guess.mean():9.2e}  {error:25.1%}  {correlation:11.3f}  {same:9.0%}")
    lines.append(f"{'quadrant':>18}  {'share':>9}  {'covariance':>11}  {'entropy change':>14}")
    for name in covariance.QUADRANTS:
        share, cov, change = (np.mean([r[f"quadrant/{name}/{field}"] for r in rows]) for field in _QUADRANT_FIELDS)
        lines.append(f"{name:>18}  {share:9.1%}  {cov:11.3f}  {change:14.2e}")
    return "\n".join(lines)


def plot(runs: Mapping[str, Rows], path: epath.Path) -> None:
    """Draws reward, entropy and held-out accuracy over the steps, and reward against entropy with the fitted law.

    Args:
        runs: the rows of each run, by its name in the legend.
        path: the PNG file to write.
    """
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: a notebook's own backend stays as it is
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    window = 2 * min(10, max(map(len, runs.values())) // 20) + 1  # of the running mean; 1 for short runs
    style: dict[Any, Any] = {"font.size": 13, "lines.linewidth": 2.5, "axes.grid": True, "grid.alpha": 0.3}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(12, 8.5), layout="constrained")
        (reward, entropy), (accuracy, both) = figure.subplots(2, 2)
        labels = []
        for (name, rows), color in zip(runs.items(), itertools.cycle(_COLORS)):
            labels.append(Line2D([], [], color=color, label=name))
            _plot_steps(reward, *series(rows, "reward/mean"), color, window)
            _plot_steps(entropy, *series(rows, "entropy/mean"), color, window)
            _plot_law(both, *trained(rows), color)
        _plot_accuracies(accuracy, list(runs.values()))
        if window > 1:
            labels.append(Line2D([], [], color="gray", lw=1, alpha=0.6, label="each step"))
            labels.append(Line2D([], [], color="gray", label=f"running mean of {window} steps (upper panels)"))
        figure.legend(handles=labels, loc="outside upper center", ncols=min(5, len(labels)), frameon=False)
        reward.set(ylabel="reward (mean of the step)")
        entropy.set(ylabel="entropy (nats per token)", ylim=(0, None))
        accuracy.set(ylabel="held-out accuracy (greedy)")
        for axes in (reward, entropy, accuracy):
            axes.set(xlabel="step")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        both.set_title("reward against entropy, with the fitted law R = −a·exp(H) + b", fontsize=12)
        both.set(xlabel="entropy (nats per token)", ylabel="reward (mean of the step)", xlim=(0, None))
        figure.savefig(path, dpi=120)


def _plot_steps(axes: "Axes", steps: np.ndarray, values: np.ndarray, color: str, window: int) -> None:
    """A thin line of the values themselves, a bold one of their running mean."""
    axes.plot(steps, values, color=color, lw=1, alpha=0.35)
    axes.plot(steps, running_mean(values, window), color=color)


def _plot_accuracies(axes: "Axes", runs: Sequence[Rows]) -> None:
    """A color per run and a style per set of problems; the styles have their own legend if there are several."""
    keys = sorted({key for rows in runs for key in accuracy_keys(rows)})
    for key, style in zip(keys, itertools.cycle(_STYLES)):
        for rows, color in zip(runs, itertools.cycle(_COLORS)):
            axes.plot(*series(rows, key), style, marker="o", color=color)
        axes.plot([], [], style, color="gray", label=key.split("/")[1])
    if len(keys) > 1:
        axes.legend(fontsize="small")


def _plot_law(axes: "Axes", entropy: np.ndarray, reward: np.ndarray, color: str) -> None:
    """A dot per step, and the law as a line if it can be fitted."""
    axes.plot(entropy, reward, ".", color=color, alpha=0.5)
    fitted = law.fit(entropy, reward)
    if not fitted.message:
        grid = np.linspace(0, np.nanmax(entropy), 100)
        axes.plot(grid, fitted.predict(grid), color=color)


def report(workdir: str, compare: Sequence[str] = ()) -> str:
    """Writes report/curves.png and report/index.html into a run directory.

    Args:
        workdir: the run directory.
        compare: directories of other runs, which are shown beside it.

    Returns:
        The text of the page: for each run a table, the fitted law and the changes of entropy, if any were measured.

    Raises:
        ValueError: If a directory holds no run, or the run has no step yet.
    """
    workdirs = [expand(w) for w in (workdir, *compare)]
    names = [epath.Path(w).name for w in workdirs]
    runs = {name if names.count(name) == 1 else w: read_run(w) for name, w in zip(names, workdirs)}
    folder = epath.Path(workdirs[0]) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    texts = []
    for name, rows in runs.items():
        if not trained(rows)[1].size:
            raise ValueError(f"{name}: no step was trained yet")
        parts = (table(rows), laws(rows), entropy_changes(rows))
        texts.append(f"{name}\n" + "\n\n".join(part for part in parts if part))
    text = "\n\n".join(texts)
    plot(runs, folder / "curves.png")
    (folder / "index.html").write_text(
        f"<!doctype html><meta charset=utf-8><title>{html.escape(', '.join(runs))}</title>"
        f"<img src=curves.png style='max-width:100%'><pre>{html.escape(text)}</pre>\n"
    )
    return text


def laws(rows: Rows) -> str:
    """The law with either mean of the entropy, a line each."""
    names = ("law R = −a·exp(H) + b", "  with the mean of H over responses (eq. 5)")
    lines = []
    for name, key in zip(names, ("entropy/mean", "entropy/response_mean"), strict=True):
        fitted = law.fit(*trained(rows, key))
        lines.append(f"{name}: {fitted.message or describe(fitted)}")
    return "\n".join(lines)


def describe(fitted: law.Law) -> str:
    """The figures of a fitted law, in one line."""
    return (
        f"a = {fitted.a:.3f}, b = {fitted.b:.3f}, ceiling b − a = {fitted.ceiling:.3f}, R² = {fitted.r2:.2f}, "
        f"RMSE = {fitted.rmse:.3f}"
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="the run directory")
    parser.add_argument("--compare", default="", help="other run directories, separated by commas")
    args = parser.parse_args()
    try:
        print(report(args.workdir, [w for w in args.compare.split(",") if w]))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"\nplot: {epath.Path(expand(args.workdir)) / 'report' / 'curves.png'}")


if __name__ == "__main__":
    main()
