"""The fused head: log-probability and exact entropy from hidden states, without ever holding [B, T, V].

Shapes: B sequences, T positions, N = B·T, C positions per chunk, D width, V vocabulary. Logs are natural.

With z = h·W/τ and p = softmax(z):  ∂logp/∂z = onehot(y) − p  and  ∂H/∂z = −p ⊙ (log p + H).
Each pass first gathers the positions that matter (forward: those in the mask; backward: those with a cotangent other
than zero) and runs only as many chunks as they fill. So padding, groups without a gradient and every token mask make
the head cheaper, and nobody has to declare them.

On a mesh each data shard gathers its own positions and runs its own number of chunks. The vocabulary is split over the
tensor axis, which costs a few sums of C numbers per chunk. The head is gathered over fsdp before the chunks, and its
gradient is summed after them, once each.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from entropy_rl.model import head_extras
from entropy_rl.model.head_extras import NONE, Extras, Nucleus
from entropy_rl.runtime.mesh import DATA, FSDP, ROWS, TENSOR

Array = jax.Array
VOCAB, WIDTH = TENSOR, FSDP  # the mesh axes of V, and of D outside the passes

# The names of the two loops in a jaxpr and in a compiled program, by which preflight knows how often they run.
CHUNKS, REST = "head_chunks", "head_rest_of_chunks"


def logp_and_entropy(
    hidden_BxTxD: Array,
    head_DxV: Array,
    targets_BxT: Array,
    temperature: float = 1.0,
    mask_BxT: Array | None = None,
    chunk: int | None = None,
) -> tuple[Array, Array]:
    """log π(y) and H(π) of π = softmax(hidden · head / temperature) at every position.

    Args:
        hidden_BxTxD: hidden states that predict the targets.
        head_DxV: the output head; a transposed embedding costs nothing, because the product absorbs the transpose.
        targets_BxT: i32 tokens.
        temperature: the sampling temperature, > 0.
        mask_BxT: the positions to compute; None: all. At the others both results are exactly 0.
        chunk: positions whose logits exist at the same time; None: `chunk_of` the hidden states' dtype.

    Returns:
        (logp, entropy), f32[B, T] in nats; both are differentiable in `hidden` and `head`.

    Raises:
        ValueError: If the temperature is not above 0.
    """
    logp, entropy = token_statistics(hidden_BxTxD, head_DxV, targets_BxT, temperature, mask_BxT, chunk)
    return logp, entropy


def token_statistics(
    hidden_BxTxD: Array,
    head_DxV: Array,
    targets_BxT: Array,
    temperature: float = 1.0,
    mask_BxT: Array | None = None,
    chunk: int | None = None,
    extras: Extras = NONE,
) -> tuple[Array, ...]:
    """`logp_and_entropy` with further statistics of the same pass.

    Args:
        hidden_BxTxD: as for `logp_and_entropy`, like all arguments but the last.
        head_DxV: see there.
        targets_BxT: see there.
        temperature: see there.
        mask_BxT: see there.
        chunk: see there.
        extras: the further statistics; what is not asked for costs nothing.

    Returns:
        (logp, entropy, then those that `extras.names` lists), f32[B, T] each. Only the nucleus entropy is
        differentiable beside the first two; the others are detached.

    Raises:
        ValueError: If the temperature is not above 0.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    mask = jnp.ones(targets_BxT.shape, bool) if mask_BxT is None else mask_BxT.astype(bool)
    chunk = chunk or chunk_of(hidden_BxTxD.dtype)
    return _head(float(temperature), chunk, extras, hidden_BxTxD, jnp.transpose(head_DxV), targets_BxT, mask)


def chunk_of(dtype: np.dtype) -> int:
    """The positions per chunk: in bfloat16 products are so fast that reading the head pays off for long chunks only."""
    return 1024 if dtype == jnp.bfloat16 else 256


def statistics(d: Array, e: Array, targets: Array) -> tuple[Array, Array]:
    """(logp, entropy), f32[...], of dense logits, for the sampler, which has their exponentials anyway.

    Args:
        d: f32[..., V], logits less their maximum.
        e: f32[..., V], exp(d).
        targets: i32[...].
    """
    logp, entropy, _ = _statistics(d, e, targets, None)
    return logp, entropy


