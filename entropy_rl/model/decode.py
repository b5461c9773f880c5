"""Prefill, and one token at a time over a cache of keys and values.

Shapes: N prompts, P prompt positions, W slots, T places of the cache, K key/value heads, h head_dim, L layers, D width,
V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from entropy_rl.model import lora
from entropy_rl.model.attention import KeyValue, visible
from entropy_rl.model.block import Block, Context, rms_norm
from entropy_rl.model.kinds import Kind, kind_of, kinds, per_option
from entropy_rl.model.rope import rope_tables
from entropy_rl.model.transformer import Params, Transformer, dtype_of_head, positions
from entropy_rl.runtime.mesh import DATA, FSDP, replicated, row_shards

Array = jax.Array
PIECE = 2**30  # bytes of a layer's activations while prompts are read


class KV(NamedTuple):
    """Keys and values of every layer as decoding reads them, with what a query needs to know about each key.

    Attributes:
        key: [L, B, K, h, T], laid out as the right side of a product; or a tuple of L of them, see
            `Transformer.unroll`.
        value: [L, B, K, T, h], or a tuple.
        position: i32[B, T], each token's position in its sequence.
        segment: i32[B, T], 0 at places that hold no token (padding, or not yet written).
    """

    key: Any
    value: Any
    position: Array
    segment: Array


class DecodeWeights(NamedTuple):
    """A model as `step` reads it, made once for many steps by `decode_weights`.

    The fields hold arrays, or their shardings (`decode_sharding`).

    Attributes:
        embed: [V, D], in the compute dtype.
        head: the same; None if it is the embedding.
        final_norm: [D].
        layers: the layers' parameters in the compute dtype, stacked, or a list with one entry per layer if
            `Transformer.unroll`.
        cos: f32[positions, h], RoPE's table; stacked if layers differ in it.
        sin: the same.
    """

    embed: Any
    head: Any
    final_norm: Any
    layers: Any
    cos: Any
    sin: Any


def unrolled(device: jax.Device) -> bool:
    """Whether a device decodes through the layers one by one.

    Except on TPUs, a scan copies each layer's weights and cache before it reads them. On an H100 these copies were a
    third of a decode step's time with a 0.5B model, and a step was 956 kernels.
    """
    return device.platform != "tpu"


def decode_weights(model: Transformer, params: Params, *, places: int) -> DecodeWeights:
    """What each step would otherwise compute again: weights in their dtypes, RoPE's tables for `places` positions.

    Adapters are merged into their weights, so that a step costs what it costs without them. Left to the steps, a cosine
    is computed for every head of every layer, since XLA fuses it into each of its readers.
    """
    p = dict(lora.merged(model.cfg, params, model.dtype))
    output = "head" if "head" in p else "embed"
    p[output] = params[output].astype(dtype_of_head(model))

    def layer(i: int) -> Params:
        return jax.tree.map(lambda x: x[i], p["layers"])

    layers = [layer(i) for i in range(model.cfg.n_layers)] if model.unroll else p["layers"]
    cos, sin = (x[..., 0, :, 0, :] for x in rope_tables(model.cfg, jnp.arange(places)[None]))
    return DecodeWeights(p["embed"], p.get("head"), p["final_norm"], layers, cos, sin)


def decode_sharding(model: Transformer, params_sharding: Params) -> DecodeWeights:
    """The sharding of `decode_weights`, from that of the parameters (NamedShardings on the mesh of the rollout)."""
    adapters, rest = lora.split(params_sharding)
    p = rest or adapters
    layers = p["layers"]
    if model.unroll:
        one = jax.tree.map(lambda s: NamedSharding(s.mesh, PartitionSpec(*s.spec[1:])), layers)
        layers = [one] * model.cfg.n_layers
    whole = replicated(p["embed"].mesh)
    return DecodeWeights(p["embed"], p.get("head"), p["final_norm"], layers, whole, whole)


def prefill(model: Transformer, params: Params, prompt_NxP: Array, mask_NxP: Array) -> tuple[Array, KV]:
    """(hidden [N, D] that predicts a response's first token, keys and values) of left-padded prompts.

    Besides the keys and values, which remain, about PIECE bytes per device are held at a time: if all prompts together
    would take more, a few prompts of each shard are read after the other.
    """
    (N, P), mesh = prompt_NxP.shape, jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else row_shards(mesh)
    each, some = N // shards, prompts_at_once(model, P)
    if some >= each or N % shards:
        return _prefill(model, params, prompt_NxP, mask_NxP)

    def put(i: Array, made: tuple[Array, ...]) -> tuple[Array, ...]:
        first = jnp.minimum(i * some, each - some)  # the last piece reads some prompts again

        def cut(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x.reshape(shards, each, P), first, some, 1).reshape(shards * some, P)

        hidden, kv = _prefill(model, params, cut(prompt_NxP), cut(mask_NxP))
        new = hidden[None], kv.key, kv.value
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(x, y.reshape(len(x), shards, some, *y.shape[2:]), first, 2)
            for x, y in zip(made, new, strict=True)
        )

    c = model.cfg
    heads = c.n_layers, shards, each, c.n_kv_heads
    shapes = (1, shards, each, c.d_model), (*heads, c.head_dim, P), (*heads, P, c.head_dim)
    start = [jnp.zeros(shape, model.dtype) for shape in shapes]
    axes = (None, "batch", None, None), *((None, "batch", None, "kv_heads", None, None),) * 2
    start = [nn.with_logical_constraint(x, a) for x, a in zip(start, axes, strict=True)]
    made = jax.lax.fori_loop(0, -(-each // some), put, tuple(start))
    hidden, key, value = (x.reshape(len(x), N, *x.shape[3:]) for x in made)
    return hidden[0], constrain(KV(key, value, positions(mask_NxP), mask_NxP))


def prompts_at_once(model: Transformer, P: int) -> int:
    """How many prompts of P positions a layer can take within PIECE bytes: its MLP, and the scores if it holds them."""
    c = model.cfg
    scores = 0 if model.kernel else c.n_heads * P
    return max(1, PIECE // (4 * P * (3 * c.d_ff + scores)))


def _prefill(model: Transformer, params: Params, prompt_NxP: Array, mask_NxP: Array) -> tuple[Array, KV]:
    position = positions(mask_NxP)
    out: Any = model.apply({"params": params}, prompt_NxP, position, mask_NxP)
    hidden, (key, value) = out
    key, value = key.transpose(0, 1, 3, 4, 2), value.swapaxes(2, 3)
    return hidden[:, -1], constrain(KV(key, value, position, mask_NxP))


def empty(model: Transformer, slots: int, cache_len: int) -> KV:
    """A cache of `cache_len` places per slot, with nothing in it."""
    c = model.cfg
    stacked = () if model.unroll else (c.n_layers,)
    key = jnp.zeros((*stacked, slots, c.n_kv_heads, c.head_dim, cache_len), model.dtype)

    def per_layer(x: Array) -> Any:
        return tuple(jnp.copy(x) for _ in range(c.n_layers)) if model.unroll else x

    meta = jnp.zeros((slots, cache_len), jnp.int32)
    return constrain(KV(per_layer(key), per_layer(key.swapaxes(-1, -2)), meta, meta))


def take(kv: KV, rows_W: Array) -> KV:
    """Rows of a cache, in any order; an index past the end gives an empty row.

    On a mesh, each device takes rows from its own data shard only: an index into another shard gives an empty row. XLA
    would gather the whole cache to find it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else row_shards(mesh)

    def pick(kv: KV, index_W: Array) -> KV:
        def pick_one(x: Array) -> Array:
            axis = max(x.ndim - 4, 0)  # after the layers' axis, if they are one array
            return jnp.take(x, index_W, axis=axis, mode="fill", fill_value=0)

        return jax.tree.map(pick_one, kv)

    if shards == 1 or not nn.get_logical_axis_rules() or len(kv.segment) % shards or len(rows_W) % shards:
        return constrain(pick(kv, rows_W))

    def pick_own(kv: KV, rows_W: Array) -> KV:
        count = len(kv.segment)
        first = (jax.lax.axis_index(DATA) * mesh.shape[FSDP] + jax.lax.axis_index(FSDP)) * count
        own = (rows_W >= first) & (rows_W < first + count)
        return pick(kv, jnp.where(own, rows_W - first, count))

    spec = jax.tree.map(lambda x: nn.logical_to_mesh_axes(_axes(x)), kv)
    rows_spec = nn.logical_to_mesh_axes(("batch",))
    return jax.shard_map(pick_own, in_specs=(spec, rows_spec), out_specs=spec, check_vma=False)(kv, rows_W)


def move(kv: KV, rows_W: Array, column: Array, cache_len: int) -> KV:
    """Rows of a cache, as `take`, with more places: first the old ones from `column` on, then new ones.

    The old places are then in the order in which they would be overwritten. One layer is moved at a time, into the old
    cache if the new one has its shape, so that little but the two caches is held.
    """
    if isinstance(kv.key, tuple):
        return _grow(take(kv, rows_W), column, cache_len)

    def turned(layer: Any) -> KV:
        return _grow(take(KV(kv.key[layer], kv.value[layer], kv.position, kv.segment), rows_W), column, cache_len)

    def put(layer: Array, whole: tuple[Array, Array]) -> tuple[Array, Array]:
        source = KV(*whole, kv.position, kv.segment) if same else kv
        new = _grow(take(source._replace(key=source.key[layer], value=source.value[layer]), rows_W), column, cache_len)
        key, value = whole
        return key.at[layer].set(new.key), value.at[layer].set(new.value)

    first = jax.eval_shape(turned, 0)
    same = first.key.shape == kv.key.shape[1:]

    def room(x: Any) -> Array:
        return jnp.zeros((len(kv.key), *x.shape), x.dtype)

    start = (kv.key, kv.value) if same else (room(first.key), room(first.value))
    key, value = jax.lax.fori_loop(0, len(kv.key), put, start)
    meta = _grow(take(KV((), (), kv.position, kv.segment), rows_W), column, cache_len)
    return constrain(meta._replace(key=key, value=value))


def _grow(kv: KV, column: Array, cache_len: int) -> KV:
    """A longer cache: its places in the order in which they would be overwritten, from `column` on, then new ones."""
    more = cache_len - kv.segment.shape[1]

    def along(axis: int) -> Callable[[Array], Array]:
        def turn(x: Array) -> Array:
            widths = [(0, 0)] * x.ndim
            widths[axis] = (0, more)
            return jnp.pad(jnp.roll(x, -column, axis=axis), widths)

        return turn

    meta = [along(1)(x) for x in (kv.position, kv.segment)]
    return constrain(KV(jax.tree.map(along(-1), kv.key), jax.tree.map(along(-2), kv.value), *meta))


def constrain(kv: KV) -> KV:
    """The cache, with its rows sharded over the batch's mesh axes and its heads over those of the heads."""
    return jax.tree.map(lambda x: nn.with_logical_constraint(x, _axes(x)), kv)


def _axes(x: Array) -> tuple[str | None, ...]:
    """The logical axes of a part of a cache."""
    return ("batch", None) if x.ndim == 2 else (None,) * (x.ndim - 4) + ("batch", "kv_heads", None, None)


def unstack(model: Transformer, kv: KV) -> KV:
    """A stacked cache in the form in which the model decodes."""
    if not model.unroll:
        return kv

    def split(x: Array) -> tuple[Array, ...]:
        return tuple(x[i] for i in range(model.cfg.n_layers))

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
    """One token per slot.

    Args:
        model: the decoder.
        weights: of `decode_weights`, for as many positions as are reached.
        token_W: i32, the tokens to feed.
        position_W: i32, their positions in their sequences.
        alive_W: bool; the results of the other slots mean nothing, and what they write is marked as empty.
        prefix: the prompts' keys, each row shared by W/N consecutive slots.
        cache: the responses' keys.
        column: i32[], the place that all slots write, whatever their ages: position and segment determine which keys a
            query sees.

    Returns:
        (hidden [W, D] after the last norm, the cache with the token written at `column`).
    """
    c = lora.plain(model.cfg)
    x = model.embed(weights.embed, token_W[:, None])
    position, segment = position_W[:, None], alive_W[:, None].astype(jnp.int32)
    rows = [jnp.repeat(m, len(token_W) // len(m), axis=0) for m in (prefix.position, prefix.segment)]

    def see(key_position: Array, key_segment: Array) -> Array:
        # a query's segment is 1 even in a dead slot: prompts' padding is segment 0 too
        query = position, jnp.ones_like(segment)
        return per_option(c.windows, lambda window: visible(*query, key_position, key_segment, window)[:, 0])

    cos, sin = (jnp.take(table, position, axis=-2)[..., None, :] for table in (weights.cos, weights.sin))
    ctx = Context(cos, sin, (see(*rows), see(cache.position, cache.segment)))

    def block(x: Array, layer: Any, past: tuple[KeyValue, ...], kind: Kind) -> Any:
        return Block(c, model.dtype).apply({"params": layer}, x, past, ctx, kind)

    past, kind_L = ((prefix.key, prefix.value), (cache.key, cache.value)), kinds(c)
    if model.unroll:
        new = []
        for i, layer in enumerate(weights.layers):
            mine = tuple((key[i], value[i]) for key, value in past)
            x, key_value = block(x, layer, mine, kind_of(kind_L, i))
            new.append(key_value)
        key, value = zip(*new, strict=True)
    else:
        x, (key, value) = jax.lax.scan(lambda x, layer: block(x, *layer), x, (weights.layers, past, kind_L))
    # This makes the column depend on the last layer's output (nothing is above infinity), so that the cache is read
    # before it is written. Nothing else orders the two, and XLA made a copy. A CPU's compiler removes an
    # optimization_barrier too early to help.
    column = column + (x.ravel()[0] > jnp.inf)
    cache = _write(cache, column, key, value, position, segment)
    return rms_norm(x, weights.final_norm, c)[:, 0], cache


def _write(cache: KV, column: Array, key: Any, value: Any, position: Array, segment: Array) -> KV:
    """The cache with one token per row, [W, 1, …], written at `column`."""

    def put(axis: int) -> Callable[[Array, Array], Array]:
        def update(old: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), column, axis)

        return update

    key = jax.tree.map(lambda k: jnp.expand_dims(jnp.squeeze(k, -3), -1), key)  # [W, 1, K, h] -> [W, K, h, 1]
    value = jax.tree.map(lambda v: jnp.swapaxes(v, -2, -3), value)  # -> [W, K, 1, h]
    return KV(
        jax.tree.map(put(-1), cache.key, key),
        jax.tree.map(put(-2), cache.value, value),
        put(1)(cache.position, position),
        put(1)(cache.segment, segment),
    )
