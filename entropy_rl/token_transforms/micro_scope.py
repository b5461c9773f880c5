"""Statistics per micro-batch, as in the official runs, instead of over the whole update."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from entropy_rl.objective.tokens import TokenGrads, TokenInfo, prepare
from entropy_rl.stats import blocks
from entropy_rl.token_transforms.base import TokenMask, mask, stateless


def micro_scope(
    transform: optax.GradientTransformationExtraArgs, n: int, group_size: int = 1
) -> optax.GradientTransformationExtraArgs:
    """Applies `transform` to each of the train step's n micro-batches separately.

    Means, ranks and counts are then taken over one micro-batch; weights remain those of the whole batch. With a share
    of 2e-4, 8192 tokens give 1 token as a whole and 8 in eight micro-batches (verl #7829). It exists only to reproduce
    such runs.

    Args:
        transform: stateless, or a mask.
        n: micro-batches per update.
        group_size: consecutive rows that belong to one prompt and stay together.

    Returns:
        A transform of the same kind: stateless, or a mask.

    Raises:
        ValueError: If the transform has a state other than a mask's share; at the update, if the rows do not make n
            blocks of whole groups.
    """

    def split(tree: Any) -> Any:
        return jax.tree.map(lambda x: blocks.split(x, n, x.shape[0] // group_size), tree)

    def join(tree: Any) -> Any:
        return jax.tree.map(lambda x: blocks.join(x, x.shape[0] * x.shape[1] // group_size), tree)

    def parts(tokens: TokenInfo) -> Any:
        rows = tokens.mask.shape[0]
        if rows % (n * group_size):
            raise ValueError(
                f"algo.scope: 'microbatch' needs rows divisible by the {n} micro-batches of groups of {group_size}, "
                f"got {rows}"
            )
        return split(prepare(tokens))

    if isinstance(transform, TokenMask):

        def factor(tokens: TokenInfo, key: Array) -> Any:
            return join(jax.vmap(lambda t: transform.factor(t, key))(parts(tokens)))

        return mask(factor)

    state = transform.init(TokenGrads(jnp.zeros((1, 1)), jnp.zeros((1, 1))))
    if jax.tree.leaves(state):
        raise ValueError(
            "algo.scope: 'microbatch' is for transforms without state, an adaptive coefficient belongs "
            "to the whole update; use 'global'"
        )

    def edit(grads: TokenGrads, tokens: TokenInfo, key: Array) -> Any:
        def edit_one(g: TokenGrads, t: TokenInfo) -> Any:
            return transform.update(g, state, tokens=t, key=key)[0]

        return join(jax.vmap(edit_one)(split(grads), parts(tokens)))

    return stateless(edit)
