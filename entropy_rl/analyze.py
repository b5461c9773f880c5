"""python -m entropy_rl.analyze --workdir=runs/q [--compare=runs/other,...]: what a run did to reward and entropy."""

import argparse
import html
import sys
from collections.abc import Sequence

import numpy as np
from etils import epath

from entropy_rl import covariance, law
from entropy_rl.record import jsonl

_ROWS = 10  # of the printed table


def read_run(workdir: str) -> list[dict]:
    """The rows of a run's metrics.jsonl. Raises ValueError where there are none."""
    path = epath.Path(workdir) / "metrics.jsonl"
    if not jsonl.exists(path) or not (rows := jsonl.read(path)):
        raise ValueError(f"--workdir: {path} holds no metrics; give the directory of a run")
    return rows


def series(rows: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of a metric where it was measured."""
    found = [(r["step"], r[key]) for r in rows if r.get(key) is not None]
    return np.array([step for step, _ in found]), np.array([value for _, value in found])


def accuracy_keys(rows: list[dict]) -> list[str]:
    """The `eval/<name>/accuracy` keys of a run."""
    return sorted({k for r in rows for k in r if k.startswith("eval/") and k.endswith("/accuracy")})


def table(rows: list[dict]) -> str:
    """Reward and entropy over the run in ten spans of steps, and every evaluation."""
    rl = [r for r in rows if r["step"] > 0]
    spans = np.array_split(np.arange(len(rl)), min(_ROWS, len(rl)))
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


_PREDICTIONS = {"exact first order": "predicted", "Theorem 1": "thm1", "Theorem 2": "thm2"}


def entropy_changes(rows: list[dict]) -> str:
    """How well each prediction of an update's entropy change did on the steps that were measured; "" without any."""
    rows = [r for r in rows if r.get("entropy/delta") is not None]
    if len(rows) < 2:
        return ""
    measured = np.array([r["entropy/delta"] for r in rows])
    lines = [
        f"entropy change of an update, {len(rows)} measured: mean {measured.mean():.2e} nats, mean size "
        f"{np.abs(measured).mean():.2e}",
        f"{'':>18}  {'mean':>9}  {'median |error| / |change|':>25}  {'correlation':>11}  {'same sign':>9}",
    ]
    for name, key in _PREDICTIONS.items():
        guess = np.array([r[f"entropy/delta_{key}"] for r in rows])
        error = np.median(np.abs(guess - measured) / np.maximum(np.abs(measured), 1e-30))
        flat = min(guess.std(), measured.std()) == 0
        correlation = np.nan if flat else np.corrcoef(guess, measured)[0, 1]
        same = np.mean(np.sign(guess) == np.sign(measured))
        lines.append(f"{name:>18}  {guess.mean():9.2e}  {error:25.1%}  {correlation:11.3f}  {same:9.0%}")
    lines.append(f"{'quadrant':>18}  {'share':>9}  {'covariance':>11}  {'entropy change':>14}")
    for name in covariance.QUADRANTS:
        share, cov, change = (
            np.mean([r[f"quadrant/{name}/{field}"] for r in rows])
            for field in ("share", "covariance", "entropy_change")
        )
        lines.append(f"{name:>18}  {share:9.1%}  {cov:11.3f}  {change:14.2e}")
    return "\n".join(lines)


def plot(runs: dict[str, list[dict]], path: epath.Path) -> None:
    """Reward, entropy and held-out accuracy over the steps, and reward against entropy with the fitted law."""
    from matplotlib.figure import Figure  # not pyplot: a notebook's own backend stays as it is

    figure = Figure(figsize=(18, 4), layout="constrained")
    axes = figure.subplots(1, 4)
    for name, rows in runs.items():
        (line,) = axes[0].plot(*series(rows, "reward/mean"), label=name)
        axes[1].plot(*series(rows, "entropy/mean"), color=line.get_color())
        for key in accuracy_keys(rows):
            axes[2].plot(*series(rows, key), "o-", color=line.get_color())
        pairs = [(r["entropy/mean"], r["reward/mean"]) for r in rows if r.get("reward/mean") is not None]
        entropy, reward = (np.array(x) for x in zip(*pairs))
        axes[3].plot(entropy, reward, ".", color=line.get_color())
        fitted = law.fit(entropy, reward)
        if not fitted.message:
            grid = np.linspace(0, entropy.max(), 100)
            axes[3].plot(grid, fitted.predict(grid), color=line.get_color(), lw=1)
    titles = (
        ("step", "reward, mean of the step"),
        ("step", "entropy, nats a token"),
        ("step", "held-out accuracy, greedy"),
        ("entropy, nats", "reward, and R = −a·exp(H) + b"),
    )
    for axis, (x, y) in zip(axes, titles):
        axis.set(xlabel=x, ylabel=y)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)


def report(workdir: str, compare: Sequence[str] = ()) -> str:
    """Writes report/curves.png and report/index.html into the run directory; returns the text that they show."""
    workdirs = (workdir, *compare)
    names = [epath.Path(w).name for w in workdirs]
    runs = {name if names.count(name) == 1 else w: read_run(w) for name, w in zip(names, workdirs)}
    folder = epath.Path(workdir) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    texts = []
    for name, rows in runs.items():
        rl = [r for r in rows if r.get("reward/mean") is not None]
        if not rl:
            raise ValueError(f"{name}: no step was trained yet")
        fitted = law.fit(np.array([r["entropy/mean"] for r in rl]), np.array([r["reward/mean"] for r in rl]))
        parts = (table(rows), f"law R = −a·exp(H) + b: {fitted.message or describe(fitted)}", entropy_changes(rows))
        texts.append(f"{name}\n" + "\n\n".join(part for part in parts if part))
    text = "\n\n".join(texts)
    plot(runs, folder / "curves.png")
    (folder / "index.html").write_text(
        f"<!doctype html><meta charset=utf-8><title>{html.escape(', '.join(runs))}</title>"
        f"<img src=curves.png style='max-width:100%'><pre>{html.escape(text)}</pre>\n"
    )
    return text


def describe(fitted) -> str:
    """The law's numbers in a line."""
    return (
        f"a = {fitted.a:.3f}, b = {fitted.b:.3f}, ceiling b − a = {fitted.ceiling:.3f}, R² = {fitted.r2:.2f}, "
        f"RMSE = {fitted.rmse:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True, help="the run directory")
    parser.add_argument("--compare", default="", help="other run directories, with commas between")
    args = parser.parse_args()
    try:
        print(report(args.workdir, [w for w in args.compare.split(",") if w]))
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"\nplot: {epath.Path(args.workdir) / 'report' / 'curves.png'}")


if __name__ == "__main__":
    main()
