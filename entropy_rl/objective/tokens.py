"""The data that flows from the objective through the token transforms: per-token statistics and gradients.

B sequences, T response positions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from entropy_rl.stats import masked


class TokenGrads(NamedTuple):
    """The gradient of the loss with respect to each token's statistics.

    Attributes:
        logp: d loss / d logp, f32[B, T].
        entropy: d loss / d entropy, f32[B, T].
        nucleus_entropy: d loss / d nucleus entropy, f32[B, T]; None unless `TokenInfo` has a nucleus entropy.
    """

    logp: Array
    entropy: Array
    nucleus_entropy: Array | None = None


class TokenInfo(NamedTuple):
    """The statistics that a transform may read; each is f32[B, T] unless stated otherwise.

    Attributes:
        logp: log π_θ(y_t), nats.
        old_logp: log π_old(y_t), nats.
        advantage: A_t.
        entropy: H_t of π_θ at the sampling temperature, nats.
        mask: 1 on response tokens.
        clipped: bool, true if PPO's min() has already stopped this token's gradient.
        old_entropy: H_t of π_old, nats; filled in if a transform of the recipe needs it.
        ref_logp: log-probability under the reference policy, nats; filled in if a transform of the recipe needs it.
        ref_entropy: H_t of the reference policy, nats; filled in if a transform of the recipe needs it.
        uid: u32[B], a hash of (prompt, sample); None: the row number.
        weight: the token's weight in the loss; None: mask / N, the token mean.
        turn: i32[B], which of the turns of a rollout's updates this is, from 0; filled in if a transform of the recipe
            divides the tokens among several.
        prob_square: Σ π² over the vocabulary; like the next two, of π_θ, and filled in if a transform needs it.
        score_mean: E_π S, the mean over the vocabulary of the entropy score S = π (H + log π), nats.
        nucleus_entropy: the entropy of the most likely tokens alone, nats (`model/head_extras.py: Extras`).
    """

    logp: Array
    old_logp: Array
    advantage: Array
    entropy: Array
    mask: Array
    clipped: Array
    old_entropy: Array | None = None
    ref_logp: Array | None = None
    ref_entropy: Array | None = None
    uid: Array = None  # type: ignore[assignment]  # `prepare` fills in these two
    weight: Array = None  # type: ignore[assignment]
    turn: Array | None = None
    prob_square: Array | None = None
    score_mean: Array | None = None
    nucleus_entropy: Array | None = None


def prepare(tokens: TokenInfo) -> TokenInfo:
    """`tokens` detached, exactly 0 at masked tokens, with uid and weight filled in."""
    tokens = jax.lax.stop_gradient(tokens)
    valid_BxT = tokens.mask > 0
    uid_B = jnp.arange(valid_BxT.shape[0], dtype=jnp.uint32) if tokens.uid is None else tokens.uid
    weight_BxT = masked.token_mean_weight(tokens.mask) if tokens.weight is None else tokens.weight
    per_token = tokens._asdict() | {"uid": None, "turn": None, "weight": weight_BxT}
    shown = jax.tree.map(lambda x: jnp.where(valid_BxT, x, jnp.zeros_like(x)), per_token)
    return TokenInfo(**shown | {"uid": uid_B, "turn": tokens.turn})
