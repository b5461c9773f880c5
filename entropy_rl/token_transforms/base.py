"""The parts that every token transform is built from: three constructors, and how masked tokens stay at zero.

B sequences, T response positions. A transform is an Optax gradient transformation over `TokenGrads`.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from entropy_rl import rules
from entropy_rl.objective.tokens import TokenGrads, TokenInfo, prepare
from entropy_rl.stats import masked

Factor = Callable[[TokenInfo, Array], Array]  # (tokens, key) -> f32 or bool[B, T]

# Decorates the factory of a transform: its options are checked by their annotations, see `rules.of_options`.
checked = rules.checked("algo.transforms.")

# Types of options that several transforms have.
Normalizer = Annotated[str, rules.one_of("selected", "all")]
Salt = Annotated[int, rules.whole(least=0, most=2**32 - 1)]


class Masked(NamedTuple):
    """State of a mask.

    Attributes:
        kept: share of the valid tokens that this mask kept at the last update, f32[]; 1 before the first.
    """

    kept: Array


class TokenMask(optax.GradientTransformationExtraArgs):  # type: ignore[misc]  # optax has no types
    """A transform that multiplies both gradients of a token by one factor, which is 0 for the tokens it stops.

    Attributes:
        factor: (tokens, key) -> f32[B, T], the factor that `update` multiplies by.
    """

    factor: Factor


def check_shapes(grads: TokenGrads, tokens: TokenInfo) -> None:
    """Raises a ValueError unless the gradients and the mask have one shape, [B, T]."""
    if not grads.logp.shape == grads.entropy.shape == tokens.mask.shape:
        raise ValueError(
            f"token transform: shapes differ: logp gradient {grads.logp.shape}, entropy gradient "
            f"{grads.entropy.shape}, mask {tokens.mask.shape}; all must be [B, T]"
        )


def require(value: Array | None, field: str, name: str) -> Array:
    """`value`, unless it is None: then a ValueError names the field of TokenInfo that the transform `name` needs."""
    if value is None:
        raise ValueError(f"algo.transforms: {name} needs TokenInfo.{field}, which is None")
    return value


def stateful(
    init: Callable[[], Any],
    edit: Callable[[TokenGrads, Any, TokenInfo, Array], tuple[TokenGrads, Any]],
    begin: Callable[[Any, TokenInfo], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """A transform from `init() -> state` and `edit(grads, state, tokens, key) -> (grads, state)`.

    `edit` receives prepared tokens. The gradients that it returns are then set to exactly 0 at masked tokens.
    `begin(state, tokens) -> state` acts before `edit` on the first update of a rollout alone: the train step passes
    `on_policy` to `update`, bool[]; without it every update is the first of a rollout.
    """

    def init_from(grads: TokenGrads) -> Any:
        return init()

    def update(
        grads: TokenGrads,
        state: Any,
        params: Any = None,
        *,
        tokens: TokenInfo,
        key: Array,
        on_policy: Array | bool = True,
        **extra: Any,
    ) -> tuple[TokenGrads, Any]:
        check_shapes(grads, tokens)
        prepared = prepare(tokens)
        if begin is not None:
            state = jax.tree.map(lambda new, old: jnp.where(on_policy, new, old), begin(state, prepared), state)
        grads, state = edit(grads, state, prepared, key)
        return jax.tree.map(lambda g: jnp.where(tokens.mask > 0, g, 0.0), grads), state

    return optax.GradientTransformationExtraArgs(init_from, update)


def stateless(edit: Callable[[TokenGrads, TokenInfo, Array], TokenGrads]) -> optax.GradientTransformationExtraArgs:
    """A transform without state, from `edit(grads, tokens, key) -> grads`."""

    def edit_and_pass_on(
        grads: TokenGrads, state: optax.EmptyState, tokens: TokenInfo, key: Array
    ) -> tuple[TokenGrads, optax.EmptyState]:
        return edit(grads, tokens, key), state

    return stateful(optax.EmptyState, edit_and_pass_on)


def apply_factor(grads: TokenGrads, factor_BxT: Array) -> TokenGrads:
    """Both gradients times the factor; exactly 0 if the factor is 0, even if the gradient is NaN."""
    edited: TokenGrads = jax.tree.map(lambda g: jnp.where(factor_BxT != 0, g * factor_BxT, 0.0), grads)
    return edited


def mask(factor: Factor) -> TokenMask:
    """A mask from `factor(tokens, key) -> f32 or bool[B, T]`, which receives prepared tokens.

    Its state is `Masked`, with the share of the valid tokens whose factor is not 0.
    """

    def prepared_factor(tokens: TokenInfo, key: Array) -> Array:
        return jnp.where(tokens.mask > 0, factor(prepare(tokens), key), 0.0)

    def init(grads: TokenGrads) -> Masked:
        return Masked(jnp.float32(1))

    def update(
        grads: TokenGrads, state: Masked, params: Any = None, *, tokens: TokenInfo, key: Array, **extra: Any
    ) -> tuple[TokenGrads, Masked]:
        check_shapes(grads, tokens)
        factor_BxT = prepared_factor(tokens, key)
        return apply_factor(grads, factor_BxT), Masked(masked.mean(factor_BxT != 0, tokens.mask))

    made = TokenMask(init, update)
    made.factor = prepared_factor
    return made


def normalised(keep_BxT: Array, tokens: TokenInfo, normalizer: str) -> Array:
    """The factor of a mask that keeps the marked tokens, with a choice of the loss's normaliser.

    With "all" the kept tokens keep their weight: the loss is still divided by all tokens. With "selected" their weights
    are scaled by Σ weight / Σ kept weight, so that they sum to what all weights did: the loss becomes the mean over
    the kept tokens alone. Under the token mean that scale is N / kept; because it is taken from `tokens.weight`, it is
    right under the other aggregations too.

    Args:
        keep_BxT: bool[B, T], true only at valid tokens.
        tokens: prepared.
        normalizer: "selected" or "all".

    Returns:
        f32[B, T]; all 0 if no token is kept.
    """
    if normalizer == "all":
        return keep_BxT.astype(jnp.float32)
    kept_weight = masked.total(tokens.weight, keep_BxT)
    scale = masked.total(tokens.weight, tokens.mask) / jnp.where(kept_weight > 0, kept_weight, 1.0)
    return jnp.where(keep_BxT, jnp.where(kept_weight > 0, scale, 1.0), 0.0)
