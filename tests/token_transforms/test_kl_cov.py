"""KL-Cov: which tokens it holds, that it adds nothing on-policy, and the configs that this makes useless."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.batches import random_tokens

from entropy_rl import token_transforms as tt


def added(tokens: tt.TokenInfo, **options: float | str) -> tt.TokenGrads:
    zero = tt.TokenGrads(jnp.zeros_like(tokens.mask), jnp.zeros_like(tokens.mask))
    made = tt.kl_cov(**options)
    return jax.jit(made.update)(zero, made.init(zero), tokens=tokens, key=None)[0]


@pytest.mark.parametrize("kl", ["abs", "k3"])
def test_it_pulls_exactly_the_top_share_back_to_the_old_policy(kl):
    _, tokens = random_tokens(0, 16, 30)
    tokens = tokens._replace(old_logp=tokens.logp - 0.5)
    out = added(tokens, fraction=0.1, kl=kl)
    assert np.count_nonzero(out.logp) == int(0.1 * tokens.mask.sum())
    assert np.all(np.asarray(out.logp) >= 0), "a token above its old probability is pushed down"
    assert not np.any(out.entropy)


@pytest.mark.parametrize("kl", ["abs", "k3"])
def test_on_policy_it_adds_exactly_nothing(kl):
    _, tokens = random_tokens(0, 16, 30)
    assert not np.any(added(tokens._replace(old_logp=tokens.logp), fraction=0.5, kl=kl).logp)


def test_a_batch_without_advantage_is_held_to_the_old_policy_as_in_the_official_code():
    """There, the tokens of `torch.topk` get the loss −A·r + β·|logp − old| whether or not any A differs from 0."""
    _, tokens = random_tokens(0, 16, 30)
    tokens = tokens._replace(advantage=jnp.zeros_like(tokens.mask))
    out, number = np.asarray(added(tokens, fraction=0.1, coef=0.5).logp), tokens.mask.sum()
    held = out != 0
    assert held.sum() == int(0.1 * number) and not held[np.asarray(tokens.mask) == 0].any()
    sign = np.sign(np.asarray(tokens.logp) - np.asarray(tokens.old_logp))
    np.testing.assert_allclose(out[held], (0.5 * sign / number)[held], rtol=1e-6)
    nothing = tokens._replace(mask=jnp.zeros_like(tokens.mask), weight=None)
    assert not np.any(added(nothing, fraction=0.1).logp)


def test_one_update_per_rollout_is_refused():
    spec = [("kl_cov", {})]
    with pytest.raises(ValueError, match=r"kl_cov is plain policy gradient with train.updates_per_rollout = 1"):
        tt.check_updates_per_rollout(spec, 1)
    with pytest.raises(ValueError, match=r"updates_per_rollout"):
        tt.check_updates_per_rollout([("matched_norm", {"inner": ("kl_cov", {})})], 1)
    tt.check_updates_per_rollout(spec, 2)
    tt.check_updates_per_rollout([("clip_cov", {})], 1)


def test_an_unknown_kl_is_an_error():
    with pytest.raises(ValueError, match=r"kl_cov.kl='k2' must be one of abs, k3"):
        tt.kl_cov(kl="k2")
