"""The law: its fit, its intervals in simulation, its forecast, and the messages if there is no fit."""

import numpy as np
import pytest

from entropy_rl import law

H = np.linspace(1.2, 0.1, 30)


def rewards(
    rng: np.random.Generator, noise: float, entropy: np.ndarray = H, a: float = 0.2, b: float = 0.8
) -> np.ndarray:
    return b - a * np.exp(entropy) + noise * rng.normal(size=entropy.size)


def test_an_exact_law_is_found_exactly():
    found = law.fit(H.tolist(), rewards(np.random.default_rng(0), 0.0).tolist())
    assert (found.a, found.b, found.ceiling) == pytest.approx((0.2, 0.8, 0.6))
    assert found.r2 == pytest.approx(1.0) and found.rmse == pytest.approx(0.0, abs=1e-12)
    assert found.n == 30 and found.message == ""
    np.testing.assert_allclose(found.predict([0.0, 1.0]), [0.6, 0.8 - 0.2 * np.e])


def test_r2_and_rmse_measure_the_noise():
    y = rewards(np.random.default_rng(0), 0.02)
    found = law.fit(H.tolist(), y.tolist())
    residual = y - found.predict(H)
    assert found.rmse == pytest.approx(np.sqrt(np.mean(residual**2)))
    assert found.r2 == pytest.approx(1 - residual.var() / y.var())


def test_the_intervals_cover_at_their_level():
    rng, hits = np.random.default_rng(1), np.zeros(3)
    for _ in range(2000):
        found = law.fit(H[::3].tolist(), rewards(rng, 0.03, H[::3]).tolist())
        spans = (found.a_interval, 0.2), (found.b_interval, 0.8), (found.ceiling_interval, 0.6)
        hits += [low <= true <= high for (low, high), true in spans]
    assert np.all((hits / 2000 > 0.92) & (hits / 2000 < 0.98)), hits / 2000


def test_points_that_were_not_measured_are_left_out():
    y = rewards(np.random.default_rng(0), 0.0).tolist()
    found = law.fit([None, float("nan"), *H.tolist(), 0.5], [0.5, 0.5, *y, None])
    assert found.n == 30 and found.a == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("entropy", "reward", "sentence"),
    [
        ([], [], "too few points: 0, the law needs 5"),
        ([1.0, 0.5, 0.2, None, 0.1], [0.1, 0.2, 0.3, 0.4, 0.5], "too few points: 4, the law needs 5"),
        ([0.5] * 20, np.linspace(0, 1, 20).tolist(), "no spread: entropy moved by 0 nats"),
        (H.tolist(), [0.3] * 30, "no spread: the reward is the same at every point"),
    ],
)
def test_without_a_fit_there_is_a_message_and_no_number(entropy, reward, sentence):
    found = law.fit(entropy, reward)
    assert sentence in found.message
    assert (found.a, found.b, found.ceiling, found.r2, found.rmse, found.a_interval) == (None,) * 6
    with pytest.raises(ValueError, match=r"law: nothing to predict from: (too few|no spread)"):
        found.predict(0.5)


def test_series_of_different_lengths_are_an_error():
    with pytest.raises(ValueError, match=r"the series differ in length: 3, 2"):
        law.fit([1.0, 2.0, 3.0], [1.0, 2.0])


def test_the_beginning_forecasts_the_rest():
    rng = np.random.default_rng(0)
    y = rewards(rng, 0.005)
    ahead = law.forecast(H.tolist(), y.tolist(), share=0.3)
    assert ahead.law.n == 9 and ahead.predicted.size == 21
    assert ahead.rmse == pytest.approx(np.sqrt(np.mean((ahead.predicted - y[9:]) ** 2)))
    assert ahead.last_error == pytest.approx(ahead.predicted[-1] - y[-1])
    assert ahead.rmse < 0.02
    none = law.forecast(H.tolist(), y.tolist(), share=0.1)
    assert none.predicted is None and none.rmse is None and "too few points: 3" in none.law.message
    with pytest.raises(ValueError, match=r"share 1.5, must be between 0 and 1"):
        law.forecast(H.tolist(), y.tolist(), share=1.5)


def test_coefficients_against_size():
    sizes = np.array([5e8, 1.5e9, 7e9, 32e9])
    found = law.fit_size(sizes, (0.1 + 0.02 * np.log(sizes)).tolist())
    assert (found.slope, found.intercept, found.r2) == pytest.approx((0.02, 0.1, 1.0))
    np.testing.assert_allclose(found.predict(3e9), 0.1 + 0.02 * np.log(3e9))
    few = law.fit_size(sizes, [0.1, None, None, 0.2])
    assert few.slope is None and "3 models of different size are needed" in few.message
    with pytest.raises(ValueError, match=r"nothing to predict from"):
        few.predict(1e9)
