"""Statistics per micro-batch, as the official runs took them, instead of over the whole update."""

import jax
import jax.numpy as jnp
import optax

from entropy_rl.objective.tokens import TokenGrads, prepare
from entropy_rl.stats import blocks
from entropy_rl.token_transforms.base import TokenMask, mask, stateless


def micro_scope(
    transform: optax.GradientTransformationExtraArgs, n: int, group_size: int = 1
) -> optax.GradientTransformationExtraArgs:
    """`transform` applied to each of the train step's n micro-batches by itself.

    Args:
      transform: stateless, or a mask.
      n: micro-batches an update.
      group_size: consecutive rows that belong to one prompt and stay together.

    Means, ranks and counts then come from a block; weights stay those of the whole batch. 8192 tokens at 2e-4
    pick 1 token whole and 8 in eight blocks (verl #7829). It exists only to reproduce such runs.

    Raises:
      ValueError: if the transform carries a state other than a mask's share; at the update, if the rows do
        not make n blocks of whole groups.
    """

    def split(tree):
        return jax.tree.map(lambda x: blocks.split(x, n, x.shape[0] // group_size), tree)

    def join(tree):
        return jax.tree.map(lambda x: blocks.join(x, x.shape[0] * x.shape[1] // group_size), tree)

    def parts(tokens):
        rows = tokens.mask.shape[0]
        if rows % (n * group_size):
            raise ValueError(
                f"algo.scope: 'microbatch' needs rows divisible by the {n} micro-batches of groups of {group_size}, "
                f"got {rows}"
            )
        return split(prepare(tokens))

    if isinstance(transform, TokenMask):
        return mask(lambda tokens, key: join(jax.vmap(lambda t: transform.factor(t, key))(parts(tokens))))

    state = transform.init(TokenGrads(jnp.zeros((1, 1)), jnp.zeros((1, 1))))
    if jax.tree.leaves(state):
        raise ValueError(
            "algo.scope: 'microbatch' is for transforms without state, an adaptive coefficient belongs "
            "to the whole update; use 'global'"
        )

    def edit(grads, tokens, key):
        one = lambda g, t: transform.update(g, state, tokens=t, key=key)[0]  # noqa: E731
        return join(jax.vmap(one)(split(grads), parts(tokens)))

    return stateless(edit)
