"""The report of an evaluation: every response as a line of JSON, tables and a plot, several policies side by side."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from etils import epath

from entropy_rl.evaluation.estimators import bootstrap
from entropy_rl.evaluation.respond import GREEDY_SAMPLE, Answered
from entropy_rl.evaluation.tables import Interval, by_groups, greedy_row, sampled_row

if TYPE_CHECKING:
    from entropy_rl.evaluation.forks import Point


class Result(NamedTuple):
    """One policy on one set of problems.

    Attributes:
        policy: its name.
        problem_set: the set's name.
        greedy: the greedy response to each problem.
        samples: the sampled responses to each problem; none if k is 0.
        source: the policy's name without a suffix that tells its sampling.
        point: where in a sweep of two temperatures the samples were made; None: in none.
    """

    policy: str
    problem_set: str
    greedy: list[Answered]
    samples: list[list[Answered]]
    source: str = ""
    point: "Point | None" = None


def ks(samples: Sequence[Sequence[Answered]]) -> tuple[int, ...]:
    """1, 2, 4, … and the number of samples."""
    n = max(map(len, samples), default=0)
    return tuple(sorted({*(2**i for i in range(n.bit_length()) if 2**i <= n), n} - {0}))


def measures(result: Result) -> dict[str, Interval]:
    """name -> (value, low, high): greedy (if any was scored), and `tables.sampled_row` for every k of `ks`."""
    row = greedy_row(result.greedy)
    found = {"greedy": (row["accuracy"], row["low"], row["high"])} if row["problems"] else {}
    if any(result.samples):
        found |= sampled_row(result.samples, ks(result.samples))
    return found


def table(results: Sequence[Result]) -> str:
    """Accuracy of every policy on every set, then its differences to the first policy, in Markdown."""
    found = [(r, measures(r)) for r in results]
    n = max((ks(r.samples)[-1] for r in results if any(r.samples)), default=0)
    names = ["greedy"] + ([f"avg@{n}", f"pass@{n}", f"maj@{n}"] if n > 1 else ["avg@1"] if n else [])
    spread = {"answers": f"distinct@{n}", "answer entropy": f"answer_entropy@{n}"} if n > 1 else {}
    lines = [
        f"| set | policy | problems | {' | '.join([*names, *spread])} | tokens | cut | entropy |",
        f"|{'---|' * (len(names) + len(spread) + 6)}",
    ]
    for r, values in found:
        every = [a for some in r.samples for a in some] or r.greedy
        cells = [percent(values[name]) if name in values else "" for name in names]
        cells += ["{:.2f} [{:.2f}, {:.2f}]".format(*values[name]) if name in values else "" for name in spread.values()]
        length, cut, entropy = (
            sum(column) / len(every) for column in zip(*((a.length, not a.finished, a.entropy) for a in every))
        )
        lines.append(
            f"| {r.problem_set} | {r.policy} | {greedy_row(r.greedy)['problems']} | {' | '.join(cells)} | "
            f"{length:.1f} | {cut:.1%} | {f'{entropy:.3f}' if math.isfinite(entropy) else '-'} |"
        )
    return "\n".join(lines + ["", *differences(results)])


def differences(results: Sequence[Result]) -> list[str]:
    """Lines with every policy's gain over the first one, problem by problem: pairing makes the interval narrow."""
    lines = []
    for r in results:
        base = next(other for other in results if other.problem_set == r.problem_set)
        if base is r:
            continue
        gains = {"greedy": _paired([[a] for a in base.greedy], [[a] for a in r.greedy])}
        if any(r.samples) and any(base.samples):
            gains["sampled"] = _paired(base.samples, r.samples)
        text = ", ".join(f"{what} {percent(gain, sign='+')}" for what, gain in gains.items())
        lines.append(f"{r.policy} against {base.policy} on {r.problem_set}: {text} points")
    return lines


def _paired(base: Sequence[Sequence[Answered]], other: Sequence[Sequence[Answered]]) -> Interval:
    """The mean gain per problem, with its bootstrap interval."""

    def means(answered: Sequence[Sequence[Answered]]) -> dict[int, float]:
        scored = {some[0].problem.uid: [a.right for a in some if a.score is not None] for some in answered}
        return {uid: sum(right) / len(right) for uid, right in scored.items() if right}

    before, after = means(base), means(other)
    return bootstrap([after[uid] - before[uid] for uid in before if uid in after])


