"""The law of reward and entropy, R = −a·exp(H) + b (arXiv 2505.22617): fit, forecast, coefficients by model size.

The n points are those of one run, in order; H is in nats, R is the reward or accuracy. The paper's H (eq. 5) is the
mean over responses of each one's mean per token, the metric `entropy/response_mean`. Most code takes the mean over all
tokens, the metric `entropy/mean`. The functions here fit either; a run logs both fits, as `law/response_mean/*` and
`law/*`. This is plain NumPy in float64, for a handful of numbers during training. At H = 0 no entropy is left to trade,
so b − a is the ceiling of the reward.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

MIN_POINTS = 5
MIN_SPREAD = 0.01  # nats between the smallest and the largest entropy; below this the slope is noise

Interval = tuple[float, float]

Series = Sequence[float | None] | np.ndarray  # None or NaN: not measured


@dataclass(frozen=True)
class Law:
    """A fit, or the reason why there is none.

    Attributes:
        a: slope against −exp(H), reward units; None, like every figure down to n, if there is no fit.
        b: intercept.
        ceiling: b − a, the reward at H = 0.
        r2: share of the reward's variance explained.
        rmse: root of the mean squared residual, normaliser n, reward units.
        a_interval: interval of a at the requested level, for independent normal errors.
        b_interval: that of b.
        ceiling_interval: that of the ceiling.
        n: number of points used.
        message: "", or a sentence that says why there is no fit.
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

    def predict(self, entropy: ArrayLike) -> np.ndarray:
        """R at the given entropies, float64, of the same shape.

        Raises:
            ValueError: If there is no fit; the message gives the reason.
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
    """Why the law cannot be fitted to entropies x and rewards y; "" if it can."""
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
        ValueError: If the series differ in length.

    Example:
        >>> entropy = [1.2, 0.9, 0.6, 0.3, 0.1]
        >>> reward = [0.8 - 0.2 * float(np.exp(h)) for h in entropy]
        >>> law = fit(entropy, reward)
        >>> round(law.a, 6), round(law.b, 6), round(law.ceiling, 6)
        (0.2, 0.8, 0.6)
        >>> fit(entropy[:2], reward[:2]).message
        'too few points: 2, the law needs 5'
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
        """The interval of the line's height at exp(H) = `at`, or of its slope if `at` is None."""
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
    """A forecast of the rest of a run from its beginning.

    Attributes:
        law: the fit on the beginning.
        predicted: reward at the later points, float64; None if there is no fit or no later point.
        rmse: against the later rewards, reward units; None in the same cases.
        last_error: predicted minus measured at the last point; None in the same cases.
    """

    law: Law
    predicted: np.ndarray | None = None
    rmse: float | None = None
    last_error: float | None = None


def forecast(entropy: Series, reward: Series, share: float = 0.15) -> Forecast:
    """Fits the first `share` of the points and predicts the reward of the others from their entropy.

    The paper fits the first 36 steps, 15% of the run, and forecasts the rest with an RMSE of about 1%.

    Args:
        entropy: as for `fit`.
        reward: as for `fit`.
        share: above 0 and below 1.

    Raises:
        ValueError: If the series differ in length or `share` is out of range.
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
    """A coefficient as a function of model size: intercept + slope · log(parameters).

    Attributes:
        slope: per factor e of non-embedding parameters; None if there is no fit.
        intercept: at one parameter; None if there is no fit.
        r2: share of variance explained; None if there is no fit or all coefficients are equal.
        message: "", or a sentence that says why there is no fit.
    """

    slope: float | None = None
    intercept: float | None = None
    r2: float | None = None
    message: str = ""

    def predict(self, parameters: ArrayLike) -> np.ndarray:
        """The coefficient at these sizes, float64, of the same shape.

        Raises:
            ValueError: If there is no fit; the message gives the reason.
        """
        if self.slope is None or self.intercept is None:
            raise ValueError(f"law: nothing to predict from: {self.message}")
        return self.intercept + self.slope * np.log(np.asarray(parameters, np.float64))


def fit_size(parameters: Sequence[float], coefficients: Series) -> SizeLaw:
    """Least squares of a law's a or b, one per model of a family, against the log of the model's size.

    Args:
        parameters: number of non-embedding parameters of each model.
        coefficients: a or b of each model; None if a model has no fit.

    Returns:
        The fit; with fewer than 3 models or only one size, a `SizeLaw` without figures whose `message` says so.

    Raises:
        ValueError: If the series differ in length.
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
