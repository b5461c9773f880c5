"""Attention of rows to themselves by a TPU kernel (splash attention) that never holds [S, S].

Shapes: B rows, S positions, H query heads, K key/value heads, h head_dim.

It is for rows as packing and prefill make them: positions grow along a row, so that "no later place in the same
segment" is "no later index in the same segment". `transformer.attend` is the plain form, for everything else.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec as P

Array = jax.Array
_BLOCK, _LANES = 512, 128  # positions computed together; the least that the kernel takes


def rows(q_BxSxHxh: Array, k_BxSxKxh: Array, v_BxSxKxh: Array, segment_BxS: Array, window=None, interpret=False):
    """[B, S, H, h]: softmax attention of each position to those of its segment that are not behind it in the row.

    Args:
      q_BxSxHxh, k_BxSxKxh, v_BxSxKxh: queries, keys, values; K divides H.
      segment_BxS: i32. Padding (segment 0) attends to padding: its results mean nothing and are finite.
      window: keys further back than this are not seen; None: all are.
      interpret: run without a TPU, slowly; for tests.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _local(q_BxSxHxh, k_BxSxKxh, v_BxSxKxh, segment_BxS, window, interpret)
    H, K = q_BxSxHxh.shape[2], k_BxSxKxh.shape[2]
    if K % mesh.shape["tensor"]:  # replicated key/value heads: each query head takes a copy of its own along
        k_BxSxKxh, v_BxSxKxh = (jnp.repeat(x, H // K, axis=2) for x in (k_BxSxKxh, v_BxSxKxh))
    heads, of_row = P(("data", "fsdp"), None, "tensor", None), P(("data", "fsdp"))
    local = lambda q, k, v, segment: _local(q, k, v, segment, window, interpret)
    split = jax.shard_map(local, in_specs=(heads, heads, heads, of_row), out_specs=heads, check_vma=False)
    return split(q_BxSxHxh, k_BxSxKxh, v_BxSxKxh, segment_BxS)


def _local(q, k, v, segment_BxS, window, interpret):
    S, H, h = q.shape[1:]
    block = _BLOCK if S > _BLOCK else _LANES
    room = -(-S // block) * block
    # queries come scaled; the positions that fill the last block up are a segment of their own
    ready = lambda x: jnp.pad(x, ((0, 0), (0, room - S), (0, 0), (0, 0))).swapaxes(1, 2)
    q, k, v = ready(q * jnp.asarray(h**-0.5, q.dtype)), ready(k), ready(v)
    segment = jnp.pad(segment_BxS, ((0, 0), (0, room - S)), constant_values=-1)
    mask = splash.CausalMask((room, room)) if window is None else splash.LocalMask((room, room), (window - 1, 0), 0)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * H),
        block_sizes=splash.BlockSizes(
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
    out = jax.vmap(lambda q, k, v, s: kernel(q, k, v, segment_ids=splash.SegmentIds(s, s)))(q, k, v, segment)
    return out.swapaxes(1, 2)[:, :S]
