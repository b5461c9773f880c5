"""The bonus has a gradient, and following it raises the entropy of a softmax policy."""

import jax
import jax.numpy as jnp

from entropy_rl import token_transforms as tt
from entropy_rl.entropy import entropy


def test_a_step_along_the_bonus_raises_entropy():
    logits = jnp.array([[[2.0, 0.0, -1.0], [1.0, 1.0, 0.0]]])
    h, pull_back = jax.vjp(entropy, logits)
    mask, zero = jnp.ones_like(h), jnp.zeros_like(h)
    tokens = tt.TokenInfo(logp=zero, old_logp=zero, advantage=zero, entropy=h, mask=mask, clipped=zero > 0)
    made = tt.entropy_bonus(coef=0.5)
    grads, _ = made.update(tt.TokenGrads(zero, zero), made.init(None), tokens=tokens, key=None)
    assert jnp.allclose(grads.entropy, -0.25)  # coef / N
    (step,) = pull_back(grads.entropy)
    assert float(entropy(logits - 0.1 * step).mean()) > float(h.mean())
