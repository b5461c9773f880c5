"""Clips with a moving bound, over `policy_gradient`: with bounds that are held they are PPO's clip, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.batches import random_tokens

from entropy_rl import token_transforms as tt
from entropy_rl.objective import surrogates


def gradient(objective: surrogates.Objective, tokens: tt.TokenInfo, *specs: tuple) -> jax.Array:
    _, grads, clipped = surrogates.token_gradient(objective, tokens)
    made = tt.build(specs)
    out, _ = made.update(grads, made.init(grads), tokens=tokens._replace(clipped=clipped), key=None)
    return out.logp


HELD = [
    (("bapo", {"low": 0.8, "low_most": 0.8, "high": 1.2, "high_most": 1.2}), (0.2, 0.2)),
    (("bapo", {"target": 0.0, "low": 0.7, "high": 1.3}), (0.3, 0.3)),
    (("adapo", {"factor": 1.0}), (0.2, 0.28)),
    (("adapo", {"target": 0.7, "initial": 0.5, "least": 0.5, "most": 0.5, "low": 0.4}), (0.4, 0.5)),
]


@pytest.mark.parametrize(("spec", "clip"), HELD)
@pytest.mark.parametrize("seed", range(3))
def test_a_bound_that_is_held_is_the_clip_of_ppo(spec, clip, seed):
    _, tokens = random_tokens(seed)
    got = gradient(surrogates.policy_gradient(), tokens, spec)
    expected = gradient(surrogates.ppo_clip(*clip), tokens)
    assert 0 < np.sum(expected == 0) - np.sum(expected[tokens.mask == 0] == 0) < tokens.mask.sum(), "some are clipped"
    np.testing.assert_array_equal(got, expected)


def test_bapo_opens_the_upper_bound_only_if_the_positive_tokens_weigh_too_little():
    """One token with A > 0 and r = 1.9, many with A < 0 and r = 1: it pushes only if it is needed."""
    ratio = jnp.array([[1.9, 1.0, 1.0, 1.0, 1.0]])
    advantage = jnp.array([[1.0, -1.0, -1.0, -1.0, -1.0]])
    ones = jnp.ones((1, 5))
    tokens = tt.TokenInfo(jnp.log(ratio) - 2, -2 * ones, advantage, ones, ones, ones < 0)
    grads = tt.TokenGrads(ones, ones)
    for target, pushes in ((0.3, False), (0.46, False), (0.47, True), (9.0, True)):  # 1.2 / 4 = 0.3, 1.85 / 4 = 0.4625
        made = tt.bapo(target=target)
        out, state = made.update(grads, made.init(grads), tokens=tokens, key=None)
        assert out.logp.tolist() == [[float(pushes), 1, 1, 1, 1]], target
        assert float(state.kept) == pytest.approx(1.0 if pushes else 0.8)


def test_the_upper_bound_follows_the_entropy_once_per_rollout():
    """Two updates per rollout; the entropy of the second is not looked at, and that of the first is the target."""
    made = tt.build([("adapo", {"initial": 0.4, "factor": 2.0, "least": 0.1, "most": 1.0})])
    update = jax.jit(made.update)
    grads, tokens = random_tokens(0, 4, 10)
    state, highs = made.init(grads), []
    for i, entropy in enumerate([0.5, 0.1, 0.4, 9.0, 0.4, 9.0, 0.6, 0.1, 0.6, 0.1, 0.6, 0.1, 0.6, 0.1]):
        batch = tokens._replace(entropy=jnp.full_like(tokens.entropy, entropy))
        _, state = update(grads, state, tokens=batch, key=None, on_policy=i % 2 == 0)
        highs.append(float(state.inner[0].high))
        assert float(state.inner[0].target) == 0.5
    np.testing.assert_allclose(highs, np.repeat([0.4, 0.8, 1.0, 0.5, 0.25, 0.125, 0.1], 2), rtol=1e-6)


def test_the_moved_bound_is_the_one_that_clips():
    _, tokens = random_tokens(0)
    got = gradient(surrogates.policy_gradient(), tokens, ("adapo", {"target": 99.0, "initial": 0.5, "factor": 1.5}))
    np.testing.assert_array_equal(got, gradient(surrogates.ppo_clip(0.2, 0.75), tokens))


def test_an_empty_batch_moves_no_bound():
    grads, tokens = random_tokens(0, 4, 10)
    made = tt.adapo(initial=0.3)
    _, state = made.update(grads, made.init(grads), tokens=tokens._replace(mask=0 * tokens.mask), key=None)
    assert float(state.high) == pytest.approx(0.3) and float(state.target) < 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bapo", {"low_most": 0.5}, r"bapo\.low_most=0\.5 is below low=0\.6"),
        ("bapo", {"high": 2.5}, r"bapo\.high_most=2\.0 is below high=2\.5"),
        ("bapo", {"high_step": 0.0}, r"bapo\.high_step=0\.0 must be above 0"),
        ("adapo", {"initial": 1.5}, r"adapo\.initial=1\.5 must be from least=0\.1 to most=1\.0"),
        ("adapo", {"factor": 0.5}, r"adapo\.factor=0\.5 must be 1 or above"),
    ],
)
def test_bounds_that_no_clip_can_have(name, options, message):
    with pytest.raises(ValueError, match=message):
        tt.build([(name, options)])
