"""Token transforms one after another, with the share of the tokens that all masks kept."""

import functools
from collections.abc import Callable
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


class Chain(optax.GradientTransformationExtraArgs):  # type: ignore[misc]  # optax has no types
    """A chain of token transforms.

    Attributes:
        trace: `update` with one more result, u8[B, T]: the transform that acted on the token, counted from 1: the first
            mask that stopped it, otherwise the last transform that changed a gradient of it; 0: none did.
    """

    trace: Callable[..., tuple[TokenGrads, ChainState, Array]]


def chain(*transforms: optax.GradientTransformationExtraArgs | Scheduled) -> Chain:
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

    def trace(
        grads: TokenGrads,
        state: ChainState,
        params: Any = None,
        *,
        tokens: TokenInfo,
        key: Array,
        step: Array | int = 0,
        **extra: Any,
    ) -> tuple[TokenGrads, ChainState, Array]:
        check_shapes(grads, tokens)
        alive_BxT, acted_BxT = tokens.mask > 0, jnp.zeros(tokens.mask.shape, jnp.uint8)
        inner = []
        for number, (transform, own) in enumerate(zip(at(step), state.inner, strict=True), start=1):
            if isinstance(transform, TokenMask):
                factor_BxT = transform.factor(tokens, key)
                grads, after = apply_factor(grads, factor_BxT), Masked(masked.mean(factor_BxT != 0, tokens.mask))
                acts_BxT = alive_BxT & (factor_BxT == 0)
                alive_BxT &= factor_BxT != 0
            else:
                before = grads
                grads, after = transform.update(grads, own, params, tokens=tokens, key=key, **extra)
                acts_BxT = alive_BxT & _changed(before, grads)
            acted_BxT = jnp.where(acts_BxT, jnp.uint8(number), acted_BxT)
            inner.append(after)
        return grads, ChainState(masked.mean(alive_BxT, tokens.mask), tuple(inner)), acted_BxT

    def update(*args: Any, **more: Any) -> tuple[TokenGrads, ChainState]:
        return trace(*args, **more)[:2]

    made = Chain(init, update)
    made.trace = trace
    return made


def _changed(before: TokenGrads, after: TokenGrads) -> Array:
    """bool[B, T]: a gradient of the token is not what it was; one that is None is 0."""
    pairs = [(0.0 if old is None else old, new) for old, new in zip(before, after, strict=True) if new is not None]
    return functools.reduce(jnp.logical_or, [jnp.not_equal(old, new) for old, new in pairs])


def kept_fraction(state: Any) -> Array:
    """Share of the valid tokens that no mask of a chain stopped at the last update (metric `tokens/kept_frac`).

    A token whose gradient is zero because A = 0 or because PPO clipped it counts as kept.

    Args:
        state: the state of `chain`, or of one transform.

    Returns:
        f32[]; 1 without masks, and 0 after an update with an empty batch.
    """
    return state.kept if isinstance(state, ChainState | Masked) else jnp.float32(1)
