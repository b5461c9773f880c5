"""Decoding with two temperatures, swept: forks at one and all other tokens at another (arXiv 2506.01939, section 3).

A position is a fork if the entropy of its distribution at temperature 1 is above a threshold: nats, or a percentile of
the tokens' entropies in the policy's own responses at temperature 1. The paper's is 0.672 nats, the 80th percentile.
"""

import csv
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from entropy_rl.config.defaults import FIELDS
from entropy_rl.evaluation.report import Result, measures
from entropy_rl.rules import Rule, check, number
from entropy_rl.sampling.base import Forks, Sampling


class Sweep(NamedTuple):
    """The pairs of temperatures to sample at.

    Attributes:
        threshold: nats, or a percentile.
        percentile: which of the two it is.
        pairs: (the forks' temperature, the others'); that with both at `base` comes first if it is among them.
        base: the temperature of one kind while the other is varied.
    """

    threshold: float
    percentile: bool
    pairs: tuple[tuple[float, float], ...]
    base: float


class Point(NamedTuple):
    """Where in a sweep a result was made: the threshold in nats, and the two temperatures."""

    threshold: float
    fork: float
    other: float


def sweep_of(
    threshold: str | None, forks: Sequence[str], others: Sequence[str], base: float, k: int, server: str
) -> Sweep | None:
    """The sweep of the flags.

    If both are lists, each is varied while the other is at the base. Otherwise one is varied while the other has its
    only value, or the base if it has none.

    >>> sweep_of("0.672", ["0.5", "1"], ["2"], 1.0, 4, "").pairs
    ((0.5, 2.0), (1.0, 2.0))
    >>> sweep_of("80%", ["0.5", "1"], ["0.5", "1"], 1.0, 4, "").pairs
    ((1.0, 1.0), (0.5, 1.0), (1.0, 0.5))

    Args:
        threshold: --fork_threshold, "0.672" or "80%"; None: not given.
        forks: --fork_temperature.
        others: --other_temperature.
        base: the temperature of samples: --temperature, or else eval.temperature.
        k: samples per problem.
        server: --server.

    Returns:
        None without a threshold.

    Raises:
        ValueError: A flag is out of its range, or does not fit the others.
    """
    given = "--fork_temperature" if forks else "--other_temperature"
    if threshold is None:
        if forks or others:
            raise ValueError(f"{given} without --fork_threshold: which tokens are forks? Give 0.672 nats, or 80%")
        return None
    if not (forks or others):
        raise ValueError(f"--fork_threshold={threshold} without --fork_temperature or --other_temperature: give one")
    if not k:
        raise ValueError(f"--fork_threshold={threshold} with no samples has no effect; give --k too")
    if server:
        raise ValueError(
            f"--fork_threshold={threshold} with --server: a server draws all tokens at one temperature; leave one out"
        )
    percentile = threshold.endswith("%")
    limit = _number("--fork_threshold", threshold.removesuffix("%"))
    check("--fork_threshold", limit, number(least=0, most=100) if percentile else number(least=0))
    hot, cold = _temperatures("--fork_temperature", forks), _temperatures("--other_temperature", others)
    if len(hot) > 1 and len(cold) > 1:
        pairs = [(fork, base) for fork in hot] + [(base, other) for other in cold]
    else:
        pairs = [(fork, other) for fork in hot or [base] for other in cold or [base]]
    ordered = sorted(dict.fromkeys(pairs), key=lambda pair: pair != (base, base))
    return Sweep(limit, percentile, tuple(ordered), base)


