"""The first figure of a report: what happened over the steps, and reward against entropy with the fitted law."""

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from entropy_rl import law
from entropy_rl.report.figure import Figure, Runs, by, colored, column, step_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_ACCURACY = "accuracy"  # the panel of every key eval/<name>/accuracy
_PANELS = {
    "reward/mean": "reward",
    "entropy/mean": "entropy, nats per token",
    _ACCURACY: "held-out accuracy, greedy",
    "length/mean": "tokens per response",
    "cov/mean": "covariance of logp and advantage",
}
_STYLES = ("-", "--", ":", "-.")  # of the evaluation sets, in turn


def curves(runs: Runs) -> Figure:
    """Reward, entropy, accuracy, length and covariance over the steps; reward against entropy."""
    table: list[dict[str, Any]] = []
    for name, rows in runs.items():
        for metric in dict.fromkeys(key for row in rows for key in row if _panel(key) in _PANELS):
            some = [{"step": row["step"], "value": row[metric]} for row in rows if row.get(metric) is not None]
            means = smooth(column(some, "value")).tolist()
            table += [{"run": name, "metric": metric, **row, "running mean": m} for row, m in zip(some, means)]
    color = colored(list(runs))

    def draw(canvas: "Canvas") -> None:
        *panels, last = canvas.subplots(2, 3).ravel()
        for axes, (panel, title) in zip(panels, _PANELS.items()):
            shown = [row for row in table if _panel(row["metric"]) == panel]
            for (metric, lines), style in zip(by(shown, "metric"), itertools.cycle(_STYLES)):
                for name, points in by(lines, "run"):
                    steps, values = column(points, "step"), column(points, "value")
                    dots = "o" if panel == _ACCURACY else ""
                    axes.plot(steps, values, style, color=color[name], lw=0.8, alpha=0.4, marker=dots, ms=4)
                    axes.plot(steps, column(points, "running mean"), style, color=color[name])
                if metric != panel:
                    axes.plot([], [], style, color="gray", label=metric.split("/")[1])
            if len({row["metric"] for row in shown}) > 1:
                axes.legend(frameon=False, fontsize="small")
            axes.set(title=title)
            step_axis(axes)
        for name in runs:
            _against_entropy(last, [row for row in table if row["run"] == name], color[name])
            last.plot([], [], color=color[name], label=name)
        last.set(xlabel="entropy, nats per token", title="reward against entropy, and the law")
        canvas.legend(*last.get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False)

    return Figure(
        "curves",
        "Reward, entropy, accuracy, length and covariance",
        "Each step's rollout as a thin line, with its running mean; in the last panel a dot is a step, and the line is "
        "R = −a·exp(H) + b. Entropy that falls to nothing within a fraction of the steps, while reward levels off, is "
        "the collapse.",
        "2505.22617, figures 1, 8 and 11; 2506.01939, figures 6 and 7",
        table,
        draw,
        (12.0, 7.0),
    )


def smooth(values: np.ndarray) -> np.ndarray:
    """The mean over about a twentieth of the points around each point; near the ends, over those that exist.

    >>> smooth(np.array([3.0, 0.0, 6.0, 0.0])).tolist()  # one point in twenty: itself
    [3.0, 0.0, 6.0, 0.0]
    """
    width = max(1, values.size // 20) // 2 * 2 + 1
    sums, counts = (np.convolve(x, np.ones(width), "same") for x in (values, np.ones_like(values)))
    return sums / counts


def _panel(metric: str) -> str:
    return _ACCURACY if metric.startswith("eval/") and metric.endswith("/accuracy") else metric


def _against_entropy(axes: "Axes", points: list, color: str) -> None:
    """A dot per step, and the law as a line if it can be fitted."""
    of = {metric: {row["step"]: row["value"] for row in rows} for metric, rows in by(points, "metric")}
    reward = of.get("reward/mean", {})
    entropy = of.get("entropy/mean", {})
    steps = [step for step in reward if step in entropy]
    h, r = np.array([entropy[step] for step in steps]), np.array([reward[step] for step in steps])
    axes.plot(h, r, ".", color=color, alpha=0.5)
    fitted = law.fit(h, r)
    if not fitted.message:
        grid = np.linspace(0, h.max(), 100)
        axes.plot(grid, fitted.predict(grid), color=color)
