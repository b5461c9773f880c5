"""The policy's log-probability and entropy of a batch's tokens, piece by piece, and the pull-back to the parameters.

Shapes: N prompts, G samples per prompt, B = N·G responses, T response positions. Nats.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from entropy_rl.model import head, lora
from entropy_rl.model.head_extras import NONE, Extras
from entropy_rl.model.transformer import Group, Params, Transformer, head_inputs, positions
from entropy_rl.objective.tokens import TokenGrads
from entropy_rl.stats import blocks
from entropy_rl.training.batch import Batch
from entropy_rl.training.packing import Packed

Array = jax.Array
PIECES = "update_pieces"  # the name of a loop over an update's pieces: preflight counts how often it runs


def token_stats(
    model: Transformer, params: Params, batch: Batch, temperature: float, extras: Extras = NONE
) -> tuple[Array, ...]:
    """(logp, entropy, then those that `extras` asks for), f32[B, T] in nats, of the responses; 0 at masked tokens.

    The prompt of a group is computed once: its responses attend to it and each to itself, and the first token of
    each is predicted from the prompt's last position.
    """
    group = Group(batch.prompt.shape[1], batch.tokens.shape[0] // batch.prompt.shape[0])
    start_Bx1 = jnp.repeat(jnp.sum(batch.prompt_mask, axis=1), group.samples)[:, None]
    places_BxT = start_Bx1 + jnp.arange(batch.tokens.shape[1])[None, :]
    # the last token predicts nothing
    hidden, _ = model.apply(
        {"params": params},
        group.paste(batch.prompt, batch.tokens[:, :-1]),
        group.paste(positions(batch.prompt_mask), places_BxT[:, :-1]),
        group.paste(batch.prompt_mask, batch.mask[:, :-1]),
        group=group,
    )
    prompt, inner = group.cut(hidden)
    hidden_BxTxD = jnp.concatenate([jnp.repeat(prompt[:, -1:], group.samples, axis=0), inner], axis=1)
    inputs = head_inputs(model, params, hidden_BxTxD)
    return head.token_statistics(*inputs, batch.tokens, temperature, batch.mask, extras=extras)


class Pieces(NamedTuple):
    """An update as the micro-batches that are computed one after another.

    Attributes:
        number: how many,  known at compile time or an i32[].
        stats: (params, i) -> (logp, entropy, …) of piece i, in the piece's own shape.
        take: (x_BxT, i) -> x in that shape, 0 where piece i has no token of x.
        put: (x_BxT, i, piece) -> x with the tokens of piece i replaced.
    """

    number: int | Array
    stats: Callable[[Params, int | Array], tuple[Array, ...]]
    take: Callable[[Array, int | Array], Array]
    put: Callable[[Array, int | Array, Array], Array]


def pieces(model: Transformer, temperature: float, micro_batches: int, batch: Batch, extras: Extras = NONE) -> Pieces:
    """The batch as whole groups in `micro_batches` pieces, or as packed rows if it holds them."""
    if batch.packed is not None:
        return _packed_pieces(model, temperature, batch.packed, batch.tokens.size, extras)
    n = batch.prompt.shape[0]
    if n % micro_batches:
        raise ValueError(f"train.micro_batches={micro_batches} must divide the {n} prompts of an update")

    def take(x: Array, i: int | Array) -> Array:
        return blocks.take(x, i, micro_batches, n)

    def put(x: Array, i: int | Array, piece: Array) -> Array:
        return blocks.put(x, i, piece, micro_batches, n)

    def stats(params: Params, i: int | Array) -> tuple[Array, ...]:
        part = batch if micro_batches == 1 else jax.tree.map(lambda x: take(x, i), batch)
        return token_stats(model, params, part, temperature, extras)

    return Pieces(micro_batches, stats, take, put)


def _packed_pieces(model: Transformer, temperature: float, packed: Packed, size: int, extras: Extras) -> Pieces:
    """Packed rows as pieces; `size` is B·T, the slot of positions that predict nothing."""

    def at(x: Array, i: int | Array) -> Array:
        return jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False)

    def stats(params: Params, i: int | Array) -> tuple[Array, ...]:
        tokens, position, segment, target, slot = (at(x, i) for x in packed)
        hidden, _ = model.apply({"params": params}, tokens, position, segment)
        inputs = head_inputs(model, params, hidden)
        return head.token_statistics(*inputs, target, temperature, slot < size, extras=extras)

    def take(x: Array, i: int | Array) -> Array:
        return jnp.take(x.ravel(), at(packed.slot, i), mode="fill", fill_value=0)

    def put(x: Array, i: int | Array, piece: Array) -> Array:
        return x.ravel().at[at(packed.slot, i)].set(piece, mode="drop").reshape(x.shape)

    return Pieces(jnp.sum(jnp.any(packed.segment > 0, axis=(0, 2)), dtype=jnp.int32), stats, take, put)


def score(
    model: Transformer, temperature: float, micro_batches: int, params: Params, batch: Batch, extras: Extras = NONE
) -> tuple[Array, ...]:
    """(logp, entropy, then `extras`), f32[B, T], of an update, piece by piece and without a gradient."""
    p = pieces(model, temperature, micro_batches, batch, extras)
    if isinstance(p.number, int) and p.number == 1:
        return p.stats(params, 0)

    def put(i: Array, out: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(p.put(x, i, piece) for x, piece in zip(out, p.stats(params, i), strict=True))

    zeros = jnp.zeros(batch.tokens.shape, jnp.float32)
    with jax.named_scope(PIECES):
        return jax.lax.fori_loop(0, p.number, put, (zeros,) * (2 + len(extras.names)))


def pull(g: TokenGrads, logp: Array, entropy: Array, *extras: Array) -> Array:
    """Σ g·statistics, f32[]: the function whose gradient is the pull-back of g.

    Args:
        g: a token gradient.
        logp: f32[B, T].
        entropy: f32[B, T].
        extras: the statistics after these; the last one is the nucleus entropy if g has a gradient of it.
    """
    g = jax.lax.stop_gradient(g)
    pulled = jnp.sum(g.logp * logp) + jnp.sum(g.entropy * entropy)
    return pulled if g.nucleus_entropy is None else pulled + jnp.sum(g.nucleus_entropy * extras[-1])


def pull_back(p: Pieces, params: Params, g: TokenGrads) -> Params:
    """The gradient of Σ g·statistics with respect to the trained parameters, summed over the pieces."""
    trained, _ = lora.split(params)

    def add(total: Params, gradient: Params) -> Params:
        return jax.tree.map(jnp.add, total, gradient)

    return _over_pieces(p, params, g, lambda gradient: gradient, add, lambda: jax.tree.map(jnp.zeros_like, trained))


def pulled_along(p: Pieces, params: Params, g: TokenGrads, step: Params) -> Array:
    """⟨pull-back of g, step⟩, f32[]: the change of Σ g·statistics along a step, to first order.

    The step is one of the trained parameters.

    It is summed over the pieces, so that no sum of their gradients is held.
    """

    def along(gradient: Params) -> Array:
        products = jax.tree.map(lambda d, s: jnp.sum(d.astype(jnp.float32) * s), gradient, step)
        return sum(jax.tree.leaves(products), jnp.float32(0))

    return _over_pieces(p, params, g, along, jnp.add, lambda: jnp.float32(0))


Summed = TypeVar("Summed")


def _over_pieces(
    p: Pieces,
    params: Params,
    g: TokenGrads,
    of: Callable[[Params], Summed],
    add: Callable[[Summed, Summed], Summed],
    zero: Callable[[], Summed],
) -> Summed:
    """The sum over the pieces of a function of each one's pull-back of g to the trained parameters."""
    trained, frozen = lora.split(params)

    def piece(i: int | Array) -> Summed:
        part = jax.tree.map(lambda x: p.take(x, i), g)
        return of(jax.grad(lambda trained: pull(part, *p.stats(lora.join(trained, frozen), i)))(trained))

    if isinstance(p.number, int) and p.number == 1:
        return piece(0)

    def next_piece(i: Array, total: Summed) -> Summed:
        # Without the barrier XLA for TPUs (libtpu 0.0.42) tries to move an all-reduce out of this loop, and fails.
        return add(total, jax.lax.optimization_barrier(piece(i)))

    with jax.named_scope(PIECES):
        return jax.lax.fori_loop(0, p.number, next_piece, zero())
