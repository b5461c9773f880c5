"""Objectives against NumPy, their gradients against finite differences, and their normalisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from reference import batches
from reference import objectives as ref

from entropy_rl.objective import surrogates as objectives
from entropy_rl.objective.tokens import TokenInfo

CASES = [
    ("ppo_clip", {}),
    ("ppo_clip", {"low": 0.2, "high": 0.28}),
    ("ppo_clip", {"low": 0.2, "high": 0.28, "dual": 1.5}),
    ("ppo_clip", {"low": 1.0, "high": 1.0}),
    ("policy_gradient", {}),
    ("gspo", {}),
    ("gspo", {"low": 0.2, "high": 0.3}),
    ("cispo", {}),
    ("cispo", {"low": 0.3, "high": 0.5}),
    ("ce_gppo", {}),
    ("ce_gppo", {"low": 0.1, "high": 0.2, "beta_low": 0.75, "beta_high": 0.9}),
    ("sapo", {}),
    ("sapo", {"tau_positive": 2.0, "tau_negative": 0.5}),
    ("dppo", {}),
    ("dppo", {"low": 0.05, "high": 0.02, "cap": 1.1}),
]
IDS = [f"{name}-{i}" for i, (name, _) in enumerate(CASES)]
SMOOTH = (0, 1, 4, 6, 11, 12)  # the cases whose gradient is that of the loss: no weight of theirs is detached


def test_every_objective_has_a_case():
    assert {name for name, _ in CASES} == set(objectives.OBJECTIVES)


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_loss_gradient_and_clip_equal_numpy(name, options):
    gradient = jax.jit(lambda tokens: objectives.token_gradient(objectives.build((name, options)), tokens))
    weigh = jax.jit(objectives.token_weight, static_argnums=(1, 2))
    for seed in range(9):
        _, tokens = batches.random_tokens(seed, 6, 20, ties=seed % 2 == 1)
        weight = weigh(tokens.mask, objectives.AGGREGATIONS[seed % 3], 50)
        loss, grads, clipped = gradient(tokens._replace(weight=weight))
        tokens = jax.tree.map(np.asarray, tokens)
        loss_BxT, slope_BxT, clipped_BxT = getattr(ref, name)(tokens, **options)
        weight = np.asarray(weight)
        np.testing.assert_allclose(loss, (weight * loss_BxT).sum(), rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(grads.logp, weight * slope_BxT, rtol=2e-5, atol=1e-7)
        np.testing.assert_array_equal(clipped, clipped_BxT & (tokens.mask > 0))
        assert not np.any(grads.entropy)


@pytest.mark.parametrize(("name", "options"), [CASES[i] for i in SMOOTH], ids=[IDS[i] for i in SMOOTH])
def test_gradients_by_finite_differences(name, options):
    _, tokens = batches.random_tokens(1, 2, 3)
    moved = jnp.array([[0.1, -0.05, 0.6], [0.02, 0.7, -0.8]])
    tokens = tokens._replace(mask=jnp.ones((2, 3)), old_logp=tokens.logp - moved)
    f = objectives.build((name, options))
    if name == "gspo":  # its token form stops the gradient of the sequence's ratio; one token a response has none
        tokens = jax.tree.map(lambda x: x[:, :1], tokens._replace(uid=None, turn=None))
    check_grads(lambda logp: f(logp, tokens)[0].sum(), (tokens.logp,), order=1, modes=["rev"], rtol=2e-2, atol=1e-3)


def test_a_gspo_response_is_clipped_as_one():
    _, tokens = batches.random_tokens(1, 8, 20)
    _, _, clipped = objectives.token_gradient(objectives.gspo(0.01, 0.01), tokens)
    share = np.asarray(clipped.sum(1) / jnp.maximum(tokens.mask.sum(1), 1))
    assert set(share) <= {0.0, 1.0} and 0 < share.mean() < 1


def assert_same_bits(tokens: TokenInfo, one: objectives.Objective, other: objectives.Objective) -> None:
    got, expected = (objectives.token_gradient(f, tokens)[1].logp for f in (one, other))
    assert np.any(expected)
    np.testing.assert_array_equal(got, expected)


def test_the_gate_of_sapo_is_one_on_policy_and_without_a_temperature():
    _, tokens = batches.random_tokens(2, 6, 20)
    on_policy = tokens._replace(old_logp=tokens.logp)
    assert_same_bits(on_policy, objectives.sapo(2.0, 3.0), objectives.policy_gradient())
    got, expected = (
        objectives.token_gradient(f, tokens)[1].logp
        for f in (objectives.sapo(1e-3, 1e-3), objectives.policy_gradient())
    )
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    sharp, soft = (objectives.token_gradient(objectives.sapo(t, t), tokens)[1].logp for t in (4.0, 1.0))
    moved = (tokens.mask > 0) & (jnp.abs(tokens.logp - tokens.old_logp) > 0.1) & (tokens.advantage != 0)
    assert np.all(np.abs(sharp)[moved] < np.abs(soft)[moved])


def test_dppo_without_bounds_is_cispo():
    _, tokens = batches.random_tokens(2, 6, 20)
    assert_same_bits(tokens, objectives.dppo(1.0, 1.0), objectives.cispo(1.0, 19.0))


def test_dppo_bounds_the_probability_and_not_the_ratio():
    """arXiv 2602.04879: a rare token may grow 100-fold, a sure one not fall by 0.19; PPO's clip does the opposite."""
    p, old = jnp.array([[1e-3, 0.8, 0.3, 0.3]]), jnp.array([[1e-5, 0.99, 0.1, 0.1]])
    advantage = jnp.array([[1.0, -1.0, 1.0, -1.0]])
    ones = jnp.ones((1, 4))
    tokens = TokenInfo(jnp.log(p), jnp.log(old), advantage, ones, ones, ones < 0)
    _, _, dppo = objectives.token_gradient(objectives.dppo(), tokens)
    _, _, ppo = objectives.token_gradient(objectives.ppo_clip(), tokens)
    assert dppo.tolist() == [[False, True, True, False]]
    assert ppo.tolist() == [[True, False, True, False]]


