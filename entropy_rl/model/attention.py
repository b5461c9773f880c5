"""Softmax attention: over several parts, for one new token, and of whole rows by a kernel.

Shapes: B rows, S positions, T keys, H query heads, K key/value heads, h head_dim, N rows of a part that several rows
share (B is a multiple of N).

`attend` is the plain form, and holds the scores [B, H, S, T]. The kernels never do: splash on TPUs, cuDNN's flash
attention on GPUs. They serve rows as packing, groups and prefill lay them out: positions grow along a row, so that "no
later position in the same segment" is "no later index in the same segment".
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec as P

from entropy_rl.runtime import host
from entropy_rl.runtime.mesh import ROWS, TENSOR

Array = jax.Array
KeyValue = tuple[Array, Array]
Kernel = Callable[[Array, Array, Array, Array, int | None], Array]  # (q, k, v, segment_BxS, window) -> [B, S, H, h]
_BLOCK, _LANES = 512, 128  # positions that are computed together; the fewest that the TPU's kernel takes


def visible(q_position: Array, q_segment: Array, k_position: Array, k_segment: Array, window: int | None) -> Array:
    """bool[B, S, T]: whether the query sees the key: same segment, no later position, fewer than `window` back.

    Args:
        q_position: i32[B, S], the queries' positions.
        q_segment: i32[B, S], their segments.
        k_position: i32[B, T], the keys' positions; rows of a shared part are already repeated to B.
        k_segment: i32[B, T], their segments.
        window: None: no limit.

    Example:
        Two sequences in one row, with a window of 2.

        >>> position, segment = jnp.array([[0, 1, 2, 0]]), jnp.array([[1, 1, 1, 2]])
        >>> print(visible(position, segment, position, segment, 2).astype(int)[0])
        [[1 0 0 0]
         [1 1 0 0]
         [0 1 1 0]
         [0 0 0 1]]
    """
    distance = q_position[:, :, None] - k_position[:, None, :]
    see = (distance >= 0) & (q_segment[:, :, None] == k_segment[:, None, :])
    return see if window is None else see & (distance < window)


def attend(q_BxSxHxh: Array, parts: Sequence[KeyValue], masks: Sequence[Array]) -> Array:
    """Softmax attention over several parts at once.

    Args:
        q_BxSxHxh: queries.
        parts: pairs (key, value) of [N, T, K, h]; if N < B, row n serves queries n·B/N … (n+1)·B/N − 1.
        masks: for each part, bool[B, S, T].

    Returns:
        [B, S, H, h], in the queries' dtype; scores and softmax are float32.
    """
    B, S, H, h = q_BxSxHxh.shape
    K = parts[0][0].shape[2]
    scores = []
    for (key, _), mask in zip(parts, masks, strict=True):
        N, T = key.shape[:2]
        q = q_BxSxHxh.reshape(N, B // N, S, K, H // K, h)
        s = jnp.einsum("ngskmh,ntkh->ngkmst", q, key, preferred_element_type=jnp.float32) * h**-0.5
        s = s.reshape(B, K, H // K, S, T)
        scores.append(jnp.where(mask[:, None, None], s, jnp.finfo(jnp.float32).min))
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(parts[0][1].dtype)
    out, start = jnp.zeros((B, S, H, h)), 0
    for _, value in parts:
        N, T = value.shape[:2]
        w = weights[..., start : start + T].reshape(N, B // N, K, H // K, S, T)
        o = jnp.einsum("ngkmst,ntkh->ngskmh", w, value, preferred_element_type=jnp.float32)
        out, start = out + o.reshape(B, S, H, h), start + T
    return out.astype(q_BxSxHxh.dtype)


def attend_one(q_BxHxh: Array, own: KeyValue, past: Sequence[KeyValue], masks: Sequence[Array]) -> Array:
    """Softmax attention of one new token per row, over the cached tokens and itself.

    Args:
        q_BxHxh: queries.
        own: (key, value) [B, K, h] of the new tokens.
        past: pairs (key [N, K, h, T], value [N, K, T, h]); if N < B, row n serves queries n·B/N … (n+1)·B/N − 1.
        masks: for each part of the past, bool[B, T].

    Returns:
        f32[B, H, h].
    """
    (B, H, h), K = q_BxHxh.shape, own[0].shape[1]
    m = H // K
    dot = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)

    def gather(x: Array, N: int) -> Array:  # queries that read the same row of a part side by side: [N, K, B/N·m, …]
        return x.reshape(N, B // N, K, m, -1).swapaxes(1, 2).reshape(N, K, B // N * m, -1)

    def spread(x: Array, N: int) -> Array:  # its inverse
        return x.reshape(N, K, B // N, m, -1).swapaxes(1, 2).reshape(B, K, m, -1)

    q_BxKxmxh = q_BxHxh.reshape(B, K, m, h)
    scores = []
    for (key, _), mask in zip(past, masks, strict=True):
        s = spread(dot(gather(q_BxKxmxh, len(key)), key), len(key)) * h**-0.5
        scores.append(jnp.where(mask[:, None, None], s, jnp.finfo(jnp.float32).min))
    self_score = jnp.sum(q_BxKxmxh.astype(jnp.float32) * own[0][:, :, None], axis=-1, keepdims=True) * h**-0.5
    weights = jax.nn.softmax(jnp.concatenate([*scores, self_score], axis=-1), axis=-1)
    out, start = weights[..., -1:] * own[1][:, :, None], 0
    for _, value in past:
        N, T = len(value), value.shape[2]
        w = weights[..., start : start + T].astype(value.dtype)
        out, start = out + spread(dot(gather(w, N), value), N), start + T
    return out.reshape(B, H, h)


def kernel_for(device: jax.Device, dtype: np.dtype, head_dim: int) -> Kernel | None:
    """The kernel that a device has for rows of that dtype; None: it has none, and rows go through `attend`.

    A GPU needs compute capability 8.0 (Ampere; a T4 has 7.5), 16-bit floats, and heads of a size that cuDNN takes.
    """
    if device.platform == "tpu":
        return splash
    short = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    fits = short and head_dim % 8 == 0 and head_dim <= 128
    return cudnn if fits and host.compute_capability(device) >= 8 else None


def rows(
    kernel: Kernel,
    q_BxSxHxh: Array,
    k_BxSxKxh: Array,
    v_BxSxKxh: Array,
    segment_BxS: Array,
    window: int | None = None,
) -> Array:
    """Causal softmax attention within segments: position t attends to positions ≤ t of its own segment.

    Args:
        kernel: `splash` or `cudnn`; each device runs it on its own rows and heads.
        q_BxSxHxh: queries.
        k_BxSxKxh: keys; K divides H.
        v_BxSxKxh: values.
        segment_BxS: i32. Padding (segment 0) attends to padding: its results are finite and mean nothing.
        window: position t sees positions > t − window only; None: no limit.

    Returns:
        [B, S, H, h].
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return kernel(q_BxSxHxh, k_BxSxKxh, v_BxSxKxh, segment_BxS, window)
    H, K = q_BxSxHxh.shape[2], k_BxSxKxh.shape[2]
    if K % mesh.shape[TENSOR]:  # the key/value heads are replicated: each query head takes its own copy along
        k_BxSxKxh, v_BxSxKxh = (jnp.repeat(x, H // K, axis=2) for x in (k_BxSxKxh, v_BxSxKxh))

    def local(q: Array, k: Array, v: Array, segment: Array) -> Array:
        return kernel(q, k, v, segment, window)

    by_head, by_row = P(ROWS, None, TENSOR, None), P(ROWS)
    split = jax.shard_map(local, in_specs=(by_head, by_head, by_head, by_row), out_specs=by_head, check_vma=False)
    return split(q_BxSxHxh, k_BxSxKxh, v_BxSxKxh, segment_BxS)


def _fill(block: int, segment_BxS: Array, *arrays: Array) -> list[Array]:
    """The segments, then the arrays, lengthened to whole blocks; the filling is a segment of its own, −1."""
    more = -segment_BxS.shape[1] % block
    segment = jnp.pad(segment_BxS, ((0, 0), (0, more)), constant_values=-1)
    return [segment, *(jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) for x in arrays)]


def splash(q: Array, k: Array, v: Array, segment_BxS: Array, window: int | None, interpret: bool = False) -> Array:
    """The TPU's kernel, from Pallas. `interpret` runs it without a TPU, slowly, for tests."""
    S, H, h = q.shape[1:]
    block = _BLOCK if S > _BLOCK else _LANES
    segment, *qkv = _fill(block, segment_BxS, q * jnp.asarray(h**-0.5, q.dtype), k, v)  # it expects scaled queries
    length = segment.shape[1]
    causal, local = splash_attention.CausalMask, splash_attention.LocalMask
    mask: Any = causal((length, length)) if window is None else local((length, length), (window - 1, 0), 0)
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask] * H),
        block_sizes=splash_attention.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )

    def row(q: Array, k: Array, v: Array, segment: Array) -> Array:
        return kernel(q, k, v, segment_ids=splash_attention.SegmentIds(segment, segment))

    q, k, v = (x.swapaxes(1, 2) for x in qkv)
    out = jax.vmap(row)(q, k, v, segment)
    return out.swapaxes(1, 2)[:, :S]


def cudnn(
    q: Array,
    k: Array,
    v: Array,
    segment_BxS: Array,
    window: int | None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Array:
    """The GPU's kernel; on a CPU ("xla") it is `attend`. `tests/test_gpu.py` compares the two on a GPU.

    Segments and window become a mask, which JAX hands to cuDNN as a bias [B, 1, S, S] of 2 bytes for all heads; the
    backward pass makes a gradient of the same size. The window is part of the mask because cuDNN before 9.10.2 takes no
    window beside a bias. cuDNN's own form for packed rows, by their offsets, needs a Hopper GPU and functions that are
    private to JAX.
    """
    S = q.shape[1]
    segment, q, k, v = _fill(_LANES, segment_BxS, q, k, v)  # with a bias, an odd S is refused
    mask = segment[:, None, :, None] == segment[:, None, None, :]
    if window is not None:
        index = jnp.arange(segment.shape[1])
        mask &= (index[:, None] - index[None] < window)[None, None]
    out = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation=implementation)
    return out[:, :S]
