"""What every token transform is made of: two arrays of gradients, what it may look at, and how masks are kept.

B sequences, T response positions. A transform is an Optax gradient transformation over `TokenGrads`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from entropy_rl.objective.tokens import TokenGrads, TokenInfo, prepare
from entropy_rl.stats import masked


class Masked(NamedTuple):
    """State of a mask.

    Attributes:
      kept: share of the valid tokens that this mask let through at the last update, f32[]; 1 before it.
    """

    kept: Array


class TokenMask(optax.GradientTransformationExtraArgs):
    """A transform that multiplies both gradients of a token by one factor, 0 for the tokens it stops.

    Attributes:
      factor: (tokens, key) -> f32[B, T]; what `update` multiplies by.
    """

    factor: Callable[[TokenInfo, Array], Array]


def check_shapes(grads: TokenGrads, tokens: TokenInfo) -> None:
    """ValueError unless gradients and tokens are [B, T] alike."""
    if not grads.logp.shape == grads.entropy.shape == tokens.mask.shape:
        raise ValueError(
            f"token transform: shapes differ: logp gradient {grads.logp.shape}, entropy gradient "
            f"{grads.entropy.shape}, mask {tokens.mask.shape}; all must be [B, T]"
        )


def require(value: Array | None, field: str, name: str) -> Array:
    """`value`, or a ValueError that says which field of TokenInfo the transform `name` cannot do without."""
    if value is None:
        raise ValueError(f"algo.transforms: {name} needs TokenInfo.{field}, which is None")
    return value


def stateful(
    init: Callable[[], Any], edit: Callable[[TokenGrads, Any, TokenInfo, Array], tuple[TokenGrads, Any]]
) -> optax.GradientTransformationExtraArgs:
    """A transform from `init() -> state` and `edit(grads, state, tokens, key) -> (grads, state)`.

    `edit` sees prepared tokens, and what it returns is set to exactly 0 at masked tokens.
    """

    def update(grads, state, params=None, *, tokens, key, **extra):
        check_shapes(grads, tokens)
        grads, state = edit(grads, state, prepare(tokens), key)
        return jax.tree.map(lambda g: jnp.where(tokens.mask > 0, g, 0.0), grads), state

    return optax.GradientTransformationExtraArgs(lambda grads: init(), update)


def stateless(edit: Callable[[TokenGrads, TokenInfo, Array], TokenGrads]) -> optax.GradientTransformationExtraArgs:
    """A transform without state from `edit(grads, tokens, key) -> grads`."""
    return stateful(optax.EmptyState, lambda grads, state, tokens, key: (edit(grads, tokens, key), state))


def apply_factor(grads: TokenGrads, factor_BxT: Array) -> TokenGrads:
    """Both gradients times the factor, exactly 0 where that is 0, whatever stood there."""
    return jax.tree.map(lambda g: jnp.where(factor_BxT != 0, g * factor_BxT, 0.0), grads)


def mask(factor: Callable[[TokenInfo, Array], Array]) -> TokenMask:
    """A mask from `factor(tokens, key) -> f32 or bool[B, T]`, which sees prepared tokens.

    Its state is `Masked`, with the share of valid tokens whose factor is not 0.
    """

    def update(grads, state, params=None, *, tokens, key, **extra):
        check_shapes(grads, tokens)
        factor_BxT = prepared_factor(tokens, key)
        return apply_factor(grads, factor_BxT), Masked(masked.mean(factor_BxT != 0, tokens.mask))

    def prepared_factor(tokens, key):
        return jnp.where(tokens.mask > 0, factor(prepare(tokens), key), 0.0)

    made = TokenMask(lambda grads: Masked(jnp.float32(1)), update)
    made.factor = prepared_factor
    return made


def normalised(keep_BxT: Array, tokens: TokenInfo, normalizer: str) -> Array:
    """The factor that keeps the marked tokens: 1 ("all") or, with "selected", Σ weight / Σ kept weight.

    Under the token mean that is N / kept: the mean is then over the selected tokens. f32[B, T]; no token kept: 0.
    """
    if normalizer == "all":
        return keep_BxT.astype(jnp.float32)
    kept_weight = masked.total(tokens.weight, keep_BxT)
    scale = masked.total(tokens.weight, tokens.mask) / jnp.where(kept_weight > 0, kept_weight, 1.0)
    return jnp.where(keep_BxT, jnp.where(kept_weight > 0, scale, 1.0), 0.0)


def check_normalizer(normalizer: str, name: str) -> None:
    """ValueError unless it is "selected" or "all"."""
    if normalizer not in ("selected", "all"):
        raise ValueError(f"algo.transforms: {name}: normalizer {normalizer!r}, choose 'selected' or 'all'")


def check_fraction(fraction: float, name: str) -> None:
    """ValueError unless 0 < fraction <= 1."""
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"algo.transforms: {name}: fraction {fraction!r}, must be above 0 and at most 1")
