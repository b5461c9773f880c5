"""The transforms with an adaptive coefficient: how it moves over updates, and that it is part of the state."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference.batches import random_tokens

from entropy_rl import token_transforms as tt
from entropy_rl.objective import surrogates


def over_updates(
    factory: Callable[..., optax.GradientTransformationExtraArgs], entropies: list[float], **options: float
) -> tuple[tt.TokenGrads, tt.TokenInfo, list[tuple[float, tt.TokenGrads]]]:
    """The gradients and tokens; and after each update on a batch of that entropy, the coefficient and the gradients."""
    made = factory(**options)
    update = jax.jit(made.update)
    grads, tokens = random_tokens(0, 4, 10)
    state, seen = made.init(grads), []
    for entropy in entropies:
        batch = tokens._replace(entropy=jnp.full_like(tokens.entropy, entropy))
        out, state = update(grads, state, tokens=batch, key=None)
        seen.append((float(state[0]), out))
    return grads, tokens, seen


def test_the_bonus_climbs_below_the_target_and_falls_above():
    grads, _, seen = over_updates(
        tt.adaptive_entropy_bonus, [0.1, 0.1, 0.1, 0.5, 0.5, 0.5, 0.5], target=0.2, step=1e-3, max_coef=2e-3
    )
    np.testing.assert_allclose([c for c, _ in seen], [1e-3, 2e-3, 2e-3, 1e-3, 0, 0, 0], atol=1e-9)
    used = [float(jnp.sum(grads.entropy - out.entropy)) for _, out in seen]
    np.testing.assert_allclose(used, [0, 1e-3, 2e-3, 0, 0, 0, 0], atol=1e-6)  # above the target it is off immediately


def test_the_bonus_is_the_same_in_all_updates_of_a_rollout_and_moves_once():
    """Three updates per rollout; the entropy of the later two is not looked at."""
    made = tt.build([("adaptive_entropy_bonus", {"target": 0.2, "step": 1e-3, "initial": 2e-3})])
    update = jax.jit(made.update)
    grads, tokens = random_tokens(0, 4, 10)
    state, used, coefs = made.init(grads), [], []
    for i, entropy in enumerate([0.1, 0.9, 0.9, 0.3, 0.1, 0.1, 0.1]):
        batch = tokens._replace(entropy=jnp.full_like(tokens.entropy, entropy))
        out, state = update(grads, state, tokens=batch, key=None, on_policy=i % 3 == 0)
        used.append(float(jnp.sum(grads.entropy - out.entropy)))
        coefs.append(float(state.inner[0].coef))
    np.testing.assert_allclose(used, [2e-3] * 3 + [0.0] * 3 + [2e-3], atol=1e-6)
    np.testing.assert_allclose(coefs, [3e-3] * 3 + [2e-3] * 3 + [3e-3], atol=1e-9)


def test_the_weight_of_positive_tokens_follows_the_entropy():
    grads, tokens, seen = over_updates(tt.positive_reweighting, [0.5, 0.5, 0.1, 0.1, 0.1], target=0.2, step=0.25)
    np.testing.assert_allclose([c for c, _ in seen], [0.25, 0.5, 0.25, 0.0, 0.0])
    positive = (tokens.advantage > 0) & (tokens.mask > 0)
    assert positive.any()
    for weight, (_, out) in zip([0.0, 0.25, 0.5, 0.25, 0.0], seen, strict=True):
        np.testing.assert_allclose(out.logp, jnp.where(positive, weight * grads.logp, grads.logp), rtol=1e-6)


def test_the_controller_sums_the_errors_and_is_limited():
    """arXiv 2511.15248: α = K_p (H − target) + K_i Σ (H − target), the sum over the updates before, within ±1."""
    options = {"target": 0.5, "proportional": 0.5, "integral": 0.25, "bound": 0.3}
    grads, tokens, seen = over_updates(tt.entropic, [0.3, 0.3, 0.9, 9.0, 0.5], **options)
    np.testing.assert_allclose([e for e, _ in seen], [-0.2, -0.4, 0.0, 8.5, 8.5], atol=1e-6)
    alphas = [-0.1, -0.1 - 0.05, 0.2 - 0.1, 1.0, 1.0]
    sure = (tokens.mask > 0) & (jnp.exp(tokens.logp) > 0.3)
    ratio, positive = jnp.exp(tokens.logp - tokens.old_logp), tokens.advantage > 0
    assert np.any(sure & positive) and np.any(sure & ~positive & (tokens.advantage < 0)) and np.any(~sure)
    for alpha, (_, out) in zip(alphas, seen, strict=True):
        added = -alpha * jnp.abs(tokens.advantage) * ratio * sure / sure.sum()
        np.testing.assert_allclose(out.logp - grads.logp, added, atol=1e-6)


def test_with_all_tokens_as_its_normaliser_the_controller_weights_by_one_plus_and_minus_alpha():
    _, tokens = random_tokens(1)
    tokens = tokens._replace(entropy=jnp.full_like(tokens.entropy, 0.4))
    _, grads, _ = surrogates.token_gradient(surrogates.policy_gradient(), tokens)
    made = tt.entropic(target=0.7, bound=0.3, normalizer="all")
    out, state = made.update(grads, made.init(grads), tokens=tokens, key=None)
    assert float(state.used) == pytest.approx(-0.3)
    sure = jnp.exp(tokens.logp) > 0.3
    weight = 1 + jnp.where(sure, -0.3, 0.0) * jnp.sign(tokens.advantage)
    np.testing.assert_allclose(out.logp, grads.logp * weight, rtol=1e-5, atol=1e-9)


def test_a_controller_without_gains_does_nothing():
    grads, tokens = random_tokens(1)
    made = tt.entropic(proportional=0.0, integral=0.0, bound=0.3)
    out, _ = made.update(grads, made.init(grads), tokens=tokens, key=None)
    jax.tree.map(np.testing.assert_array_equal, out, grads)


def test_an_empty_batch_adds_no_error():
    grads, tokens = random_tokens(1)
    made = tt.entropic()
    _, state = made.update(grads, made.init(grads), tokens=tokens, key=None)
    _, after = made.update(grads, state, tokens=tokens._replace(mask=0 * tokens.mask), key=None)
    assert float(state.error) != 0
    jax.tree.map(np.testing.assert_array_equal, after, state)


@pytest.mark.parametrize("factory", [tt.adaptive_entropy_bonus, tt.positive_reweighting])
def test_an_empty_batch_moves_nothing(factory):
    made = factory(initial=0.003)
    grads, tokens = random_tokens(0, 4, 10)
    _, state = made.update(grads, made.init(grads), tokens=tokens._replace(mask=0 * tokens.mask), key=None)
    assert float(state[0]) == pytest.approx(0.003)
