"""Attention of rows to themselves by a kernel that never holds [B, H, S, S]: splash on TPUs, cuDNN's flash on GPUs.

Shapes: B rows, S positions, H query heads, K key/value heads, h head_dim.

It is for rows as packing, groups and prefill make them: positions grow along a row, so that "no later place in the same
segment" is "no later index in the same segment". `transformer.attend` is the plain form, for everything else.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec as P

from entropy_rl.runtime import host

Array = jax.Array
Kernel = Callable[..., Array]  # (q, k, v, segment_BxS, window) -> [B, S, H, h], on one device
_BLOCK, _LANES = 512, 128  # positions computed together; the least that the TPU's kernel takes


def kernel_for(device, dtype, head_dim: int) -> Kernel | None:
    """What a device has for rows of that dtype; None: nothing, they go through `transformer.attend`.

    A GPU needs compute capability 8.0 (Ampere; a T4 has 7.5), 16-bit floats, and heads that cuDNN takes there.
    """
    if device.platform == "tpu":
        return splash
    short = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    fits = short and head_dim % 8 == 0 and head_dim <= 128
    return cudnn if fits and host.compute_capability(device) >= 8 else None


def rows(kernel: Kernel, q_BxSxHxh: Array, k_BxSxKxh: Array, v_BxSxKxh: Array, segment_BxS: Array, window=None):
    """[B, S, H, h]: softmax attention of each position to those of its segment that are not behind it in the row.

    Args:
      kernel: `splash` or `cudnn`, which computes on each device for itself.
      q_BxSxHxh, k_BxSxKxh, v_BxSxKxh: queries, keys, values; K divides H.
      segment_BxS: i32. Padding (segment 0) attends to padding: its results mean nothing and are finite.
      window: keys further back than this are not seen; None: all are.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return kernel(q_BxSxHxh, k_BxSxKxh, v_BxSxKxh, segment_BxS, window)
    H, K = q_BxSxHxh.shape[2], k_BxSxKxh.shape[2]
    if K % mesh.shape["tensor"]:  # replicated key/value heads: each query head takes a copy of its own along
        k_BxSxKxh, v_BxSxKxh = (jnp.repeat(x, H // K, axis=2) for x in (k_BxSxKxh, v_BxSxKxh))
    heads, of_row = P(("data", "fsdp"), None, "tensor", None), P(("data", "fsdp"))
    local = lambda q, k, v, segment: kernel(q, k, v, segment, window)
    split = jax.shard_map(local, in_specs=(heads, heads, heads, of_row), out_specs=heads, check_vma=False)
    return split(q_BxSxHxh, k_BxSxKxh, v_BxSxKxh, segment_BxS)


def _fill(block: int, segment_BxS: Array, *arrays: Array) -> list[Array]:
    """Rows filled up to whole blocks, the segments first; what fills them up is a segment of its own."""
    more = -segment_BxS.shape[1] % block
    wide = lambda x: jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0)))
    return [jnp.pad(segment_BxS, ((0, 0), (0, more)), constant_values=-1), *map(wide, arrays)]


def splash(q, k, v, segment_BxS, window, interpret=False) -> Array:
    """The TPU's, of Pallas. `interpret`: run without a TPU, slowly; for tests."""
    S, H, h = q.shape[1:]
    block = _BLOCK if S > _BLOCK else _LANES
    segment, *qkv = _fill(block, segment_BxS, q * jnp.asarray(h**-0.5, q.dtype), k, v)  # queries come scaled
    room = segment.shape[1]
    causal, local = splash_attention.CausalMask, splash_attention.LocalMask
    mask: Any = causal((room, room)) if window is None else local((room, room), (window - 1, 0), 0)
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
    q, k, v = (x.swapaxes(1, 2) for x in qkv)
    out = jax.vmap(lambda q, k, v, s: kernel(q, k, v, segment_ids=splash_attention.SegmentIds(s, s)))(q, k, v, segment)
    return out.swapaxes(1, 2)[:, :S]


def cudnn(q, k, v, segment_BxS, window, implementation="cudnn") -> Array:
    """The GPU's. It has not run on a GPU: lowered for one it calls cuDNN, and run on a CPU ("xla") it is `attend`.

    Segments are a mask, which cuDNN is given as a bias [B, 1, S, S] of 2 bytes for all heads, and a gradient
    of the same size in the pass back. cuDNN's form for packed rows, by their offsets, needs a Hopper GPU and
    functions that JAX keeps to itself.
    """
    S = q.shape[1]
    segment, q, k, v = _fill(_LANES, segment_BxS, q, k, v)  # with a bias an odd S is refused
    mask = segment[:, None, :, None] == segment[:, None, None, :]
    back = None if window is None else (window - 1, 0)
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=True, local_window_size=back, implementation=implementation
    )[:, :S]
