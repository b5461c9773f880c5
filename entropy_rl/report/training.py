"""The report's figures of a run's metrics: the law, and what predicts the change of entropy."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from entropy_rl import law
from entropy_rl.record import alarms as record_alarms
from entropy_rl.report.curves import smooth
from entropy_rl.report.figure import Figure, Runs, by, colored, column, legend, step_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

FIRST = 0.15  # the share of the steps that a forecast is made from, as in the paper
PREDICTIONS = {
    "predicted": "exact to first order",
    "thm1": "Theorem 1",
    "thm2": "Theorem 2",
    "score": "entropy score",
}
QUADRANTS = {
    "high_prob_positive": "likely, advantage > 0",
    "high_prob_negative": "likely, advantage < 0",
    "low_prob_positive": "unlikely, advantage > 0",
    "low_prob_negative": "unlikely, advantage < 0",
}
# Mean covariance of the top share of the tokens: Qwen2.5-7B at step 1 (arXiv 2505.22617, table 1).
PAPER_TAIL = {"0.02%": 5.654, "0.2%": 3.112, "2%": 1.385, "20%": 0.351, "50%": 0.152, "all": 0.003}


def figures(runs: Runs) -> list[Figure]:
    """The figures that the rows of these runs suffice for, beside the curves, in the order of the page."""
    made = (alarms(runs), the_law(runs), forecasts(runs), shares(runs), changes(runs), quadrants(runs), tail(runs))
    return [figure for figure in made if figure.table]


def alarms(runs: Runs) -> Figure:
    """What went wrong, and when it began and ended."""
    table = [
        {"run": name, "step": alarm.step, "alarm": alarm.name, "it": "begins" if alarm.begins else "ends"}
        | {"seen": alarm.text if alarm.begins else ""}
        for name, rows in runs.items()
        for alarm in record_alarms.alarms(rows)
    ]
    return Figure(
        "alarms",
        "Alarms",
        "What the run's own log warned of: each alarm once when it begins and once when it ends. docs/metrics.md has "
        "their conditions.",
        "",
        table,
    )


def series(rows: Any) -> dict[str, np.ndarray]:
    """step, reward, entropy and length of the trained steps that have all of them, float64."""
    keys = {"step": "step", "reward": "reward/mean", "entropy": "entropy/mean", "length": "length/mean"}
    whole = [row for row in rows if row["step"] > 0 and all(row.get(key) is not None for key in keys.values())]
    return {name: column(whole, key) for name, key in keys.items()}


def models(points: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What reward is a linear function of: the law, and two that know nothing of entropy."""
    return {
        "law: −exp(H)": -np.exp(points["entropy"]),
        "log step": np.log(np.maximum(points["step"], 1)),
        "length": points["length"],
    }


