"""The statistics over seeds, against SciPy's own tests and by simulation."""

import numpy as np
import pytest
from scipy import stats

from entropy_rl.sweep import statistics

RNG = np.random.default_rng(7)
X, Y = RNG.normal(0.5, 0.1, 10), RNG.normal(0.4, 0.1, 10)


def test_the_interval_of_a_difference_is_that_of_the_paired_t_test():
    estimate = statistics.difference(X, Y)
    expected = stats.ttest_rel(X, Y).confidence_interval(0.95)
    assert estimate.value == pytest.approx(np.mean(X - Y))
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))


def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end():
    values = [-50.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 900.0]
    assert statistics.iqm(values).value == pytest.approx(3.5)
    moved = statistics.iqm([-9e9, *values[1:-1], 9e9])
    assert moved.value == pytest.approx(3.5)


def test_bootstrap_intervals_cover_the_truth_about_as_often_as_they_should():
    rng, hits = np.random.default_rng(0), 0
    for trial in range(200):
        estimate = statistics.mean(rng.normal(1.0, 1.0, 40), seed=trial)
        hits += estimate.low <= 1.0 <= estimate.high
    assert 178 <= hits <= 200  # 95% of 200 is 190; a little fewer is the bootstrap's known bias


def test_the_probability_of_improvement_is_the_mann_whitney_statistic():
    u = stats.mannwhitneyu(X, Y).statistic
    estimate = statistics.improvement(X, Y)
    assert estimate.value == pytest.approx(u / (X.size * Y.size))
    assert estimate.low < estimate.value < estimate.high
    assert statistics.improvement(X, X).value == pytest.approx(0.5)


def test_a_gain_of_the_detectable_size_is_found_in_four_of_five_trials():
    rng, n, found = np.random.default_rng(1), 10, 0
    known = rng.normal(0, 1, n)
    known = (known - known.mean()) / known.std(ddof=1)  # differences with a deviation of exactly 1
    gain = statistics.detectable(known, np.zeros(n))
    for _ in range(2000):
        found += stats.ttest_1samp(rng.normal(gain, 1.0, n), 0.0).pvalue < 0.05
    assert 0.77 < found / 2000 < 0.83


def test_more_seeds_detect_smaller_gains():
    few, many = statistics.detectable(X[:5], Y[:5] * 0), statistics.detectable(np.tile(X, 4), np.zeros(40))
    assert many < few


def test_one_seed_has_a_value_and_no_interval():
    for estimate in (statistics.mean([3.0]), statistics.iqm([3.0]), statistics.difference([3.0], [1.0])):
        assert np.isfinite(estimate.value) and np.isnan([estimate.low, estimate.high]).all()
    assert np.isnan(statistics.detectable([3.0], [1.0]))


def test_a_value_that_was_not_measured_is_left_out():
    assert statistics.mean([1.0, np.nan, 3.0]).value == pytest.approx(2.0)
    assert statistics.difference([1.0, np.nan, 3.0], [0.0, 0.0, np.nan]).value == pytest.approx(1.0)
    assert np.isnan(statistics.mean([np.nan]).value) and np.isnan(statistics.improvement([], [1.0]).value)


def test_pairs_of_different_length_are_refused():
    with pytest.raises(ValueError, match="3 values of one method, 2 of the other"):
        statistics.difference([1, 2, 3], [1, 2])