@pytest.mark.parametrize("name", sorted(objectives.OBJECTIVES))
def test_it_is_finite_and_exact_at_the_edges(name):
    gradient = jax.jit(lambda tokens: objectives.token_gradient(objectives.build(name), tokens))
    _, tokens = batches.random_tokens(0, 6, 20)
    far = jnp.full((6, 20), -1e4)
    hidden = jnp.where(tokens.mask > 0, 0.0, jnp.nan)
    for batch in (
        tokens._replace(old_logp=far),
        tokens._replace(logp=far, old_logp=0 * far),
        tokens._replace(logp=tokens.logp + hidden, old_logp=tokens.old_logp + hidden),
    ):
        loss, grads, _ = gradient(batch)
        assert np.isfinite(loss) and np.all(np.isfinite(grads.logp))
        assert not np.any(np.where(batch.mask > 0, 0.0, grads.logp))
    for batch in (tokens._replace(mask=0 * tokens.mask), tokens._replace(advantage=0 * tokens.advantage)):
        loss, grads, clipped = gradient(batch)
        assert float(loss) == 0.0 and not np.any(grads.logp) and not np.any(clipped)


def test_the_correction_weights_the_loss_and_is_detached():
    _, tokens = batches.random_tokens(0, 6, 20)
    f, factor = objectives.ppo_clip(), jnp.full((6, 20), 2.0)
    loss, grads, _ = objectives.token_gradient(f, tokens)
    twice, doubled, _ = objectives.token_gradient(f, tokens, factor)
    np.testing.assert_allclose(twice, 2 * loss, rtol=1e-6)
    np.testing.assert_allclose(doubled.logp, 2 * grads.logp, rtol=1e-6)


def test_weights():
    mask = jnp.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    weights = {a: np.asarray(objectives.token_weight(mask, a, max_tokens=10)) for a in objectives.AGGREGATIONS}
    np.testing.assert_allclose(weights["token-mean"], np.asarray(mask) / 4)
    np.testing.assert_allclose(weights["sequence-mean-token-mean"], [[1 / 6] * 3, [1 / 2, 0, 0], [0] * 3])
    np.testing.assert_allclose(weights["sequence-mean-token-sum-norm"], np.asarray(mask) / 20)
    assert all(not np.any(objectives.token_weight(0 * mask, a, max_tokens=10)) for a in objectives.AGGREGATIONS)


def test_what_a_config_may_not_set():
    with pytest.raises(ValueError, match=r"algo.aggregation: got 'mean', choose one of token-mean"):
        objectives.token_weight(jnp.ones((1, 1)), "mean")
    with pytest.raises(ValueError, match=r"needs max_tokens, the longest response in tokens, got None"):
        objectives.token_weight(jnp.ones((1, 1)), "sequence-mean-token-sum-norm")
    with pytest.raises(ValueError, match=r"algo.objective: unknown name 'ppo'"):
        objectives.build("ppo")
    with pytest.raises(ValueError, match=r"algo.objective: ppo_clip has no option 'eps'; legal options: low, high"):
        objectives.build(("ppo_clip", {"eps": 0.2}))
    with pytest.raises(ValueError, match=r"algo.objective.low=1.5 must be from 0 to 1"):
        objectives.build(("ppo_clip", {"low": 1.5}))
    with pytest.raises(ValueError, match=r"algo.objective.dual=1.0 must be above 1"):
        objectives.build(("ppo_clip", {"dual": 1.0}))