def fitted(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Least squares of y on x, read at `at`; the mean if x does not vary."""
    if np.ptp(x) == 0:
        return np.full(at.shape, y.mean())
    return np.polyval(np.polyfit(x, y, 1), at)


def the_law(runs: Runs) -> Figure:
    """Reward against exp(entropy), with the fitted law and the two null models' fits."""
    table, points = [], {name: series(rows) for name, rows in runs.items()}
    for name, p in points.items():
        found = law.fit(p["entropy"].tolist(), p["reward"].tolist())
        if found.message:
            continue
        for model, x in models(p).items():
            residual = p["reward"] - fitted(x, p["reward"], x)
            row: dict[str, Any] = {"run": name, "reward is linear in": model, "steps": x.size}
            row |= {"R²": 1 - residual.var() / p["reward"].var(), "RMSE": math.sqrt(np.mean(residual**2))}
            if model.startswith("law"):
                for key in ("a", "b", "ceiling"):
                    low, high = getattr(found, f"{key}_interval")
                    row |= {key: getattr(found, key), f"{key} low": low, f"{key} high": high}
            table.append(row)

    def draw(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        color = colored(list(runs))
        for name in dict.fromkeys(row["run"] for row in table):
            p = points[name]
            x, grid = np.exp(p["entropy"]), np.linspace(1, np.exp(p["entropy"]).max(), 50)
            axes.plot(x, p["reward"], ".", color=color[name], alpha=0.4)
            axes.plot(grid, fitted(x, p["reward"], grid), color=color[name], label=name)
        axes.set(xlabel="exp(entropy); 1 is no entropy left", ylabel="reward")
        legend(axes, len(runs))

    return Figure(
        "law",
        "Reward against entropy: R = −a·exp(H) + b",
        "A dot is a step; the line is the fit, which meets the left edge at the ceiling b − a. Any two series that "
        "only rise and only fall look linear, so the table has two models that know nothing of entropy: the law is "
        "worth something if it beats both.",
        "2505.22617, figures 1, 3 and 4",
        table,
        draw,
        (7.0, 4.2),
        [
            {"run": name, "step": int(step), "exp(entropy)": x, "reward": y, "law": line}
            for name, p in points.items()
            if any(row["run"] == name for row in table)
            for x_all in [np.exp(p["entropy"])]
            for step, x, y, line in zip(p["step"], x_all, p["reward"], fitted(x_all, p["reward"], x_all))
        ],
    )


def forecasts(runs: Runs) -> Figure:
    """The reward that the first 15% of the steps predict, beside what came."""
    table, lines = [], {}
    for name, rows in runs.items():
        p = series(rows)
        first = math.ceil(FIRST * p["step"].size)
        if first < 3 or first == p["step"].size:
            continue
        lines[name] = p, {model: fitted(x[:first], p["reward"][:first], x) for model, x in models(p).items()}
        for model, predicted in lines[name][1].items():
            error = predicted[first:] - p["reward"][first:]
            table.append(
                {"run": name, "reward is linear in": model, "fitted to steps": first, "forecast steps": error.size}
                | {"RMSE": math.sqrt(np.mean(error**2)), "mean error": error.mean(), "last error": error[-1]}
            )

    def draw(canvas: "Canvas") -> None:
        panels = np.atleast_1d(canvas.subplots(1, len(lines), sharey=True))
        for axes, (name, (p, predicted)) in zip(panels, lines.items()):
            axes.plot(p["step"], p["reward"], color="gray", lw=0.8, alpha=0.6)
            axes.plot(p["step"], smooth(p["reward"]), color="gray", label="measured")
            for model, values in predicted.items():
                axes.plot(p["step"], values, lw=1.5, label=model)
            axes.axvspan(0, FIRST * p["step"].size, alpha=0.1, color="gray", lw=0)
            axes.set(title=name)
            step_axis(axes)
        panels[0].set(ylabel="reward")
        rewards = np.concatenate([p["reward"] for p, _ in lines.values()])
        low, high = rewards.min(), rewards.max()
        room = high - low or 1.0
        panels[0].set_ylim(low - 0.3 * room, high + 0.5 * room)
        panels[0].legend(frameon=False, fontsize="small")

    return Figure(
        "forecast",
        "The forecast from the first 15% of the steps",
        "Each model is fitted to the shaded steps and then told the later steps' entropy, number or length, but not "
        "their reward. The law forecasts if its line stays on the measured one, and nearer to it than the two others.",
        "2505.22617, figure 5",
        table,
        draw,
        (4.0 * max(1, min(3, len(lines))) + 1, 3.6),
        [
            {"run": name, "step": int(step), "reward": reward, "running mean": mean}
            | {model: values[i] for model, values in predicted.items()}
            for name, (p, predicted) in lines.items()
            for i, (step, reward, mean) in enumerate(zip(p["step"], p["reward"], smooth(p["reward"])))
        ],
    )


def shares(runs: Runs) -> Figure:
    """The share of the entropy used, and of the gain made, by each step."""
    table = []
    for name, rows in runs.items():
        p = series(rows)
        if p["step"].size < 20:
            continue
        edge = max(1, p["step"].size // 20)
        made = {}
        for key in ("entropy", "reward"):
            start, end = p[key][:edge].mean(), p[key][-edge:].mean()
            noise = np.diff(p[key]).std() / math.sqrt(2 * edge)
            if abs(end - start) > 3 * noise:  # a share of a change that is not there is noise
                made[key] = (smooth(p[key]) - start) / (end - start)
        if len(made) < 2:
            continue
        for step, used, gain in zip(p["step"], made["entropy"], made["reward"]):
            table.append({"run": name, "step": int(step), "entropy used": used, "gain made": gain})

    def draw(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        color = colored(list(runs))
        for name, points in by(table, "run"):
            steps = column(points, "step")
            axes.plot(steps, column(points, "entropy used"), color=color[name], label=f"{name}: entropy used")
            axes.plot(steps, column(points, "gain made"), "--", color=color[name], label=f"{name}: gain made")
        axes.set(ylabel="share of the whole change", ylim=(-0.1, 1.2))
        step_axis(axes)
        axes.legend(frameon=False, fontsize="small")

    return Figure(
        "shares",
        "How early entropy is spent, and how early the gain is made",
        "Both are shares of the change from the first to the last twentieth of the steps, smoothed; a run that did not "
        "change by more than its noise is left out. In the paper the "
        "first third of the steps uses 94% of the entropy and makes over 93% of the gain.",
        "2505.22617, section 2.3 and figure 2",
        table,
        draw,
        (8.0, 3.6),
    )


def changes(runs: Runs) -> Figure:
    """The change of entropy by an update, measured and predicted."""
    table = [
        {"run": name, "step": row["step"], "prediction": PREDICTIONS[key], "predicted": guess, "measured": measured}
        for name, rows in runs.items()
        for row in rows
        if (measured := row.get("entropy/delta")) is not None
        for key in PREDICTIONS
        if (guess := row.get(f"entropy/delta_{key}")) is not None
    ]

    def draw(canvas: "Canvas") -> None:
        kinds = list(dict.fromkeys(row["prediction"] for row in table))
        color = colored(list(runs))
        for axes, kind in zip(np.atleast_1d(canvas.subplots(1, len(kinds), sharey=True)), kinds):
            for name, points in by([row for row in table if row["prediction"] == kind], "run"):
                axes.plot(column(points, "predicted"), column(points, "measured"), ".", color=color[name], alpha=0.6)
            axes.axline((0, 0), slope=1, color="gray", lw=1)
            axes.set(title=kind, xlabel="predicted ΔH, nats")
            axes.ticklabel_format(style="sci", scilimits=(-2, 2))
            axes.tick_params(axis="x", labelsize="small")
        canvas.axes[0].set(ylabel="measured ΔH, nats")

    return Figure(
        "entropy_change",
        "The change of entropy by an update, predicted and measured",
        "A dot is a measured update; on the line the prediction is right. The theorems' proxies are for a softmax "
        "policy under plain gradient steps: here their sign and order matter, not their scale.",
        "2505.22617, theorems 1 and 2 and figure 8; 2602.03392 for the entropy score",
        table,
        draw,
        (11.0, 3.2),
    )


def quadrants(runs: Runs) -> Figure:
    """What the tokens of each quadrant did to the entropy."""
    table = []
    for name, rows in runs.items():
        measured = [row for row in rows if row.get("entropy/delta") is not None]
        for quadrant in QUADRANTS if measured else ():
            share, change, cov = (
                column(measured, f"quadrant/{quadrant}/{key}") for key in ("share", "entropy_change", "covariance")
            )
            table.append(
                {
                    "run": name,
                    "tokens": QUADRANTS[quadrant],
                    "updates": len(measured),
                    "share": np.nanmean(share),
                }
                | {"mean covariance": np.nanmean(cov), "mean change": np.nanmean(change)}
                | {"contribution to ΔH": np.nanmean(share * change)}
            )

    def draw(canvas: "Canvas") -> None:
        axes = canvas.subplots()
        names = list(dict.fromkeys(row["run"] for row in table))
        kinds, color = list(dict.fromkeys(row["tokens"] for row in table)), colored(list(runs))
        for i, name in enumerate(names):
            heights = column([row for row in table if row["run"] == name], "contribution to ΔH")
            places = np.arange(len(kinds)) + (i - (len(names) - 1) / 2) * 0.8 / len(names)
            axes.bar(places, heights, 0.8 / len(names), color=color[name], label=name)
        axes.axhline(0, color="gray", lw=1)
        axes.set_xticks(range(len(kinds)), [kind.replace(", ", "\n") for kind in kinds])
        axes.set(ylabel="contribution to ΔH, nats")
        legend(axes, len(names))

    return Figure(
        "quadrants",
        "Which tokens lower entropy",
        "Tokens by probability (above or below the batch's mean logp) and sign of the advantage; a bar is their share "
        "times their mean change of entropy, averaged over the measured updates. Theory has likely tokens with a "
        "positive advantage and unlikely ones with a negative advantage lower it.",
        "2505.22617, section 3",
        table,
        draw,
        (8.0, 3.4),
    )


def tail(runs: Runs) -> Figure:
    """The mean covariance of the top shares of the tokens, beside the paper's."""
    keys = {
        "0.02%": "top_0.02pct",
        "0.2%": "top_0.2pct",
        "2%": "top_2pct",
        "20%": "top_20pct",
        "50%": "top_50pct",
        "all": "mean",
    }
    table = []
    for name, rows in runs.items():
        trained = [row for row in rows if row["step"] > 0 and row.get("cov/mean") is not None]
        if not trained:
            continue
        for when, some in (("first step", trained[:1]), ("all steps", trained)):
            row: dict[str, Any] = {"run": name, "over": when}
            table.append(
                row | {f"top {k}" if k != "all" else k: mean_of(some, f"cov/{key}") for k, key in keys.items()}
            )
    if table:
        paper = {f"top {k}" if k != "all" else k: v for k, v in PAPER_TAIL.items()}
        table.append({"run": "Qwen2.5-7B, in the paper", "over": "first step", **paper})
    return Figure(
        "covariance_tail",
        "A few tokens have most of the covariance",
        "The mean covariance of the tokens with the highest. Where the top 0.2% are hundreds of times the mean of "
        "all, a method that holds back these alone can hold the entropy.",
        "2505.22617, table 1",
        table,
    )


def mean_of(rows: Sequence[Any], key: str) -> float | None:
    """The mean of a metric over the rows that have it; None if none has."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return float(np.mean(values)) if values else None
