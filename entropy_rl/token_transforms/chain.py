"""Token transforms one after another, with the share of the tokens that all masks kept."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from entropy_rl.objective.tokens import TokenGrads, TokenInfo
from entropy_rl.stats import masked
from entropy_rl.token_transforms.base import Masked, TokenMask, apply_factor, check_shapes
from entropy_rl.token_transforms.schedule import Scheduled


class ChainState(NamedTuple):
    """State of a chain.

    Attributes:
        kept: share of the valid tokens that no mask stopped at the last update, f32[]; 1 before the first update, and
            without masks.
        inner: the states of its transforms, in order; each mask's own share is its `kept`.
    """

    kept: Array
    inner: tuple[Any, ...]


def chain(*transforms: optax.GradientTransformationExtraArgs | Scheduled) -> optax.GradientTransformationExtraArgs:
    """optax.chain for token transforms, which also counts the tokens that all masks together keep.

    The masks' own shares cannot be multiplied, because masks may overlap; and a zero gradient does not distinguish a
    masked token from one with A = 0. So the chain asks each mask for its factor and combines them. A mask does not act
    on the transforms that follow it: to restrict `entropy_bonus` too, put it before `keep_top_entropy`. `update` takes
    `step`, the run's steps done, for the transforms whose options move with it.
    """

    def at(step: Array | int) -> list[optax.GradientTransformationExtraArgs]:
        return [t.at(step) if isinstance(t, Scheduled) else t for t in transforms]

    def init(grads: TokenGrads) -> ChainState:
        return ChainState(jnp.float32(1), tuple(t.init(grads) for t in at(0)))

    def update(
        grads: TokenGrads,
        state: ChainState,
        params: Any = None,
        *,
        tokens: TokenInfo,
        key: Array,
        step: Array | int = 0,
        **extra: Any,
    ) -> tuple[TokenGrads, ChainState]:
        check_shapes(grads, tokens)
        alive_BxT = tokens.mask > 0
        inner = []
        for transform, own in zip(at(step), state.inner, strict=True):
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
    """Share of the valid tokens that no mask of a chain stopped at the last update (metric `tokens/kept_frac`).

    A token whose gradient is zero because A = 0 or because PPO clipped it counts as kept.

    Args:
        state: the state of `chain`, or of one transform.

    Returns:
        f32[]; 1 without masks, and 0 after an update with an empty batch.
    """
    return state.kept if isinstance(state, ChainState | Masked) else jnp.float32(1)
