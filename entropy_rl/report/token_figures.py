"""The report's figures of recorded tokens: how entropy is distributed, where it is, what became of the gradients."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from entropy_rl.report.figure import Figure, Table, by, colored, column, step_axis
from entropy_rl.report.tokens import Step

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

Steps = Mapping[str, Sequence[Step]]  # of each run: the first and the last step that it recorded

_BINS = 40
_PLACES = 20  # bins of positions and of lengths
FORKING = 0.8  # the quantile above which a token is a fork (arXiv 2506.01939)


def labelled(runs: Steps) -> dict[str, Step]:
    """The steps by their name in a legend; a text that no run made has step 0 and no number."""
    return {
        f"{name}, step {step.step}" if step.step else name: step
        for name, some in runs.items()
        for step in some
        if step.values["entropy"].size
    }


def distribution(runs: Steps) -> Figure:
    """A histogram of the entropy of every token."""
    steps = labelled(runs)
    edges = np.linspace(0, max([1e-6, *(float(step.values["entropy"].max()) for step in steps.values())]), _BINS + 1)
    counted = {name: np.histogram(step.values["entropy"], edges)[0] for name, step in steps.items()}
    table = [
        {"of": name, "from, nats": low, "to, nats": high, "tokens": int(n)}
        for name, counts in counted.items()
        for low, high, n in zip(edges.tolist(), edges[1:].tolist(), counts)
    ]
    color = colored(list(steps))

    def draw(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        for name, counts in counted.items():
            axes.stairs(counts, edges, color=color[name], label=name, lw=1.5)
            axes.axvline(np.quantile(steps[name].values["entropy"], FORKING), color=color[name], ls="--", lw=1)
        axes.set(xlabel="entropy of a token, nats", ylabel="tokens", yscale="log", xlim=(0, None))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.legend(frameon=False, fontsize="small")

    return Figure(
        "entropy_distribution",
        "How the entropy of tokens is distributed",
        "Tokens by their entropy, on a logarithmic scale, with the 80th percentile as a dashed line. Most tokens have "
        "next to none, and the few to the right of the line are the forks.",
        "2506.01939, figure 2a",
        table,
        draw,
        (8.0, 3.6),
    )


def percentiles(runs: Steps) -> Figure:
    """The same distribution in numbers."""
    table: list[dict[str, Any]] = []
    for name, step in labelled(runs).items():
        entropy = step.values["entropy"].astype(np.float64)
        row = {"of": name, "tokens": entropy.size, "mean": entropy.mean()}
        row |= {f"{p}th percentile": float(np.quantile(entropy, p / 100)) for p in (20, 50, 80, 95, 99)}
        above = entropy[entropy >= np.quantile(entropy, FORKING)].sum()
        row["top 20% of all entropy"] = above / entropy.sum() if entropy.any() else None
        table.append(row | {"tokens below 0.01": float((entropy < 0.01).mean())})
    return Figure(
        "entropy_percentiles",
        "The entropy of tokens in numbers",
        "Nats, over all tokens of the responses. In the paper the 80th percentile of Qwen3-8B's tokens is 0.672 nats, "
        "and more than half of them are below 0.01.",
        "2506.01939, figure 2",
        table,
    )


def places(runs: Steps) -> Figure:
    """Mean entropy by position in the response, by the response's length, and by how it ended."""
    table = [row for name, step in labelled(runs).items() for row in _placed(name, step)]
    kinds = ("position", "length", "ending")
    color = colored(list(dict.fromkeys(row["of"] for row in table)))

    def draw(canvas: "Canvas") -> None:
        for axes, kind in zip(canvas.subplots(1, 3, sharey=True), kinds):
            rows = [row for row in table if row["by"] == kind]
            for i, (name, points) in enumerate(by(rows, "of")):
                heights = column(points, "mean entropy, nats")
                if kind == "ending":
                    there = [("finished", "cut").index(row["value"]) + (i + 0.5) / len(color) * 0.8 for row in points]
                    axes.bar(there, heights, 0.8 / len(color), color=color[name])
                else:
                    middle = (column(points, "from") + column(points, "to")) / 2
                    axes.plot(middle, heights, color=color[name], marker="o", ms=3, label=name)
            axes.set(xlabel={"position": "position of the token", "length": "tokens of the response"}.get(kind, ""))
            if kind == "ending":
                axes.set_xticks([0.4, 1.4], ["finished", "cut"])
        canvas.axes[0].set(ylabel="mean entropy, nats")
        canvas.axes[0].legend(frameon=False, fontsize="small")

    return Figure(
        "entropy_places",
        "Where entropy is: by position, length and ending",
        "The mean entropy of the tokens by their position, by the length of their response, and by whether it ended by "
        "itself. A response that is cut, or ever longer ones, with falling entropy repeat themselves.",
        "",
        table,
        draw,
        (11.0, 3.4),
    )


def _placed(name: str, step: Step) -> list[dict[str, Any]]:
    entropy = step.values["entropy"].astype(np.float64)
    found = []
    for kind, values in (("position", step.position), ("length", step.per_token("length"))):
        edges = np.unique(np.linspace(values.min(), values.max() + 1, _PLACES + 1).round().astype(int))
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist()):
            inside = (values >= low) & (values < high)
            if inside.any():
                row: dict[str, Any] = {"of": name, "by": kind, "value": None, "from": low, "to": high - 1}
                found.append(row | {"tokens": int(inside.sum()), "mean entropy, nats": entropy[inside].mean()})
    finished = step.per_token("finished").astype(bool)
    for ending, inside in (("finished", finished), ("cut", ~finished)):
        if inside.any():
            row = {"of": name, "by": "ending", "value": ending, "from": None, "to": None}
            found.append(row | {"tokens": int(inside.sum()), "mean entropy, nats": entropy[inside].mean()})
    return found


def fates(counted: Mapping[str, Mapping[int, Mapping[str, int]]]) -> Figure:
    """The share of the tokens by what became of their gradient.

    Args:
        counted: run -> step -> fate -> tokens.
    """
    table: Table = [
        {"run": name, "step": step, "fate": fate, "tokens": n, "share": n / sum(counts.values())}
        for name, steps in counted.items()
        for step, counts in steps.items()
        for fate, n in counts.items()
    ]
    names = list(dict.fromkeys(row["run"] for row in table))

    def draw(canvas: "Canvas") -> None:
        color = colored(sorted({row["fate"] for row in table}, key=lambda fate: (fate != "kept", fate)))
        panels = np.atleast_1d(canvas.subplots(1, len(names), sharey=True))
        for axes, (name, rows) in zip(panels, by(table, "run")):
            for fate, points in by(rows, "fate"):
                axes.plot(column(points, "step"), column(points, "share"), marker="o", ms=3, color=color[fate])
            axes.set(title=name)
            step_axis(axes)
        panels[0].set(ylabel="share of the tokens", ylim=(-0.02, 1.02))
        for fate in color:
            panels[0].plot([], [], color=color[fate], label=fate)
        canvas.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)

    return Figure(
        "fates",
        "What became of the tokens' gradients",
        "The share of the recorded tokens whose gradient was kept, and of those that something stopped or changed: no "
        "advantage, the clip, a transform of the method. A method that acts on few tokens is near the bottom.",
        "",
        table,
        draw,
        (4.0 * max(1, len(names)) + 2, 3.4),
    )