def _statistics(d: Array, e: Array, y: Array, axis: str | None) -> tuple[Array, Array, Array]:
    """(log π(y), entropy, log Σ e) of logits less their maximum, d [..., V], e = exp(d), and targets y.

    `axis` is the mesh axis that splits V.
    """

    def add(x: Array) -> Array:
        return jax.lax.psum(x, axis) if axis else x

    total = add(jnp.sum(e, axis=-1))
    log_total = jnp.log(total)
    # Σ p·(z − max): a token that cannot be drawn (z = −inf) adds 0, not 0·inf
    mean = add(jnp.sum(jnp.where(e > 0, e * d, 0.0), axis=-1)) / total
    if axis:
        y = y - jax.lax.axis_index(axis) * d.shape[-1]
        here = (y >= 0) & (y < d.shape[-1])
        y = jnp.where(here, y, 0)
    at_y = jnp.take_along_axis(d, y[..., None], axis=-1)[..., 0]
    at_y = add(jnp.where(here, at_y, 0.0)) if axis else at_y
    return at_y - log_total, log_total - mean, log_total


def _over_chunks(active_N: Array, chunk: int, body: Callable[[Array, Any], Any], carry: Any) -> Any:
    """body(positions_C, carry) over the active positions: in whole chunks, then up to half a chunk in quarters.

    A chunk reads the head and adds to its gradient, however few positions it holds; so more than two quarters would
    cost as much as a whole chunk.
    """
    n = active_N.shape[0]
    large = min(chunk, n)
    small = max(large // 4, 1)
    # the active positions, then n, which no gather reads and no scatter writes
    order = jnp.nonzero(active_N, size=n + large, fill_value=n)[0]
    count = jnp.sum(active_N)
    done = (count + large - 2 * small - 1) // large if large > 2 * small else count // large

    def at(start: Array, size: int) -> Array:
        return jax.lax.dynamic_slice_in_dim(order, start, size)

    with jax.named_scope(CHUNKS):
        carry = jax.lax.fori_loop(0, done, lambda i, c: body(at(i * large, large), c), carry)
    rest = (jnp.maximum(count - done * large, 0) + small - 1) // small
    with jax.named_scope(REST):
        return jax.lax.fori_loop(0, rest, lambda i, c: body(at(done * large + i * small, small), c), carry)


def _take(x_N: Array, at_C: Array) -> Array:
    return jnp.take(x_N, at_C, axis=0, mode="fill", fill_value=0)


def _logits(temperature: float, hidden_CxD: Array, head_VxD: Array) -> Array:
    z = jax.lax.dot_general(
        hidden_CxD, head_VxD, (((1,), (1,)), ((), ())), exactly(head_VxD.dtype), preferred_element_type=jnp.float32
    )
    return z / temperature


def exactly(dtype: np.dtype) -> jax.lax.Precision | None:
    """The precision of the head's products: float32 means float32, even if the rest of the model is in bfloat16."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def _on_mesh(f: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """f(…, axis) on each device's part of its arguments if a mesh is set; `axis` is the one that splits V, or None."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return partial(f, axis=None)
    return jax.shard_map(partial(f, axis=VOCAB), in_specs=in_specs, out_specs=out_specs, check_vma=False)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _head(
    temperature: float,
    chunk: int,
    extras: Extras,
    hidden_BxTxD: Array,
    head_VxD: Array,
    targets_BxT: Array,
    mask_BxT: Array,
) -> tuple[Array, ...]:
    return _head_fwd(temperature, chunk, extras, hidden_BxTxD, head_VxD, targets_BxT, mask_BxT)[0]


def _head_fwd(
    temperature: float,
    chunk: int,
    extras: Extras,
    hidden_BxTxD: Array,
    head_VxD: Array,
    targets_BxT: Array,
    mask_BxT: Array,
) -> tuple[tuple[Array, ...], tuple[Any, ...]]:
    first = 2 + len(extras.names) - (extras.top_p > 0)  # of the nucleus among the results, whose last is lse
    number = first + (3 if extras.top_p else 0) + 1

    def local(
        hidden_BxTxD: Array, head_VxD: Array, targets_BxT: Array, mask_BxT: Array, axis: str | None
    ) -> tuple[Array, ...]:
        hidden_NxD, targets_N = hidden_BxTxD.reshape(-1, hidden_BxTxD.shape[-1]), targets_BxT.ravel()

        def body(at: Array, out: tuple[Array, ...]) -> tuple[Array, ...]:
            z = _logits(temperature, _take(hidden_NxD, at), head_VxD)
            top = jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
            top = jax.lax.pmax(top, axis) if axis else top
            d, e = z - top, jnp.exp(z - top)
            logp, entropy, log_total = _statistics(d, e, _take(targets_N, at), axis)
            stats = [logp, entropy, *head_extras.detached(extras, d, e, entropy, log_total, axis)]
            stats += head_extras.nucleus(extras.top_p, d, e, log_total, axis) if extras.top_p else ()
            stats += [log_total + top[:, 0]]
            return tuple(o.at[at].set(s, mode="drop") for o, s in zip(out, stats, strict=True))

        zeros = jnp.zeros(targets_N.shape, jnp.float32)
        out = _over_chunks(mask_BxT.ravel(), chunk, body, (zeros,) * number)
        return tuple(x.reshape(targets_BxT.shape) for x in out)

    run = _on_mesh(local, (P(ROWS), P(VOCAB), P(ROWS), P(ROWS)), (P(ROWS),) * number)
    out = run(hidden_BxTxD, head_VxD, targets_BxT, mask_BxT)
    nucleus = out[first:-1]  # (entropy, cut, log mass), or nothing
    return (*out[:first], *nucleus[:1]), (hidden_BxTxD, head_VxD, targets_BxT, mask_BxT, out[1], out[-1], nucleus)


def _head_bwd(
    temperature: float, chunk: int, extras: Extras, residuals: tuple[Any, ...], cotangents: tuple[Array, ...]
) -> tuple[Array, Array, None, None]:
    *inputs, entropy_BxT, lse_BxT, nucleus = residuals
    # of logp, entropy and the nucleus entropy; the other statistics are detached
    cotangents = cotangents[:2] + (cotangents[-1:] if extras.top_p else ())

    def local(
        hidden_BxTxD: Array, head_VxD: Array, targets_BxT: Array, mask_BxT: Array, *of_tokens: Array, axis: str | None
    ) -> tuple[Array, Array]:
        hidden_NxD = hidden_BxTxD.reshape(-1, hidden_BxTxD.shape[-1])
        flat = [x.ravel() for x in (targets_BxT, *of_tokens)]
        first = jax.lax.axis_index(axis) * head_VxD.shape[0] if axis else 0

        def body(at: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            d_hidden, d_head = carry
            h, (y, entropy, lse, gl, ge, *rest) = _take(hidden_NxD, at), (_take(x, at) for x in flat)
            logp_CxV = _logits(temperature, h, head_VxD) - lse[:, None]
            p = jnp.exp(logp_CxV)
            # finite even if a logit is −inf: p·log p is 0 then
            slope = jnp.where(p > 0, p * (logp_CxV + entropy[:, None]), 0.0)
            is_target = jax.lax.broadcasted_iota(jnp.int32, p.shape, 1) + first == y[:, None]
            dz = jnp.where(is_target, gl[:, None], 0.0) - gl[:, None] * p - ge[:, None] * slope
            if rest:
                gn, *found = rest
                dz -= gn[:, None] * head_extras.nucleus_slope(Nucleus(*found), logp_CxV)
            dz = (dz / temperature).astype(head_VxD.dtype)
            exact = exactly(head_VxD.dtype)
            dh = jnp.dot(dz, head_VxD, precision=exact, preferred_element_type=jnp.float32)
            dw = jax.lax.dot_general(dz, h, (((0,), (0,)), ((), ())), exact, preferred_element_type=jnp.float32)
            return d_hidden.at[at].set(dh.astype(d_hidden.dtype), mode="drop"), d_head + dw

        pushed = [g != 0 for g in of_tokens[2 : 2 + len(cotangents)]]
        active = (mask_BxT & functools.reduce(jnp.logical_or, pushed)).ravel()
        start = jnp.zeros(hidden_NxD.shape, jnp.float32), jnp.zeros(head_VxD.shape, jnp.float32)
        d_hidden, d_head = _over_chunks(active, chunk, body, start)
        if axis:
            d_hidden = jax.lax.psum(d_hidden, axis)
            d_head = jax.lax.psum(d_head, DATA)
            d_head = jax.lax.psum_scatter(d_head, WIDTH, scatter_dimension=1, tiled=True)
        return d_hidden.reshape(hidden_BxTxD.shape).astype(hidden_BxTxD.dtype), d_head.astype(head_VxD.dtype)

    rows, of_tokens = P(ROWS), (entropy_BxT, lse_BxT, *cotangents, *nucleus)
    run = _on_mesh(local, (rows, P(VOCAB), rows, rows, *(rows,) * len(of_tokens)), (rows, P(VOCAB, WIDTH)))
    return *run(*inputs, *of_tokens), None, None


_head.defvjp(_head_fwd, _head_bwd)
