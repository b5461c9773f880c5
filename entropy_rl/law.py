"""The law of reward and entropy, R = −a·exp(H) + b (arXiv 2505.22617): fit, forecast, coefficients against size.

n points of one run, in order; H in nats, R the reward or accuracy. Plain NumPy in float64: it runs beside the
training, on a handful of numbers. At H = 0 nothing is left to trade, so b − a is the ceiling of the reward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

MIN_POINTS = 5
MIN_SPREAD = 0.01  # nats between the least and the largest entropy: below, the slope is noise

Interval = tuple[float, float]

Series = Sequence[float | None] | np.ndarray  # None or NaN: not measured


@dataclass(frozen=True)
class Law:
    """A fit, or the reason why there is none.

    Attributes:
      a: slope against −exp(H), reward units; None like all figures below where there is no fit.
      b: intercept.
      ceiling: b − a, the reward at H = 0.
      r2: share of the reward's variance explained.
      rmse: root of the mean squared residual, normaliser n, reward units.
      a_interval, b_interval, ceiling_interval: intervals at the level asked for, for independent normal errors.
      n: points used.
      message: "" or one sentence that says why there is no fit.
    """

    a: float | None = None
    b: float | None = None
    ceiling: float | None = None
    r2: float | None = None
    rmse: float | None = None
    a_interval: Interval | None = None
    b_interval: Interval | None = None
    ceiling_interval: Interval | None = None
    n: int = 0
    message: str = ""

    def predict(self, entropy: Any) -> np.ndarray:
        """R at the given entropies, float64, of their shape.

        Raises:
          ValueError: where there is no fit, with the reason.
        """
        if self.a is None or self.b is None:
            raise ValueError(f"law: nothing to predict from: {self.message}")
        return self.b - self.a * np.exp(np.asarray(entropy, np.float64))


def _points(*series: Series) -> list[np.ndarray]:
    """The series as float64, without the points at which any of them is None, NaN or infinite."""
    arrays = [np.array([np.nan if v is None else v for v in s], np.float64) for s in series]
    if len({a.size for a in arrays}) != 1:
        raise ValueError(f"law: the series differ in length: {', '.join(str(a.size) for a in arrays)}")
    finite = np.all(np.isfinite(arrays), axis=0)
    return [a[finite] for a in arrays]


def _why_not(x: np.ndarray, y: np.ndarray) -> str:
    if x.size < MIN_POINTS:
        return f"too few points: {x.size}, the law needs {MIN_POINTS}"
    if np.ptp(x) < MIN_SPREAD:
        return f"no spread: entropy moved by {np.ptp(x):.2g} nats, the law needs {MIN_SPREAD}"
    if np.ptp(y) == 0:
        return "no spread: the reward is the same at every point"
    return ""


def fit(entropy: Series, reward: Series, level: float = 0.95) -> Law:
    """Least squares of R = −a·exp(H) + b.

    Args:
      entropy: H at each point, nats; a point with None, NaN or infinity in either series is left out.
      reward: R at each point.
      level: of the intervals, by Student's t with n − 2 degrees of freedom.

    Returns:
      The fit; with too few points or no spread, a `Law` without figures whose `message` says so.

    Raises:
      ValueError: if the series differ in length.
    """
    h, y = _points(entropy, reward)
    message = _why_not(h, y)
    if message:
        return Law(n=h.size, message=message)
    x = np.exp(h)
    n, mean_x, mean_y = x.size, x.mean(), y.mean()
    spread = np.sum((x - mean_x) ** 2)
    a = -np.sum((x - mean_x) * (y - mean_y)) / spread
    b = mean_y + a * mean_x
    residual = np.sum((y - (b - a * x)) ** 2)
    width = stats.t.ppf(0.5 + level / 2, n - 2) * np.sqrt(residual / (n - 2))

    def around(value: float, at: float | None) -> Interval:
        """The interval of the line's height at exp(H) = at, or of its slope for None."""
        half = width / np.sqrt(spread) if at is None else width * np.sqrt(1 / n + (at - mean_x) ** 2 / spread)
        return float(value - half), float(value + half)

    return Law(
        a=float(a),
        b=float(b),
        ceiling=float(b - a),
        r2=float(1 - residual / np.sum((y - mean_y) ** 2)),
        rmse=float(np.sqrt(residual / n)),
        a_interval=around(a, None),
        b_interval=around(b, 0.0),
        ceiling_interval=around(b - a, 1.0),
        n=n,
    )


@dataclass(frozen=True)
class Forecast:
    """What the beginning of a run says about the rest of it.

    Attributes:
      law: the fit on the beginning.
      predicted: reward at the later points, float64; None where there is no fit.
      rmse: against the later rewards, reward units; None where there is no fit or no later point.
      last_error: predicted minus measured at the last point; None likewise.
    """

    law: Law
    predicted: np.ndarray | None = None
    rmse: float | None = None
    last_error: float | None = None


def forecast(entropy: Series, reward: Series, share: float = 0.15) -> Forecast:
    """Fits the first `share` of the points and predicts the reward of the others from their entropy.

    The paper fits the first 36 steps, 15%, and forecasts the rest with an RMSE of about 1%.

    Raises:
      ValueError: if the series differ in length or share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"law.forecast: share {share!r}, must be between 0 and 1")
    h, y = _points(entropy, reward)
    first = int(np.ceil(share * h.size))
    law = fit(h[:first].tolist(), y[:first].tolist())
    if law.message or first == h.size:
        return Forecast(law)
    predicted = law.predict(h[first:])
    error = predicted - y[first:]
    return Forecast(law, predicted, float(np.sqrt(np.mean(error**2))), float(error[-1]))


@dataclass(frozen=True)
class SizeLaw:
    """A coefficient against model size: coefficient = intercept + slope · log(parameters).

    Attributes:
      slope: per e-fold of non-embedding parameters; None like the others where there is no fit.
      intercept: at one parameter.
      r2: share of variance explained; None too where all coefficients are equal.
      message: "" or one sentence that says why there is no fit.
    """

    slope: float | None = None
    intercept: float | None = None
    r2: float | None = None
    message: str = ""

    def predict(self, parameters: Any) -> np.ndarray:
        """The coefficient at these sizes; ValueError where there is no fit."""
        if self.slope is None or self.intercept is None:
            raise ValueError(f"law: nothing to predict from: {self.message}")
        return self.intercept + self.slope * np.log(np.asarray(parameters, np.float64))


def fit_size(parameters: Sequence[float], coefficients: Series) -> SizeLaw:
    """Least squares of a law's a or b, one from each model of a family, against the log of its size.

    Args:
      parameters: non-embedding parameters of each model.
      coefficients: a or b of each; None where a model has no fit.
    """
    size, y = _points(parameters, coefficients)
    if size.size < 3 or np.ptp(size) == 0:
        return SizeLaw(
            message=f"too few sizes: {np.unique(size).size} over {size.size} models, 3 models of different "
            "size are needed"
        )
    slope, intercept = np.polyfit(np.log(size), y, 1)
    total = np.sum((y - y.mean()) ** 2)
    residual = np.sum((y - intercept - slope * np.log(size)) ** 2)
    return SizeLaw(float(slope), float(intercept), float(1 - residual / total) if total > 0 else None)