def percent(value: Interval, sign: str = "") -> str:
    """`41.0 [34.4, 47.9]`, in percent.

    >>> percent((0.41, 0.344, 0.479))
    '41.0 [34.4, 47.9]'
    """
    return f"{100 * value[0]:{sign}.1f} [{100 * value[1]:{sign}.1f}, {100 * value[2]:{sign}.1f}]"


def groups(results: Sequence[Result]) -> str:
    """Each policy's accuracy on each set by difficulty, length, truncation and entropy, in Markdown."""
    parts = []
    for r in results:
        every = [a for some in r.samples for a in some]
        for what, rows in by_groups(every or r.greedy).items():
            parts += [f"### {r.problem_set}, {r.policy}: by {what} ({'sampled' if every else 'greedy'})", ""]
            parts += ["| | responses | accuracy |", "|---|---|---|"]
            parts += [f"| {label} | {n} | {percent((value, low, high))} |" for label, n, value, low, high in rows]
            parts.append("")
    return "\n".join(parts)


def plot(results: Sequence[Result], path: epath.Path) -> None:
    """One panel per set: pass@k (lines) and maj@k (dashed) over k, and the greedy accuracy at the left."""
    from matplotlib.figure import Figure  # not pyplot: a notebook's own backend stays as it is

    names = list(dict.fromkeys(r.problem_set for r in results))
    figure = Figure(figsize=(5.5 * len(names), 4), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        for i, r in enumerate(r for r in results if r.problem_set == name):
            values, colour = measures(r), f"C{i}"
            value, low, high = values.get("greedy", (math.nan,) * 3)
            at = 0.7 * 1.04**i
            axis.errorbar([at], [value], [[value - low], [high - value]], fmt="s", color=colour, label=r.policy)
            for kind, style in (("pass", "o-"), ("maj", "x--")):
                points = [(k, *values[f"{kind}@{k}"]) for k in ks(r.samples)]
                if points:
                    x, y, low_k, high_k = zip(*points)
                    axis.plot(x, y, style, color=colour, lw=1)
                    axis.fill_between(x, low_k, high_k, color=colour, alpha=0.12, lw=0)
        axis.set(title=name, xlabel="k  (squares: greedy)", ylabel="pass@k (—), maj@k (- -)", xscale="log")
        axis.set_ylim(0, None)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def write(folder: str, results: Sequence[Result], about: Mapping[str, object]) -> str:
    """Writes responses.jsonl, results.json, table.md and plot.png into a folder; returns the tables' text."""
    out = epath.Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "responses.jsonl").open("w") as file:
        for r in results:
            for a in [*r.greedy, *(a for some in r.samples for a in some)]:
                file.write(json.dumps(_record(r, a)) + "\n")
    numbers = [
        {"set": r.problem_set, "policy": r.policy, **({"forks": r.point._asdict()} if r.point else {})}
        | _finite(measures(r))
        for r in results
    ]
    (out / "results.json").write_text(json.dumps({"about": dict(about), "results": numbers}, indent=1) + "\n")
    plot(results, out / "plot.png")
    text = table(results)
    (out / "table.md").write_text(f"{text}\n\n{groups(results)}\n")
    return text


def _finite(values: Mapping[str, Interval]) -> dict[str, list[float | None]]:
    return {name: [v if math.isfinite(v) else None for v in interval] for name, interval in values.items()}


def _record(r: Result, a: Answered) -> dict[str, object]:
    """A line of responses.jsonl."""
    return {
        "policy": r.policy,
        "set": r.problem_set,
        "uid": a.problem.uid,
        "question": a.problem.question,
        "right_answer": a.problem.answer,
        "difficulty": a.problem.difficulty,
        "sample": "greedy" if a.sample == GREEDY_SAMPLE else a.sample,
        "response": a.text,
        "answer": a.answer,
        "score": a.score,
        "tokens": a.length,
        "finished": a.finished,
        "entropy": a.entropy if math.isfinite(a.entropy) else None,
    }
