"""What n seeds say about a method: mean, interquartile mean, paired differences, and the gain that n seeds could show.

Definitions of rliable (arXiv 2108.13264) for one task. Plain NumPy in float64; n is the number of seeds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

DRAWS = 10_000  # resamples of a bootstrap
LEVEL = 0.95  # of every interval
POWER = 0.8  # of `detectable`
_QUANTILES = 2000


class Estimate(NamedTuple):
    """An estimate with its 95% interval.

    Attributes:
        value: NaN if there was nothing to estimate from.
        low: NaN if one value alone says nothing about its spread.
        high: as `low`.
    """

    value: float
    low: float
    high: float


NOTHING = Estimate(np.nan, np.nan, np.nan)


def mean(values: ArrayLike, seed: int = 0) -> Estimate:
    """The mean over seeds, with the percentile bootstrap's interval.

    Args:
        values: [n], one per seed; NaN is left out.
        seed: of the resampling.

    >>> mean([1.0, 2.0, 3.0]).value
    2.0
    """
    return _bootstrapped(values, np.mean, seed)


def iqm(values: ArrayLike, seed: int = 0) -> Estimate:
    """The interquartile mean, the mean without the lowest and the highest ⌊n/4⌋ values, with the bootstrap's interval.

    Args:
        values: as for `mean`.
        seed: as for `mean`.

    >>> iqm([0.0, 2.0, 4.0, 100.0]).value
    3.0
    """

    def trimmed(x: np.ndarray, axis: int = -1) -> np.ndarray:
        return stats.trim_mean(x, 0.25, axis=axis)

    return _bootstrapped(values, trimmed, seed)


def difference(values: ArrayLike, base: ArrayLike) -> Estimate:
    """The mean of values − base, paired by seed, with Student's interval (n − 1 degrees of freedom).

    Student's, because a bootstrap over ten seeds or fewer gives intervals that are too narrow.

    Args:
        values: [n].
        base: [n], of the same seeds; a pair with a NaN is left out.

    Raises:
        ValueError: If the two differ in length.
    """
    gains = _pairs(values, base)
    if not gains.size:
        return NOTHING
    centre = float(gains.mean())
    if gains.size < 2:
        return Estimate(centre, np.nan, np.nan)
    half = float(student(gains.size) * gains.std(ddof=1) / np.sqrt(gains.size))
    return Estimate(centre, centre - half, centre + half)


def ratio_of_means(values: ArrayLike, base: ArrayLike, seed: int = 0) -> Estimate:
    """mean(values) / mean(base), paired by seed, with the percentile bootstrap's interval over seeds.

    Args:
        values: [n].
        base: [n], of the same seeds; a pair with a NaN is left out.
        seed: of the resampling.

    Returns:
        An interval without ends if fewer than two pairs are left.

    Raises:
        ValueError: The two differ in length.
    """
    _pairs(values, base)
    pairs = np.stack([np.asarray(values, np.float64), np.asarray(base, np.float64)])
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    if not pairs.size:
        return NOTHING
    value = float(pairs[0].mean() / pairs[1].mean())
    if pairs.shape[1] < 2:
        return Estimate(value, np.nan, np.nan)
    rows = np.random.default_rng(seed).integers(pairs.shape[1], size=(DRAWS, pairs.shape[1]))
    top, bottom = pairs[:, rows].mean(axis=2)
    return Estimate(value, *_interval(top / bottom))


def improvement(values: ArrayLike, base: ArrayLike, seed: int = 0) -> Estimate:
    """P(X > Y) + P(X = Y) / 2 for a random seed of each, with the bootstrap's interval.

    Args:
        values: [n] of the method, X; NaN is left out.
        base: [m] of the other method, Y.
        seed: of the resampling.

    >>> improvement([2.0, 3.0], [1.0, 2.0]).value
    0.875
    """
    x, y = _finite(values), _finite(base)
    if not x.size or not y.size:
        return NOTHING
    wins = (x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])
    if min(x.size, y.size) < 2:
        return Estimate(float(wins.mean()), np.nan, np.nan)
    rng = np.random.default_rng(seed)
    rows, columns = (rng.integers(n, size=(DRAWS, n)) for n in (x.size, y.size))
    drawn = np.array([wins[np.ix_(r, c)].mean() for r, c in zip(rows, columns, strict=True)])
    return Estimate(float(wins.mean()), *_interval(drawn))


def detectable(values: ArrayLike, base: ArrayLike) -> float:
    """The smallest true mean difference that a paired t-test on these n seeds finds with a power of 80%.

    Two-sided, at 5%, for normal differences with the deviation that these pairs have. A measured difference well below
    it cannot be told from none.

    Args:
        values: [n].
        base: [n], of the same seeds.

    Returns:
        NaN with fewer than two pairs.

    Raises:
        ValueError: If the two differ in length.
    """
    gains = _pairs(values, base)
    n = gains.size
    if n < 2:
        return np.nan
    deviation = gains.std(ddof=1)
    bar = student(n)
    # the sample's deviation over the true one, at equally likely quantiles; SciPy's noncentral t fails in its tails
    ratio = np.sqrt(stats.chi2.ppf((np.arange(_QUANTILES) + 0.5) / _QUANTILES, n - 1) / (n - 1))

    def power(effect: float) -> float:
        """Of an effect in units of the mean's standard error."""
        return float(np.mean(stats.norm.sf(bar * ratio - effect) + stats.norm.cdf(-bar * ratio - effect)))

    in_errors = optimize.brentq(lambda effect: power(effect) - POWER, 0.0, 10 * bar)
    return float(in_errors * deviation / np.sqrt(n))


def student(n: int) -> float:
    """The half width of the mean's interval, in standard errors, for n ≥ 2 values: Student's t with n − 1 degrees."""
    return float(stats.t.ppf(0.5 + LEVEL / 2, n - 1))


def _finite(values: ArrayLike) -> np.ndarray:
    x = np.asarray(values, np.float64).ravel()
    return x[np.isfinite(x)]


def _pairs(values: ArrayLike, base: ArrayLike) -> np.ndarray:
    x, y = np.asarray(values, np.float64), np.asarray(base, np.float64)
    if x.shape != y.shape:
        raise ValueError(f"pairs of seeds: {x.size} values of one method, {y.size} of the other")
    return _finite(x - y)


def _bootstrapped(values: ArrayLike, statistic: Callable[..., Any], seed: int) -> Estimate:
    x = _finite(values)
    if not x.size:
        return NOTHING
    if x.size < 2:
        return Estimate(float(x[0]), np.nan, np.nan)
    rows = np.random.default_rng(seed).integers(x.size, size=(DRAWS, x.size))
    return Estimate(float(statistic(x, axis=0)), *_interval(statistic(x[rows], axis=1)))


def _interval(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(drawn, (0.5 - LEVEL / 2, 0.5 + LEVEL / 2))
    return float(low), float(high)
