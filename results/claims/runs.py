"""The collected runs, and effects over their seeds with 95% intervals; a `Part` says what one has to satisfy."""

import csv
import gzip
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from entropy_rl.sweep import statistics
from entropy_rl.sweep.statistics import Estimate

DATA = pathlib.Path(__file__).parent / "data"

Series = dict[str, np.ndarray]  # a metric -> its value at every step from 1 on, NaN where it was not measured
Arm = dict[int, Series]  # seed -> its run
Measured = dict[int, dict[str, float]]  # seed -> what was measured of its run, by name
Run = TypeVar("Run", Series, dict[str, float])


class Part(NamedTuple):
    """One statement about an effect: it holds if the whole interval is within [least, most]."""

    text: str
    effect: Estimate
    least: float = -math.inf
    most: float = math.inf
    seeds: int = 0

    @property
    def verdict(self) -> str:
        _, low, high = self.effect
        if math.isnan(low) or math.isnan(high):
            return "cannot tell"
        if low >= self.least and high <= self.most:
            return "holds"
        return "fails" if high < self.least or low > self.most else "cannot tell"


def read(sweep: str) -> dict[str, Arm]:
    """The runs of one sweep by arm and seed.

    Raises:
        KeyError: It was not collected.
    """

    def series(rows: list[dict[str, str]]) -> Series:
        return {key: np.array([float(row[key] or "nan") for row in rows]) for key in rows[0]}

    return _by_run(sweep, "steps.csv.gz", series)


def read_measured(sweep: str) -> dict[str, Measured]:
    """What measure.py measured of one sweep's runs: arm -> seed -> name -> value, NaN if there was nothing to measure.

    Raises:
        KeyError: It was not collected.
    """

    def values(rows: list[dict[str, str]]) -> dict[str, float]:
        return {row["name"]: float(row["value"] or "nan") for row in rows}

    return _by_run(sweep, "measured.csv", values)


def _by_run(sweep: str, ending: str, of: Callable[[list[dict[str, str]]], Run]) -> dict[str, dict[int, Run]]:
    """arm -> seed -> what `of` makes of the rows that a sweep's file has of this run, without arm and seed."""
    path = DATA / f"{sweep}.{ending}"
    if not path.exists():
        raise KeyError(sweep)
    found: dict[str, dict[int, list[dict[str, str]]]] = {}
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row.pop("arm"), {}).setdefault(int(row.pop("seed")), []).append(row)
    return {arm: {seed: of(rows) for seed, rows in by_seed.items()} for arm, by_seed in found.items()}


def having(arm: Measured, name: str) -> Measured:
    """The seeds of an arm for which a measure was made.

    Raises:
        KeyError: It was made for none.
    """
    found = {seed: run for seed, run in arm.items() if name in run}
    if not found:
        raise KeyError(name)
    return found


def steps_of(run: Series, key: str) -> np.ndarray:
    """A metric at the steps from 1 on."""
    return run[key][run["step"] > 0]


def smooth(values: np.ndarray, width: int = 9) -> np.ndarray:
    """The mean of the `width` points around each point; near the ends of those that exist."""
    sums, counts = (np.convolve(x, np.ones(width), "same") for x in (values, np.ones_like(values)))
    return sums / counts


def start(run: Series, key: str) -> float:
    x = steps_of(run, key)
    return float(np.nanmean(x[: max(1, round(0.02 * x.size))]))


def end(run: Series, key: str) -> float:
    x = steps_of(run, key)
    return float(np.nanmean(x[-max(1, round(0.1 * x.size)) :]))


def accuracy(run: Series) -> float:
    """Greedy, of the last evaluation."""
    key = next(k for k in run if k.startswith("eval/") and k.endswith("/accuracy"))
    return float(run[key][np.isfinite(run[key])][-1])


def gain(run: Series) -> float:
    """The greedy accuracy of the last evaluation, less that of the start."""
    key = next(k for k in run if k.startswith("eval/") and k.endswith("/accuracy"))
    return accuracy(run) - float(run[key][run["step"] == 0][0])


def kept(run: Series) -> float:
    return end(run, "entropy/mean") / start(run, "entropy/mean")


def over_seeds(arm: Mapping[int, Run], f: Callable[[Run], float]) -> tuple[Estimate, int]:
    """The mean over seeds with Student's interval, and the number of seeds."""
    values = np.array([f(run) for run in arm.values()])
    return statistics.difference(values, np.zeros_like(values)), int(np.isfinite(values).sum())


def paired(arm: Mapping[int, Run], base: Mapping[int, Run], f: Callable[[Run], float]) -> tuple[Estimate, int]:
    """The mean difference of f between two arms, paired by seed, with Student's interval, and the number of pairs."""
    both = sorted(arm.keys() & base.keys())
    return statistics.difference([f(arm[s]) for s in both], [f(base[s]) for s in both]), len(both)


def part(text: str, found: tuple[Estimate, int], least: float = -math.inf, most: float = math.inf) -> Part:
    return Part(text, found[0], least, most, found[1])


def widest(arms: Mapping[str, Arm]) -> str:
    """The arm that keeps most entropy, on the mean of its seeds."""
    return max(arms, key=lambda name: over_seeds(arms[name], kept)[0].value)
