"""Reports what a run did to reward and entropy: a page of figures and tables, and every recorded token.

python -m entropy_rl.analyze --workdir=runs/q [--compare=runs/other,…] [--rescore]
python -m entropy_rl.analyze --model=a[,b] --text=file [--dataset=task] [--out=report]     # any text, without a run
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from entropy_rl import covariance, law
from entropy_rl.record import jsonl, metrics
from entropy_rl.report import page, recorded, summary, training
from entropy_rl.report.curves import curves
from entropy_rl.report.figure import Rows, to_png
from entropy_rl.runtime.files import expand

_QUADRANT_FIELDS = ("share", "covariance", "entropy_change")


def read_run(workdir: str, flag: str = "--workdir") -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; `flag`: by which the run was given.

    Raises:
        ValueError: If there are none, or if a line is not a row with what this report reads; names the line.
    """
    path = epath.Path(workdir) / "metrics.jsonl"
    if not jsonl.exists(path) or not (rows := metrics.rows(path)):
        raise ValueError(f"{flag}: {path} holds no metrics; give the directory of a run")
    for place, row in rows:
        needed = [
            f"{key.rsplit('/', 1)[0]}/{bound}"
            for key in summary.accuracy_keys([row])
            if row[key] is not None
            for bound in ("low", "high", "problems")
        ]
        if row.get("entropy/delta") is not None:
            needed += [f"entropy/delta_{name}" for name in summary.PREDICTIONS.values()]
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


def table(rows: Rows) -> str:
    """Reward and entropy over the run in ten spans of steps, and every evaluation."""
    lines = [f"{'steps':>11}  {'reward':>7}  {'entropy':>8}  {'length':>7}  {'|grad|':>7}"]
    for span in summary.spans(rows):
        name = f"{span['from step']}–{span['to step']}"
        reward, entropy, length, grad = (span[key] for key in summary.SPAN_KEYS)
        lines.append(f"{name:>11}  {reward:7.3f}  {entropy:8.3f}  {length:7.1f}  {grad:7.3f}")
    last = ""
    for row in summary.evaluations(rows):
        lines += [""] * (row["set"] != last)
        last = row["set"]
        lines.append(
            f"{last} at step {row['step']:>4}: greedy accuracy {row['greedy accuracy']:6.1%}  "
            f"[{row['low']:.1%}, {row['high']:.1%}]  of {row['problems']}"
        )
    return "\n".join(lines)


def entropy_changes(rows: Rows) -> str:
    """The predictions of an update's entropy change beside the change, over the updates that were measured.

    Returns:
        The table; "" if fewer than two updates were measured.
    """
    if not (found := summary.predictions(rows)):
        return ""
    of_all, rows = found[0], [r for r in rows if r.get("entropy/delta") is not None]
    lines = [
        f"entropy change of an update, {len(rows)} measured: mean {of_all['mean of the change']:.2e} nats, mean size "
        f"{of_all['mean size of the change']:.2e}",
        f"{'':>18}  {'mean':>9}  {'median |error| / |change|':>25}  {'correlation':>11}  {'same sign':>9}",
    ]
    for row in found:
        lines.append(
            f"{row['prediction']:>18}  {row['mean']:9.2e}  {row['median |error| / |change|']:25.1%}  "
            f"{row['correlation']:11.3f}  {row['same sign']:9.0%}"
        )
    lines.append(f"{'quadrant':>18}  {'share':>9}  {'covariance':>11}  {'entropy change':>14}")
    for name in covariance.QUADRANTS:
        share, cov, change = (np.mean([r[f"quadrant/{name}/{field}"] for r in rows]) for field in _QUADRANT_FIELDS)
        lines.append(f"{name:>18}  {share:9.1%}  {cov:11.3f}  {change:14.2e}")
    return "\n".join(lines)


def report(workdir: str, compare: Sequence[str] = (), rescore: bool = False) -> str:
    """Writes the page report/index.html into a run directory, with its figures and tables as files, and curves.png.

    Args:
        workdir: the run directory.
        compare: directories of other runs, which are shown beside it.
        rescore: whether the kept checkpoints score the responses that were recorded first.

    Returns:
        The text of the page: for each run a table, the fitted law and the changes of entropy, if any were measured.

    Raises:
        ValueError: If a directory holds no run, or the run has no step yet; with `rescore`, if no rollouts were
            recorded or no later checkpoint was kept.
    """
    workdirs = named([workdir, *compare])
    runs = {n: read_run(path, "--compare" if i else "--workdir") for i, (n, path) in enumerate(workdirs.items())}
    texts = []
    for name, rows in runs.items():
        if not summary.trained(rows)[1].size:
            raise ValueError(f"{name}: no step was trained yet")
        parts = (table(rows), laws(rows), entropy_changes(rows))
        texts.append(f"{name}\n" + "\n\n".join(part for part in parts if part))
    text = "\n\n".join(texts)
    figures = [curves(runs), *training.figures(runs), *recorded.figures(workdirs, rescore), *summary.figures(runs)]
    folder = epath.Path(next(iter(workdirs.values()))) / "report"
    page.write(folder, ", ".join(runs), figures, workdirs, text)
    (folder / "curves.png").write_bytes(to_png(figures[0]))
    return text


