"""Statistics of the next token's distribution that only some recipes read, from the head's pass over the vocabulary.

C positions, V vocabulary; logs are natural. The logits z of π come as d = z − max and e = exp(d), of which a device may
hold a part of the vocabulary. `axis` is the mesh axis that splits it, or None.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

BITS = 30  # of a float32 from 0 to 1, seen as an integer


class Extras(NamedTuple):
    """Which of them a recipe asks for; each is an f32[B, T] and a field of `TokenInfo` with the same name.

    Attributes:
        prob_square: Σ π², detached.
        score_mean: E_π S = Σ π² (H + log π), the mean of the entropy score S = π (H + log π), detached.
        top_p: p of the nucleus, whose entropy is `nucleus_entropy`: that of π restricted to the fewest tokens of
            highest probability that have p together, and divided by their sum. Tokens that tie with the last of them
            belong to it. It is differentiable, with the nucleus held fixed. 0: it is not computed.
    """

    prob_square: bool = False
    score_mean: bool = False
    top_p: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the statistics, in the order in which the head returns them.

        >>> Extras(score_mean=True, top_p=0.8).names
        ('score_mean', 'nucleus_entropy')
        """
        asked = {"prob_square": self.prob_square, "score_mean": self.score_mean, "nucleus_entropy": self.top_p > 0}
        return tuple(name for name, wanted in asked.items() if wanted)

    @property
    def differentiable(self) -> "Extras":
        """Those that have a gradient."""
        return Extras(top_p=self.top_p)


NONE = Extras()


class Nucleus(NamedTuple):
    """The nucleus of each position, f32[C] each.

    Attributes:
        entropy: its entropy, nats.
        cut: a token belongs to it if its logp is at least this; halfway between its last token and the next one.
        log_mass: the log of its probability.
    """

    entropy: Array
    cut: Array
    log_mass: Array


def detached(extras: Extras, d: Array, e: Array, entropy: Array, log_total: Array, axis: str | None) -> list[Array]:
    """[Σ π², E_π S] as far as they are asked for, f32[C] each.

    Args:
        extras: what is asked for.
        d: f32[C, V], logits less their maximum.
        e: f32[C, V], exp(d).
        entropy: f32[C].
        log_total: f32[C], log Σ e.
        axis: the mesh axis that splits V.
    """
    if not (extras.prob_square or extras.score_mean):
        return []
    scale = jnp.exp(-2 * log_total)
    square = _add(jnp.sum(e * e, axis=-1), axis)
    found = [square * scale] if extras.prob_square else []
    if extras.score_mean:
        log_square = _add(jnp.sum(jnp.where(e > 0, e * e * d, 0.0), axis=-1), axis)
        found.append(scale * (log_square + square * (entropy - log_total)))
    return found


def nucleus(top_p: float, d: Array, e: Array, log_total: Array, axis: str | None) -> Nucleus:
    """The nucleus of each position, found by bisection: nothing is sorted, and nothing is gathered over the mesh.

    The bits of a float32 from 0 to 1 are an integer in the same order, so `BITS` rounds find the last token exactly.

    Args:
        top_p: p, above 0 and at most 1.
        d: f32[C, V], logits less their maximum.
        e: f32[C, V], exp(d).
        log_total: f32[C], log Σ e.
        axis: the mesh axis that splits V.
    """
    key, goal = jax.lax.bitcast_convert_type(e, jnp.uint32), top_p * jnp.exp(log_total)

    def add_bit(i: Array, last: Array) -> Array:
        trial = last | (jnp.uint32(1) << (BITS - 1 - i).astype(jnp.uint32))
        mass = _add(jnp.sum(jnp.where(key >= trial[:, None], e, 0.0), axis=-1), axis)
        return jnp.where(mass >= goal, trial, last)

    last = jnp.zeros(log_total.shape, jnp.uint32)  # everything, which rounding might not reach
    last = last if top_p == 1 else jax.lax.fori_loop(0, BITS, add_bit, last)
    inside = key >= last[:, None]
    mass = _add(jnp.sum(jnp.where(inside, e, 0.0), axis=-1), axis)
    mean = _add(jnp.sum(jnp.where(inside & (e > 0), e * d, 0.0), axis=-1), axis) / mass
    lowest = -_largest(jnp.max(jnp.where(inside, -d, -jnp.inf), axis=-1), axis)
    next_one = _largest(jnp.max(jnp.where(inside, -jnp.inf, d), axis=-1), axis)
    log_mass = jnp.log(mass)
    return Nucleus(log_mass - mean, (lowest + next_one) / 2 - log_total, log_mass - log_total)


def nucleus_slope(found: Nucleus, logp_CxV: Array) -> Array:
    """−∂(nucleus entropy)/∂z = q (log q + its entropy), f32[C, V], with q = π / mass in the nucleus and 0 outside."""
    log_q = logp_CxV - found.log_mass[:, None]
    q = jnp.where(logp_CxV >= found.cut[:, None], jnp.exp(log_q), 0.0)
    return jnp.where(q > 0, q * (log_q + found.entropy[:, None]), 0.0)


def _add(x: Array, axis: str | None) -> Array:
    return jax.lax.psum(x, axis) if axis else x


def _largest(x: Array, axis: str | None) -> Array:
    return jax.lax.pmax(x, axis) if axis else x
