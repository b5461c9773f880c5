"""Prefill, and one token at a time over what is cached.

Shapes: N prompts, P prompt positions, W slots, T places of the cache, K key/value heads, h head_dim, L layers, D width.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from entropy_rl.model import lookup
from entropy_rl.model.transformer import (
    KV,
    Block,
    Context,
    ModelConfig,
    Transformer,
    positions,
    rms_norm,
    rope_tables,
    visible,
)

Array = jax.Array


class DecodeWeights(NamedTuple):
    """A model as `step` takes it, made once for many steps: see `decode_weights`.

    Attributes:
      embed: [V, D] in the compute dtype.
      head: the same, or None where it is the embedding.
      final_norm: [D].
      layers: the layers' parameters in the compute dtype, stacked, or a list of them where they are decoded one by one.
      cos, sin: f32[places, h], RoPE's tables.
    """

    embed: Any
    head: Any
    final_norm: Any
    layers: Any
    cos: Any
    sin: Any


def decode_weights(model: Transformer, params, *, places: int) -> DecodeWeights:
    """What every step would do again otherwise: weights in the compute dtype, RoPE of so many places.

    Left to the steps, a cosine is computed for every head of every layer, since XLA fuses it into what reads it.
    """
    p = jax.tree.map(lambda x: x.astype(model.dtype), params)
    of = lambda i: jax.tree.map(lambda x: x[i], p["layers"])
    layers = [of(i) for i in range(model.cfg.n_layers)] if model.unroll else p["layers"]
    cos, sin = (x[0, :, 0] for x in rope_tables(model.cfg, jnp.arange(places)[None]))
    return DecodeWeights(p["embed"], p.get("head"), p["final_norm"], layers, cos, sin)


def decode_sharding(model: Transformer, params_sharding) -> DecodeWeights:
    """The sharding of `decode_weights`, from that of the parameters (NamedShardings on the mesh of the rollout)."""
    p = params_sharding
    layers = p["layers"]
    if model.unroll:
        one = jax.tree.map(lambda s: NamedSharding(s.mesh, PartitionSpec(*s.spec[1:])), layers)
        layers = [one] * model.cfg.n_layers
    none = NamedSharding(p["embed"].mesh, PartitionSpec())
    return DecodeWeights(p["embed"], p.get("head"), p["final_norm"], layers, none, none)


def prefill(model: Transformer, params, prompt_NxP: Array, mask_NxP: Array) -> tuple[Array, KV]:
    """(hidden [N, D] that predicts a response's first token, keys and values) of left-padded prompts."""
    position = positions(mask_NxP)
    out: Any = model.apply({"params": params}, prompt_NxP, position, mask_NxP)
    hidden, (key, value) = out
    key, value = key.transpose(0, 1, 3, 4, 2), value.swapaxes(2, 3)
    return hidden[:, -1], constrain(KV(key, value, position, mask_NxP))


def empty(model: Transformer, slots: int, cache_len: int) -> KV:
    """A cache of `cache_len` places a slot."""
    c, L = model.cfg, () if model.unroll else (model.cfg.n_layers,)
    repeat = lambda x: tuple(jnp.copy(x) for _ in range(c.n_layers)) if model.unroll else x
    key = jnp.zeros((*L, slots, c.n_kv_heads, c.head_dim, cache_len), model.dtype)
    meta = jnp.zeros((slots, cache_len), jnp.int32)
    return constrain(KV(repeat(key), repeat(key.swapaxes(-1, -2)), meta, meta))


def take(kv: KV, rows_W: Array) -> KV:
    """Rows of a cache, in any order; an index past the end gives a row with nothing in it.

    On a mesh a device's rows come from its own: who is a row of another data shard's gives nothing. Left to XLA the
    whole cache would be gathered for it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]
    axis = lambda x: max(x.ndim - 4, 0)  # behind the layers, where these are one array

    def pick(kv: KV, at_W) -> KV:
        return jax.tree.map(lambda x: jnp.take(x, at_W, axis=axis(x), mode="fill", fill_value=0), kv)

    if shards == 1 or not nn.get_logical_axis_rules() or len(kv.segment) % shards or len(rows_W) % shards:
        return constrain(pick(kv, rows_W))

    def own(kv: KV, rows_W) -> KV:
        first = (jax.lax.axis_index("data") * mesh.shape["fsdp"] + jax.lax.axis_index("fsdp")) * len(kv.segment)
        mine = (rows_W >= first) & (rows_W < first + len(kv.segment))
        return pick(kv, jnp.where(mine, rows_W - first, len(kv.segment)))

    lies = jax.tree.map(lambda x: nn.logical_to_mesh_axes(_names(x)), kv)
    rows = nn.logical_to_mesh_axes(("batch",))
    return jax.shard_map(own, in_specs=(lies, rows), out_specs=lies, check_vma=False)(kv, rows_W)


def grow(kv: KV, column: Array, cache_len: int) -> KV:
    """The cache with its places in the order in which they are written again, from place 0, and new ones after them."""
    more = cache_len - kv.segment.shape[1]

    def along(axis):
        def turn(x):
            widths = [(0, 0)] * x.ndim
            widths[axis] = (0, more)
            return jnp.pad(jnp.roll(x, -column, axis=axis), widths)

        return turn

    meta = [along(1)(x) for x in (kv.position, kv.segment)]
    return constrain(KV(jax.tree.map(along(-1), kv.key), jax.tree.map(along(-2), kv.value), *meta))


def constrain(kv: KV) -> KV:
    """Rows over the batch's mesh axes, heads over the heads'."""
    return jax.tree.map(lambda x: nn.with_logical_constraint(x, _names(x)), kv)


def _names(x) -> tuple[str | None, ...]:
    """The logical axes of a part of a cache."""
    return ("batch", None) if x.ndim == 2 else (None,) * (x.ndim - 4) + ("batch", "kv_heads", None, None)


def unstack(model: Transformer, kv: KV) -> KV:
    """A stacked cache as the model decodes with it."""
    if not model.unroll:
        return kv
    split = lambda x: tuple(x[i] for i in range(model.cfg.n_layers))
    return kv._replace(key=split(kv.key), value=split(kv.value))


def step(
    model: Transformer,
    weights: DecodeWeights,
    token_W: Array,
    position_W: Array,
    alive_W: Array,
    prefix: KV,
    cache: KV,
    column: Array,
) -> tuple[Array, KV]:
    """One token a slot: (hidden [W, D] after the last norm, the cache with the token written at `column`).

    Args:
      model, weights: the decoder, made ready for as many places as positions reach.
      token_W, position_W: i32, what is fed and its place in its sequence.
      alive_W: bool; what stands in other slots means nothing and is not written.
      prefix: the prompts' keys, each shared by W/N consecutive slots.
      cache: the responses' keys.
      column: i32[], the place that all slots write, whatever their ages: who sees what is told by position and segment.
    """
    c: ModelConfig = model.cfg
    x = lookup.embed(weights.embed, token_W[:, None], model.dtype)
    x = nn.with_logical_constraint(x, ("batch", None, None))
    position, segment = position_W[:, None], alive_W[:, None].astype(jnp.int32)
    rows = [jnp.repeat(m, len(token_W) // len(m), axis=0) for m in (prefix.position, prefix.segment)]
    # not in a prompt's padding: that is segment 0 too
    see = lambda at, of: visible(position, jnp.ones_like(segment), at, of, c.sliding_window)[:, 0]
    cos, sin = (jnp.take(table, position, axis=0)[:, :, None] for table in (weights.cos, weights.sin))
    ctx = Context(cos, sin, (see(*rows), see(cache.position, cache.segment)))

    def block(x, layer, past) -> Any:
        return Block(c, model.dtype).apply({"params": layer}, x, past, ctx)

    past = (prefix.key, prefix.value), (cache.key, cache.value)
    if model.unroll:
        new = []
        for i, layer in enumerate(weights.layers):
            x, key_value = block(x, layer, tuple((key[i], value[i]) for key, value in past))
            new.append(key_value)
        key, value = zip(*new, strict=True)
    else:
        x, (key, value) = jax.lax.scan(lambda x, layer: block(x, *layer), x, (weights.layers, past))
    # The place hangs on the last layer's output (nothing is above infinity): so the cache is read before it is written,
    # which nothing else says, and XLA copied it. A CPU's compiler takes an optimization_barrier out too early.
    column = column + (x.ravel()[0] > jnp.inf)
    put = lambda axis: lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), column, axis)
    key = jax.tree.map(lambda k: jnp.expand_dims(jnp.squeeze(k, -3), -1), key)  # [W, 1, K, h] -> [W, K, h, 1]
    value = jax.tree.map(lambda v: jnp.swapaxes(v, -2, -3), value)  # -> [W, K, 1, h]
    cache = KV(
        jax.tree.map(put(-1), cache.key, key),
        jax.tree.map(put(-2), cache.value, value),
        put(1)(cache.position, position),
        put(1)(cache.segment, segment),
    )
    return rms_norm(x, weights.final_norm, c.norm_eps)[:, 0], cache


Ready, ready, shardings = DecodeWeights, decode_weights, decode_sharding  # until the engine is rewritten
