"""How good a policy is, from a few samples: unbiased estimates with 95% intervals, on NumPy arrays and numbers."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

_SUBSETS = 500  # a majority over k of n samples is averaged over all subsets, or over this many random ones


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The score interval of the share `right` / `n` (Wilson 1927); (0, 1) for n = 0.

    >>> low, high = wilson(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    if not n:
        return 0.0, 1.0
    p, centre = right / n, (right + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(n * p * (1 - p) + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_at_k(n: int, right: int, k: int) -> float:
    """The probability that one of k samples is right, unbiased from n of which `right` are: 1 − C(n−c, k)/C(n, k).

    Equation 1 of arXiv 2107.03374.

    >>> pass_at_k(4, 1, 2)
    0.5

    Raises:
        ValueError: Unless 1 ≤ k ≤ n and 0 ≤ right ≤ n.
    """
    if not (1 <= k <= n and 0 <= right <= n):
        raise ValueError(f"pass@{k} of {n} samples with {right} right: need 1 <= k <= n and 0 <= right <= n")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def maj_at_k(answers: Sequence[str | None], right: Sequence[bool], k: int, seed: int = 0) -> float:
    """The probability that the most frequent answer of k samples is right, from n ≥ k samples.

    The mean over all subsets of k, or over 500 random ones if there are more. Answers vote by their text; None (no
    answer found) has no vote; tied answers share the verdict equally, and no vote at all counts as wrong.

    Args:
        answers: n texts.
        right: n verdicts.
        k: 1 ≤ k ≤ n.
        seed: of the random subsets.

    Raises:
        ValueError: Unless 1 ≤ k ≤ n and every answer has a verdict.
    """
    n = len(answers)
    if not 1 <= k <= n or n != len(right):
        raise ValueError(f"maj@{k} of {n} answers with {len(right)} verdicts: need 1 <= k <= n and a verdict each")
    if math.comb(n, k) <= _SUBSETS:
        subsets = list(itertools.combinations(range(n), k))
    else:
        rng = np.random.default_rng(seed)
        subsets = [tuple(rng.choice(n, k, replace=False)) for _ in range(_SUBSETS)]
    return float(np.mean([_majority([answers[i] for i in s], [right[i] for i in s]) for s in subsets]))


def distinct_at_k(answers: Sequence[str | None], k: int) -> float:
    """The expected number of different answers among k samples, unbiased from n ≥ k of them.

    It is the sum over the answers of the probability that one of k samples has it, `pass_at_k` of its count. Answers
    are the same if their texts are; None (no answer found) is not counted.

    >>> distinct_at_k(["7", "7", "8", None], 2)  # 1 − C(2, 2)/C(4, 2) for 7, and 1/2 for 8
    1.3333333333333335

    Raises:
        ValueError: Unless 1 ≤ k ≤ n.
    """
    return math.fsum(pass_at_k(len(answers), count, k) for count in Counter(a for a in answers if a).values())


def _majority(answers: Sequence[str | None], right: Sequence[bool]) -> float:
    """The verdict of the most frequent answer."""
    votes: dict[str, list[bool]] = {}
    for answer, verdict in zip(answers, right, strict=True):
        if answer is not None:
            votes.setdefault(answer, []).append(verdict)
    most = max(map(len, votes.values()), default=0)
    return float(np.mean([np.mean(v) for v in votes.values() if len(v) == most])) if votes else 0.0


def bootstrap(
    total: ArrayLike, count: ArrayLike | None = None, seed: int = 0, draws: int = 2000
) -> tuple[float, float, float]:
    """(Σ total / Σ count, low, high): the percentile bootstrap over problems.

    A problem's responses are drawn together, because they are not independent.

    Args:
        total: [problems], the sum of a problem's values; NaN problems are left out.
        count: [problems], the number of a problem's values; None: one each.
        seed: of the resampling.
        draws: resamples.

    Returns:
        NaN, NaN, NaN if nothing was counted.
    """
    totals = np.asarray(total, float)
    counts = np.ones(len(totals)) if count is None else np.asarray(count, float)
    kept = np.isfinite(totals) & (counts > 0)
    totals, counts = totals[kept], counts[kept]
    if not len(totals):
        return math.nan, math.nan, math.nan
    rows = np.random.default_rng(seed).integers(len(totals), size=(draws, len(totals)))
    means = totals[rows].sum(axis=1) / counts[rows].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(totals.sum() / counts.sum()), float(low), float(high)
