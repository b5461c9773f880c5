"""STAPO and RSI-S: which tokens they stop, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl import token_transforms as tt


def kept(made: tt.TokenMask, logp: list[float], entropy: list[float], advantage: list[float]) -> list[float]:
    """The factor of each token of one response."""
    logp, entropy, advantage = (jnp.array([x]) for x in (logp, entropy, advantage))
    mask = jnp.ones_like(logp)
    tokens = tt.TokenInfo(logp, logp, advantage, entropy, mask, mask == 0)
    return made.factor(tokens, None)[0].tolist()


def test_stapo_stops_a_token_only_if_all_three_conditions_hold():
    """Of five tokens, the 80% quantile of the entropy is between the fourth and the fifth."""
    rare, usual = np.log(0.001), np.log(0.5)
    logp, entropy = [rare, usual, rare, rare, rare], [0.1, 0.2, 0.3, 0.4, 5.0]
    assert kept(tt.stapo(), logp, entropy, [1.0] * 5) == [0.0, 2.5, 0.0, 0.0, 2.5]
    assert kept(tt.stapo(), logp, entropy, [1.0, 1.0, -1.0, 0.0, 1.0]) == [0.0] + [1.25] * 4
    assert kept(tt.stapo(quantile=0.25), logp, entropy, [1.0] * 5) == [0.0] + [1.25] * 4


def test_stapo_leaves_the_token_at_the_threshold_itself():
    exact = [float(jnp.exp(jnp.float32(-1.0)))] * 2
    assert kept(tt.stapo(exact[0], quantile=1.0), [-1.0, -1.1], [0.1, 0.2], [1.0, 1.0]) == [1.0, 1.0]
    assert kept(tt.stapo(exact[0], quantile=1.0), [-1.1, -1.0], [0.1, 0.2], [1.0, 1.0]) == [0.0, 2.0]


def test_rsi_keeps_the_closed_interval_of_surprisal_over_entropy():
    logp, entropy = [-0.25, -0.5, -1.0, -2.0, -2.5, 0.0], [1.0, 1.0, 2.0, 1.0, 1.0, 0.0]
    made = tt.rsi(low=0.5, high=2.0, normalizer="all")
    assert kept(made, logp, entropy, [1.0] * 6) == [0.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    assert kept(tt.rsi(low=0.5, high=2.0), logp, entropy, [1.0] * 6) == [0.0, 1.5, 1.5, 1.5, 0.0, 1.5]


@pytest.mark.parametrize(
    ("factory", "options", "match"),
    [
        (tt.rsi, {"low": 3.0}, r"algo\.transforms\.rsi\.low=3\.0 must be below high=3\.0"),
        (tt.rsi, {"high": 0.0}, "high=0.0 must be above 0"),
        (tt.stapo, {"probability": 1.5}, "probability=1.5 must be from 0 to 1"),
        (tt.low_probability_reweighting, {"alpha": -0.1}, "alpha=-0.1 must be from 0 to 1"),
        (tt.clip_cov, {"pick": "lowest"}, "pick='lowest' must be one of random, highest"),
    ],
)
def test_an_option_out_of_range_is_an_error(factory, options, match):
    with pytest.raises(ValueError, match=match):
        factory(**options)
