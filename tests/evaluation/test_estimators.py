"""Estimates and intervals against closed forms and enumeration."""

import itertools
import math

import numpy as np
import pytest

from entropy_rl.evaluation.estimators import bootstrap, distinct_at_k, maj_at_k, pass_at_k, wilson


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        right = [i < c for i in range(n)]
        share = np.mean([any(s) for s in itertools.combinations(right, k)])
        assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-12)


def test_pass_at_k_is_unbiased():
    """Over the binomial number of right samples its mean is 1 − (1 − p)^k, exactly."""
    n, p = 12, 0.3
    for k in (1, 4, 12):
        mean = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1))
        assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_pass_at_k_holds_for_many_samples():
    assert pass_at_k(10**5, 1, 1) == pytest.approx(1e-5)
    assert pass_at_k(1000, 1, 999) == pytest.approx(0.999)
    for wrong in ((4, 2, 5), (4, 5, 2), (4, 2, 0)):
        with pytest.raises(ValueError, match=r"need 1 <= k <= n and 0 <= right <= n"):
            pass_at_k(*wrong)


def test_maj_at_k_by_hand():
    answers, right = ["7", "7", "8", None, "9"], [True, True, False, False, False]
    assert maj_at_k(answers, right, 5) == 1.0
    assert maj_at_k(answers, right, 1) == pytest.approx(0.4)  # the mean
    # Of the ten pairs: (7,7), two of 7 with None: right; four of 7 tied with another: half; three others: wrong.
    assert maj_at_k(answers, right, 2) == pytest.approx((3 + 4 * 0.5) / 10)
    assert maj_at_k([None, None], [False, False], 2) == 0.0
    assert maj_at_k(["8", "8", "7"], [False, False, True], 3) == 0.0
    with pytest.raises(ValueError, match=r"maj@3 of 2 answers"):
        maj_at_k(["1", "2"], [True, False], 3)


def test_maj_at_k_of_many_samples_is_near_its_closed_form():
    # Two answers, 24 right of 40: of 9 drawn, 5 or more right ones, hypergeometric.
    answers, right = ["7"] * 24 + ["8"] * 16, [True] * 24 + [False] * 16
    exact = sum(math.comb(24, i) * math.comb(16, 9 - i) for i in range(5, 10)) / math.comb(40, 9)
    assert maj_at_k(answers, right, 9) == pytest.approx(exact, abs=0.06)  # 500 subsets: σ = 0.02
    assert maj_at_k(answers, right, 9) == maj_at_k(answers, right, 9)
    assert maj_at_k(answers, right, 9) != maj_at_k(answers, right, 9, seed=1)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_distinct_at_k_is_the_mean_over_all_subsets(k):
    answers = ["7", "7", "8", None, "9", "7"]
    mean = np.mean([len(set(s) - {None}) for s in itertools.combinations(answers, k)])
    assert distinct_at_k(answers, k) == pytest.approx(mean, abs=1e-12)
    assert distinct_at_k([None, ""], 1) == 0.0


def test_wilson():
    assert wilson(41, 100) == pytest.approx((0.3187, 0.5079), abs=1e-4)
    assert wilson(0, 200)[0] == 0.0 and wilson(0, 200)[1] == pytest.approx(3.8416 / 203.8416, abs=1e-6)
    assert wilson(200, 200)[1] == pytest.approx(1.0)
    assert wilson(0, 0) == (0.0, 1.0)


def test_bootstrap_agrees_with_the_normal_interval():
    rng = np.random.default_rng(0)
    values = rng.normal(0.4, 0.5, 2000)
    mean, low, high = bootstrap(values, seed=1)
    half = 1.959964 * values.std() / math.sqrt(len(values))
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)


def test_bootstrap_draws_problems_not_responses():
    """Eight equal responses per problem are worth no more than one: the interval is that of the problems."""
    right = (np.random.default_rng(0).random(300) < 0.4).astype(float)
    alone, eight = bootstrap(right), bootstrap(8 * right, np.full(300, 8))
    assert eight == pytest.approx(alone)


def test_bootstrap_covers():
    rng, covered = np.random.default_rng(0), 0
    for seed in range(200):
        _, low, high = bootstrap((rng.random(150) < 0.3).astype(float), seed=seed, draws=500)
        covered += low <= 0.3 <= high
    assert 0.9 <= covered / 200 <= 0.99


def test_bootstrap_leaves_out_what_was_not_measured():
    assert bootstrap([1.0, math.nan, 0.0], draws=10)[0] == 0.5
    assert bootstrap([1.0, 5.0], [2, 0], draws=10) == (0.5, 0.5, 0.5)
    assert all(math.isnan(v) for v in bootstrap([math.nan]))
    assert all(math.isnan(v) for v in bootstrap([]))