def report_texts(models: Sequence[str], texts: Sequence[str], dataset: str, problems: int, out: str) -> str:
    """Writes the page of texts and models that belong to no run.

    Args:
        models: as for `erl.load`.
        texts: text files.
        dataset: a task, a file of problems or a data set; "": none.
        problems: how many of them.
        out: the folder of the page.

    Returns:
        The page's text: the entropy of the tokens under each model.

    Raises:
        ValueError: There is nothing to score, or a model or a text cannot be used.
    """
    from entropy_rl import policy  # imports transformers, which the report of a run does not need
    from entropy_rl.report import texts as any_text

    passages = [any_text.of_file(path) for path in texts] + (any_text.of_dataset(dataset, problems) if dataset else [])
    if not passages:
        raise ValueError("--model: give it something to read, --text=file or --dataset=task")
    steps = {name: any_text.score(policy.load(source), passages) for name, source in named(models).items()}
    figures = [*recorded.of_steps({name: [step] for name, step in steps.items()}), any_text.overlaps(steps)]
    lines = [
        f"{name}: {step.values['entropy'].size} tokens, mean entropy {step.values['entropy'].mean():.3f} nats, "
        f"80th percentile {np.quantile(step.values['entropy'], 0.8):.3f}"
        for name, step in steps.items()
    ]
    lines += [f"{row['of']} and {row['and']}: {row['overlap']:.1%} of the highest 20%" for row in figures[-1].table]
    text = "\n".join(lines)
    page.write(epath.Path(expand(out)), ", ".join(steps), [f for f in figures if f.table], {}, text, steps)
    return text


def named(sources: Sequence[str]) -> dict[str, str]:
    """The last part of each path -> the path, once each; paths that end alike keep their whole name.

    >>> named(["runs/a", "runs/a/", "other/b/.", "x/c", "y/c"])
    {'a': 'runs/a', 'b': 'other/b/.', 'x/c': 'x/c', 'y/c': 'y/c'}
    """
    once: dict[str, str] = {}
    for path in map(expand, sources):
        once.setdefault(str(epath.Path(path)), path)
    paths = list(once.values())
    short = [epath.Path(path).name for path in paths]
    short = [name if name not in ("", "..") else epath.Path(path).resolve().name for name, path in zip(short, paths)]
    short = [f"./{name}" if name.startswith("_") else name for name in short]  # which legends would leave out
    return {name if short.count(name) == 1 else path: path for name, path in zip(short, paths)}


def laws(rows: Rows) -> str:
    """The law with either mean of the entropy, a line each."""
    lines = []
    for name, key in summary.LAWS.items():
        fitted = law.fit(*summary.trained(rows, key))
        lines.append(f"{name}: {fitted.message or describe(fitted)}")
    return "\n".join(lines)


def describe(fitted: law.Law) -> str:
    """The figures of a fitted law, in one line."""
    return (
        f"a = {fitted.a:.3f}, b = {fitted.b:.3f}, ceiling b − a = {fitted.ceiling:.3f}, R² = {fitted.r2:.2f}, "
        f"RMSE = {fitted.rmse:.3f}"
    )


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; ends the process if they contradict one another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="", help="the run directory")
    parser.add_argument("--compare", default="", help="other run directories, separated by commas")
    parser.add_argument("--rescore", action="store_true", help="score the first recorded step with later checkpoints")
    parser.add_argument("--model", default="", help="without a run: models as for erl.load, separated by commas")
    parser.add_argument("--text", default="", help="with --model: text files, separated by commas")
    parser.add_argument("--dataset", default="", help="with --model: a task, a file of problems or a data set")
    parser.add_argument("--problems", type=int, help="of --dataset; 64 unless given")
    parser.add_argument("--out", help="with --model: the folder of the page; report unless given")
    args = parser.parse_args(given)
    if bool(args.workdir) == bool(args.model):
        parser.error("give either --workdir, a run, or --model with --text or --dataset")
    others = ("compare", "rescore") if args.model else ("text", "dataset", "problems", "out")
    if unused := [f"--{name}" for name in others if getattr(args, name)]:
        parser.error(f"{', '.join(unused)} has no meaning with --{'model' if args.model else 'workdir'}; leave it out")
    if args.problems is not None and (args.problems < 1 or not args.dataset):
        parser.error(f"--problems={args.problems} must be at least 1, and is of --dataset")
    return args


def main() -> None:
    """The command."""
    args = arguments()
    compare, models, texts = (
        [part for part in flag.split(",") if part] for flag in (args.compare, args.model, args.text)
    )
    try:
        if models:
            out = args.out or "report"
            print(report_texts(models, texts, args.dataset, args.problems or 64, out))
            print(f"\npage: {epath.Path(expand(out)) / 'index.html'}")
            return
        print(report(args.workdir, compare, args.rescore))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    folder = epath.Path(expand(args.workdir)) / "report"
    print(f"\nplot: {folder / 'curves.png'}; page: {folder / 'index.html'}")


if __name__ == "__main__":
    main()
