"""Statistics per micro-batch, as the official runs took them, instead of over the whole update."""

import jax
import jax.numpy as jnp
import optax

from entropy_rl.token_transforms.base import TokenGrads, TokenMask, mask, prepare, stateless


def micro_scope(transform: optax.GradientTransformationExtraArgs, n: int) -> optax.GradientTransformationExtraArgs:
    """`transform` applied to each of n equal blocks of consecutive rows by itself.

    Means, ranks and counts then come from a block; weights stay those of the whole batch. 8192 tokens at 2e-4
    pick 1 token whole and 8 in eight blocks (verl #7829). It exists only to reproduce such runs.

    Raises:
      ValueError: if the transform carries a state other than a mask's share; at the update, if the rows do
        not divide by n.
    """

    def split(tree):
        return jax.tree.map(lambda x: x.reshape((n, x.shape[0] // n, *x.shape[1:])), tree)

    def join(tree):
        return jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), tree)

    def blocks(tokens):
        rows = tokens.mask.shape[0]
        if rows % n:
            raise ValueError(f"algo.scope: 'microbatch' needs rows divisible by the {n} micro-batches, got {rows}")
        return split(prepare(tokens))

    if isinstance(transform, TokenMask):
        return mask(lambda tokens, key: join(jax.vmap(lambda t: transform.factor(t, key))(blocks(tokens))))

    state = transform.init(TokenGrads(jnp.zeros((1, 1)), jnp.zeros((1, 1))))
    if jax.tree.leaves(state):
        raise ValueError(
            "algo.scope: 'microbatch' is for transforms without state, an adaptive coefficient belongs "
            "to the whole update; use 'global'"
        )

    def edit(grads, tokens, key):
        one = lambda g, t: transform.update(g, state, tokens=t, key=key)[0]  # noqa: E731
        return join(jax.vmap(one)(split(grads), blocks(tokens)))

    return stateless(edit)
