"""Token transforms one after another, with the share of tokens that came through all masks."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from entropy_rl.objective.tokens import TokenGrads, TokenInfo
from entropy_rl.stats import masked
from entropy_rl.token_transforms.base import Masked, TokenMask, apply_factor, check_shapes


class ChainState(NamedTuple):
    """State of a chain.

    Attributes:
      kept: share of valid tokens that no mask stopped at the last update, f32[]; 1 before it and without masks.
      inner: the states of its transforms, in order; each mask's own share is its `kept`.
    """

    kept: Array
    inner: tuple[Any, ...]


def chain(*transforms: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """optax.chain for token transforms, that also counts the tokens kept by all masks together.

    The product of the masks' own shares is wrong where they overlap, and a zero gradient does not tell a
    masked token from one with A = 0: so the chain takes each mask's factor itself and joins them. What follows
    a mask is not masked: put `entropy_bonus` before `keep_top_entropy` to restrict it too.
    """

    def init(grads: TokenGrads) -> ChainState:
        return ChainState(jnp.float32(1), tuple(t.init(grads) for t in transforms))

    def update(grads, state, params=None, *, tokens: TokenInfo, key, **extra):
        check_shapes(grads, tokens)
        alive_BxT = tokens.mask > 0
        inner = []
        for transform, own in zip(transforms, state.inner, strict=True):
            if isinstance(transform, TokenMask):
                factor_BxT = transform.factor(tokens, key)
                grads, after = apply_factor(grads, factor_BxT), Masked(masked.mean(factor_BxT != 0, tokens.mask))
                alive_BxT &= factor_BxT != 0
            else:
                grads, after = transform.update(grads, own, params, tokens=tokens, key=key, **extra)
            inner.append(after)
        return grads, ChainState(masked.mean(alive_BxT, tokens.mask), tuple(inner))

    return optax.GradientTransformationExtraArgs(init, update)


def kept_fraction(state: Any) -> Array:
    """Share of the valid tokens that no mask of a chain stopped at the last update, f32[] (`tokens/kept_frac`).

    A token with zero gradient because A = 0 or because PPO clipped it counts as kept. 1 without masks; on an
    empty batch 0 after an update.

    Args:
      state: the state of `chain`, or of one transform.
    """
    return state.kept if isinstance(state, ChainState | Masked) else jnp.float32(1)