def _number(flag: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{flag}={text} must be a number") from None


def _temperatures(flag: str, texts: Sequence[str]) -> list[float]:
    rule = FIELDS["eval.temperature"].rule
    assert isinstance(rule, Rule)
    values = [_number(flag, text) for text in texts]
    for value in values:
        check(flag, value, rule)
    return values


def sampling_of(point: Point, top_p: float) -> Sampling:
    """How tokens are drawn at a point. Two equal temperatures are one, bit for bit."""
    if point.fork == point.other:
        return Sampling(point.other, top_p).check()
    return Sampling(point.other, top_p, forks=Forks(point.threshold, point.fork)).check()


def threshold_of(sweep: Sweep, entropies: Sequence[np.ndarray]) -> float:
    """The threshold in nats; `entropies`: of the tokens of responses at temperature 1, read if it is a percentile.

    Raises:
        ValueError: There are no tokens.
    """
    if not sweep.percentile:
        return sweep.threshold
    found = np.concatenate([np.zeros(0), *entropies])
    if not len(found):
        raise ValueError(f"--fork_threshold={sweep.threshold:g}%: the responses have no tokens")
    return float(np.quantile(found, sweep.threshold / 100))


def table(results: Sequence[Result], base: float) -> str:
    """The results of a sweep as CSV; `varied` is the kind whose temperature is not the base.

    Args:
        results: those with a point are rows.
        base: see `Sweep`.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    kinds = ("avg", "pass", "maj")
    head = ["set", "policy", "threshold_nats", "fork_temperature", "other_temperature", "varied", "samples", "problems"]
    rows.writerow(head + [f"{kind}{end}" for kind in kinds for end in ("", "_low", "_high")] + ["tokens", "cut"])
    for r in results:
        if r.point is None:
            continue
        threshold, fork, other = r.point
        every = [a for some in r.samples for a in some]
        k, values = max(map(len, r.samples)), measures(r)
        varied = ["forks"] * (fork != base) + ["others"] * (other != base)
        line = [r.problem_set, r.source, threshold, fork, other, "+".join(varied), k, len(r.samples)]
        for kind in kinds:
            line += [value if math.isfinite(value) else "" for value in values[f"{kind}@{k}"]]
        tokens, cut = (float(np.mean(column)) for column in zip(*((a.length, not a.finished) for a in every)))
        rows.writerow([*line, tokens, cut])
    return text.getvalue()


def plot(results: Sequence[Result], base: float, paths: Sequence[epath.Path]) -> None:
    """One panel per set and policy: avg@k by the forks' temperature, and by that of the other tokens.

    Args:
        results: those with a point are drawn.
        base: the temperature of one kind while the other is varied; a pair without it is drawn by the forks'.
        paths: files to write, .png or .svg.
    """
    from matplotlib.figure import Figure  # not pyplot: a notebook's own backend stays as it is

    swept = [(r, r.point) for r in results if r.point is not None]
    panels = list(dict.fromkeys((r.problem_set, r.source) for r, _ in swept))
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        here = [(r, point) for r, point in swept if (r.problem_set, r.source) == panel]
        for what, rest, style in (("fork", "other", "o-"), ("other", "fork", "s--")):
            for held in sorted({getattr(point, rest) for _, point in here}):
                line = sorted((getattr(point, what), _avg(r)) for r, point in here if getattr(point, rest) == held)
                if len(line) == 1 and (len(here) > 1 or what == "other"):
                    continue  # one pair of temperatures is no line, unless it is all there is
                x, y = [temperature for temperature, _ in line], [100 * value for _, (value, _, _) in line]
                bars = [[100 * (v - low) for _, (v, low, _) in line], [100 * (high - v) for _, (v, _, high) in line]]
                label = f"{what} tokens vary, {rest} tokens at {held:g}"
                axis.errorbar(x, y, bars, fmt=style, capsize=2, label=label)
        axis.axvline(base, color="0.7", lw=0.8, zorder=0)
        k = max(len(some) for r, _ in here for some in r.samples)
        title = f"{panel[0]}, {panel[1]}: forks above {here[0][1].threshold:.3f} nats"
        axis.set(title=title, xlabel="temperature", ylabel=f"avg@{k}, %")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    for path in paths:
        with path.open("wb") as file:
            figure.savefig(file, format=path.suffix[1:], dpi=110)


def _avg(result: Result) -> tuple[float, float, float]:
    return measures(result)[f"avg@{max(map(len, result.samples))}"]


def write(folder: str, results: Sequence[Result], base: float) -> list[str]:
    """Writes forks.csv, forks.svg and forks.png into a folder; returns their names."""
    out = epath.Path(folder)
    (out / "forks.csv").write_text(table(results, base))
    plot(results, base, [out / "forks.svg", out / "forks.png"])
    return ["forks.csv", "forks.svg", "forks.png"]
