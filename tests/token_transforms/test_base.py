"""The tokens that every transform receives: detached, masked and filled in."""

import jax
import jax.numpy as jnp
import numpy as np
from reference.batches import random_tokens

from entropy_rl import token_transforms as tt
from entropy_rl.token_transforms import base


def test_prepared_tokens_are_detached_masked_and_filled_in():
    _, tokens = random_tokens(0, 6, 20)
    ready = base.prepare(tokens._replace(uid=None, weight=None, logp=jnp.where(tokens.mask > 0, tokens.logp, jnp.nan)))
    hidden = tokens.mask == 0
    assert not np.any(ready.logp[hidden]) and not np.any(ready.clipped[hidden])
    np.testing.assert_array_equal(ready.uid, np.arange(6))
    np.testing.assert_allclose(ready.weight.sum(), 1.0, rtol=1e-6)


def test_no_gradient_flows_through_a_transform():
    grads, tokens = random_tokens(0, 6, 20)
    for made in (tt.steer(), tt.entropy_shaped_advantage(), tt.reference_kl(coef=0.1)):

        def total(logp, entropy, made=made):
            read = tokens._replace(logp=logp, entropy=entropy)
            return made.update(grads, made.init(grads), tokens=read, key=None)[0].logp.sum()

        slopes = jax.grad(total, argnums=(0, 1))(tokens.logp, tokens.entropy)
        assert not np.any(slopes[0]) and not np.any(slopes[1])
