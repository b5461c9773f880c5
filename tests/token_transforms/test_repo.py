"""REPO: how its coefficient follows the entropy, and that its forms are the changed advantage in the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.batches import random_tokens

from entropy_rl import token_transforms as tt
from entropy_rl.objective import surrogates

BELOW, ABOVE = 0.1, 0.3  # of the target, 0.2


def coefficients(entropies, updates=1, **options):
    """ζ after each rollout of that entropy; only the first of its updates has it."""
    made = tt.repo(**options)
    update = jax.jit(made.update)
    grads, tokens = random_tokens(0, 4, 10)
    state, seen = made.init(grads), []
    for entropy in entropies:
        for i in range(updates):
            batch = tokens._replace(entropy=jnp.full_like(tokens.entropy, entropy if i == 0 else 9.0))
            _, state = update(grads, state, tokens=batch, key=None, on_policy=i == 0)
        seen.append(float(state.coef))
    return seen, state


def test_the_coefficient_doubles_below_the_target_halves_above_and_changes_its_sign_at_the_least():
    entropies = [BELOW] * 3 + [0.2] + [ABOVE] * 7 + [BELOW] * 4
    seen, _ = coefficients(entropies, updates=2, target=0.2, initial=4e-4, least=1e-4, most=1e-3)
    rising, falling = [8e-4, 1e-3, 1e-3], [5e-4, 2.5e-4, 1.25e-4, -1e-4, -2e-4, -4e-4, -8e-4]
    back = [-4e-4, -2e-4, -1e-4, 1e-4]
    np.testing.assert_allclose(seen, [*rising, 1e-3, *falling, *back], rtol=1e-5)


def test_without_a_target_it_holds_the_entropy_of_the_first_rollout():
    seen, state = coefficients([0.5, 0.4, 0.6, 0.5], initial=4e-3)
    np.testing.assert_allclose(seen, [4e-3, 8e-3, 4e-3, 4e-3], rtol=1e-6)
    assert float(state.target) == pytest.approx(0.5)


@pytest.mark.parametrize("options", [{"initial": 0.0}, {"initial": 3e-3, "factor": 1.0}])
def test_a_coefficient_of_zero_and_a_factor_of_one_do_not_move(options):
    seen, _ = coefficients([BELOW, ABOVE, BELOW], target=0.2, **options)
    assert seen == [pytest.approx(options["initial"])] * 3


def test_an_empty_batch_moves_nothing():
    made, (grads, tokens) = tt.repo(initial=3e-3), random_tokens(0, 4, 10)
    _, state = made.update(grads, made.init(grads), tokens=tokens._replace(mask=0 * tokens.mask), key=None)
    assert (float(state.coef), float(state.target)) == (pytest.approx(3e-3), -1.0)


def test_subtracting_is_an_entropy_bonus_in_expectation():
    """Every token of a vocabulary, each with its probability as its weight: −ζ·∇H, with no gradient of H."""
    logits, zeta = jax.random.normal(jax.random.key(3), (1, 7)), 0.02

    def entropy(z):
        return -jnp.sum(jax.nn.softmax(z) * jax.nn.log_softmax(z))

    logp, zero, one = jax.nn.log_softmax(logits), jnp.zeros((1, 7)), jnp.ones((1, 7))
    tokens = tt.TokenInfo(logp, logp, zero, one * entropy(logits), one, zero > 0, weight=jnp.exp(logp))
    made = tt.repo(initial=zeta)
    out, _ = made.update(tt.TokenGrads(zero, zero), made.init(None), tokens=tokens, key=None)
    _, pull = jax.vjp(jax.nn.log_softmax, logits)
    np.testing.assert_allclose(pull(out.logp)[0], -zeta * jax.grad(entropy)(logits), atol=1e-8)


@pytest.mark.parametrize("objective", ["ppo_clip", "policy_gradient"])
def test_subtracting_is_the_changed_advantage_in_the_loss(objective):
    """With a ratio of 1 for PPO, since a clip looks at the sign of A, which subtracting may change."""
    _, tokens = random_tokens(2, 6, 20)
    if objective == "ppo_clip":
        tokens = tokens._replace(old_logp=tokens.logp)
    surrogate, made = surrogates.build(objective), tt.repo(initial=0.05)
    changed = tokens.advantage - 0.05 * (tokens.logp + tokens.entropy)
    _, grads, clipped = surrogates.token_gradient(surrogate, tokens)
    _, expected, _ = surrogates.token_gradient(surrogate, tokens._replace(advantage=changed))
    out, _ = made.update(grads, made.init(grads), tokens=tokens._replace(clipped=clipped), key=None)
    np.testing.assert_allclose(out.logp, expected.logp, rtol=1e-4, atol=1e-7)
    assert np.any(out.logp != grads.logp)


@pytest.mark.parametrize("objective", ["ppo_clip", "policy_gradient", "cispo", "ce_gppo", "gspo"])
def test_rescaling_is_the_changed_advantage_in_the_loss(objective):
    _, tokens = random_tokens(2, 6, 20)
    a, made = tokens.advantage, tt.repo("rescale", initial=0.3, most=1.0)
    changed = a * jnp.maximum(1 - jnp.sign(a) * 0.3 * tokens.logp, 0)
    surrogate = surrogates.build(objective)
    _, grads, clipped = surrogates.token_gradient(surrogate, tokens)
    _, expected, clipped_then = surrogates.token_gradient(surrogate, tokens._replace(advantage=changed))
    out, _ = made.update(grads, made.init(grads), tokens=tokens, key=None)
    np.testing.assert_allclose(out.logp, expected.logp, rtol=1e-5, atol=1e-8)
    stopped = (a < 0) & (0.3 * tokens.logp < -1) & (tokens.mask > 0)  # so unlikely that the punishment is gone
    assert stopped.any() and not np.any(out.logp[stopped]) and not np.any((clipped != clipped_then) & ~stopped)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"form": "divide"}, "form='divide' must be one of subtract, rescale"),
        ({"factor": 0.5}, "factor=0.5 must be 1 or above"),
        ({"least": 0.1}, r"algo\.transforms\.repo\.least=0\.1 must not be above most=0\.05"),
    ],
)
def test_an_option_out_of_range_is_an_error(options, match):
    with pytest.raises(ValueError, match=match):
        tt.repo(**options)
