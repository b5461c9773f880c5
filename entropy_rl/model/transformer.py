"""One decoder that is Llama, Mistral, Qwen2 or Qwen3 by configuration.

Shapes: B rows, S tokens given, T keys, D width, F mlp width, H query heads, K key/value heads, h head_dim,
L layers, V vocabulary, N rows of a shared prefix (B = N·G).

Attention reads *parts*: the tokens given, the prompt that a group's responses share, a cache. Scoring a padded batch,
scoring a group with its prompt computed once, prefill and decode are one stack of blocks with other parts. Who sees
whom is data: a token attends to keys of its own segment at positions no later than its own. Segment 0 is padding;
packed rows number their sequences 1, 2, ….
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from entropy_rl.model import attention, lookup

Array = jax.Array
Params = Mapping[str, Any]  # a model's parameters by name; "layers" holds those of all layers, stacked
_LECUN = nn.initializers.lecun_normal()


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama-3's frequency scaling (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder. Families differ only in these fields."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    family: str = "llama"  # llama | mistral | qwen2 | qwen3: the name written back to disk
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3: RMSNorm over each head's q and k
    sliding_window: int | None = None  # Mistral: keys further back than this are not seen
    tied: bool = True  # the head is the embedding
    max_positions: int = 2048
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self):
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"model.n_kv_heads={self.n_kv_heads} must divide model.n_heads={self.n_heads}")


class KV(NamedTuple):
    """Keys and values of every layer as decoding reads them, with what a query needs to know about each key.

    Attributes:
      key: [L, B, K, h, T], a product's right side as it lies; or a tuple of L of them, see `Transformer.unroll`.
      value: [L, B, K, T, h], or a tuple.
      position: i32[B, T], the token's place in its sequence.
      segment: i32[B, T], 0 where nothing stands (padding, or a place not yet written).
    """

    key: Any
    value: Any
    position: Array
    segment: Array


def positions(mask_BxS: Array) -> Array:
    """i32[B, S]: each token's place among the unmasked ones of its row, for left or right padding."""
    return jnp.maximum(jnp.cumsum(mask_BxS.astype(jnp.int32), axis=1) - 1, 0)


def inverse_frequencies(cfg: ModelConfig) -> Array:
    """f32[h/2]: RoPE's inverse frequencies, with Llama-3 scaling where the model has it."""
    inv = cfg.rope_theta ** -(jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim)
    if (s := cfg.rope_scaling) is None:
        return inv
    wavelength = 2 * jnp.pi / inv
    smooth = (s.original_max_positions / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    blended = (1 - smooth) * inv / s.factor + smooth * inv
    long, short = s.original_max_positions / s.low_freq_factor, s.original_max_positions / s.high_freq_factor
    return jnp.where(wavelength > long, inv / s.factor, jnp.where(wavelength < short, inv, blended))


def rotate(x_BxSxNxh: Array, cos_BxSx1xh: Array, sin_BxSx1xh: Array) -> Array:
    """RoPE in the half-split convention of the Hugging Face models."""
    a, b = jnp.split(x_BxSxNxh.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([-b, a], axis=-1)
    return (x_BxSxNxh * cos_BxSx1xh + turned * sin_BxSx1xh).astype(x_BxSxNxh.dtype)


def visible(q_position, q_segment, k_position, k_segment, window: int | None) -> Array:
    """bool[B, S, T]: may the query see the key? Prefix rows are already repeated to B."""
    distance = q_position[:, :, None] - k_position[:, None, :]
    see = (distance >= 0) & (q_segment[:, :, None] == k_segment[:, None, :])
    return see if window is None else see & (distance < window)


def attend(q_BxSxHxh: Array, parts, masks) -> Array:
    """Softmax attention over several key parts at once.

    Args:
      q_BxSxHxh: queries.
      parts: pairs (key, value) of [N, T, K, h]; where N < B, row n serves queries n·B/N … (n+1)·B/N − 1.
      masks: for each part, bool[B, S, T].

    Returns:
      [B, S, H, h]. Scores and softmax are float32.
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


def attend_one(q_BxHxh: Array, own, past, masks) -> Array:
    """Softmax attention of one new token a row, over what is cached and the token itself: f32[B, H, h].

    Args:
      q_BxHxh: queries.
      own: (key, value) [B, K, h] of the tokens given.
      past: pairs (key [N, K, h, T], value [N, K, T, h]); where N < B, row n serves queries n·B/N … (n+1)·B/N − 1.
      masks: for each part of the past, bool[B, T].
    """
    (B, H, h), K = q_BxHxh.shape, own[0].shape[1]
    m = H // K
    # the queries that read one row of a part stand together: [N, K, B/N·m, …] and back
    gather = lambda x, N: x.reshape(N, B // N, K, m, -1).swapaxes(1, 2).reshape(N, K, B // N * m, -1)
    spread = lambda x, N: x.reshape(N, K, B // N, m, -1).swapaxes(1, 2).reshape(B, K, m, -1)
    dot = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
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
        out, start = (
            out + spread(dot(gather(weights[..., start : start + T].astype(value.dtype), N), value), N),
            start + T,
        )
    return out.reshape(B, H, h)


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return jnp.expand_dims(scale.astype(x.dtype), range(x.ndim - 1)) * y.astype(x.dtype)


def dense(x_BxSxD: Array, w_DxF: Array) -> Array:
    """x · w over flattened rows: a weight's gradient then contracts one axis, where two cost a transposed copy."""
    B, S, D = x_BxSxD.shape
    return (x_BxSxD.reshape(B * S, D) @ w_DxF).reshape(B, S, -1)


def weight(module: nn.Module, name: str, shape, axes, init) -> Any:
    """A float32 parameter of a module, with the logical names of its axes."""
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


class Context(NamedTuple):
    """What every layer shares: RoPE's tables and the masks of the parts.

    `rows`: the segments i32[B, S] of rows that attend to themselves by a kernel, without masks; else None.
    """

    cos: Array
    sin: Array
    masks: tuple[Array, ...]
    rows: Any = None


class Group(NamedTuple):
    """A row that holds a whole group: a prompt, then `samples` responses of equal room that see it and themselves."""

    prompt: int  # positions
    samples: int

    def cut(self, x_NxL: Array) -> tuple[Array, Array]:
        """[N, P + G·S, …] -> the prompts [N, P, …] and the responses [N·G, S, …]."""
        N, room = x_NxL.shape[0], x_NxL.shape[1] - self.prompt
        responses = x_NxL[:, self.prompt :].reshape(N * self.samples, room // self.samples, *x_NxL.shape[2:])
        return x_NxL[:, : self.prompt], responses

    def apart(self, x_NxL: Array) -> Array:
        """[N, P + G·S, …] -> [N·G, P + S, …]: each response behind a copy of its prompt."""
        prompt, response = self.cut(x_NxL)
        return jnp.concatenate([jnp.repeat(prompt, self.samples, axis=0), response], axis=1)

    def paste(self, prompt_NxP: Array, response_BxS: Array) -> Array:
        """The inverse of `cut`."""
        N, (B, S, *rest) = prompt_NxP.shape[0], response_BxS.shape
        return jnp.concatenate([prompt_NxP, response_BxS.reshape(N, B // N * S, *rest)], axis=1)


class Block(nn.Module):
    """Attention and SwiGLU, each behind an RMSNorm and added to the residual."""

    cfg: ModelConfig
    dtype: jnp.dtype = jnp.float32
    group: Group | None = None
    kernel: attention.Kernel | None = None

    def weight(self, name, shape, axes, init=_LECUN) -> Any:
        return weight(self, name, shape, axes, init)

    def scale(self, name, size, axis):
        return self.weight(name, (size,), (axis,), nn.initializers.ones)

    @nn.compact
    def __call__(self, x_BxSxD, past, ctx: Context):
        c, D, H, K, h = self.cfg, self.cfg.d_model, self.cfg.n_heads, self.cfg.n_kv_heads, self.cfg.head_dim
        y = rms_norm(x_BxSxD, self.scale("attn_norm", D, "embed"), c.norm_eps)
        fan_in = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
        q = self.project(y, self.weight("q", (D, H, h), ("embed", "heads", "head_dim"), fan_in), "q_bias", "heads")
        k = self.project(
            y, self.weight("k", (D, K, h), ("embed", "kv_heads", "head_dim"), fan_in), "k_bias", "kv_heads"
        )
        v = self.project(
            y, self.weight("v", (D, K, h), ("embed", "kv_heads", "head_dim"), fan_in), "v_bias", "kv_heads"
        )
        if c.qk_norm:
            q = rms_norm(q, self.scale("q_norm", h, "head_dim"), c.norm_eps)
            k = rms_norm(k, self.scale("k_norm", h, "head_dim"), c.norm_eps)
        q, k = rotate(q, ctx.cos, ctx.sin), rotate(k, ctx.cos, ctx.sin)
        if self.kernel and ctx.rows is not None:
            apart = self.group.apart if self.group else lambda x: x
            out = attention.rows(self.kernel, apart(q), apart(k), apart(v), ctx.rows, c.sliding_window)
            if self.group:  # a prompt attends to itself once a response then; its dense layers are computed once
                P = self.group.prompt
                out = self.group.paste(out[:: self.group.samples, :P], out[:, P:])
        elif self.group:
            (q_p, q_r), (k_p, k_r), (v_p, v_r) = (self.group.cut(x) for x in (q, k, v))
            own, rest = attend(q_p, ((k_p, v_p),), ctx.masks[:1]), ((k_p, v_p), (k_r, v_r))
            out = self.group.paste(own, attend(q_r, rest, ctx.masks[1:]))
        elif past is None:
            out = attend(q, ((k, v),), ctx.masks)
        else:
            out = attend_one(q[:, 0], (k[:, 0], v[:, 0]), past, ctx.masks)[:, None].astype(self.dtype)
        fan_in = nn.initializers.lecun_normal(in_axis=(0, 1), out_axis=2)
        o = self.weight("o", (H, h, D), ("heads", "head_dim", "embed"), fan_in).astype(self.dtype)
        x_BxSxD = x_BxSxD + dense(out.reshape(*out.shape[:2], H * h), o.reshape(H * h, D))

        y = rms_norm(x_BxSxD, self.scale("mlp_norm", D, "embed"), c.norm_eps)
        gate = self.weight("gate", (D, c.d_ff), ("embed", "mlp")).astype(self.dtype)
        up = self.weight("up", (D, c.d_ff), ("embed", "mlp")).astype(self.dtype)
        down = self.weight("down", (c.d_ff, D), ("mlp", "embed")).astype(self.dtype)
        x_BxSxD = x_BxSxD + dense(nn.silu(dense(y, gate)) * dense(y, up), down)
        return nn.with_logical_constraint(x_BxSxD, ("batch", None, None)), (k, v)

    def project(self, y, w, bias, axis):
        out = dense(y, w.reshape(w.shape[0], -1).astype(self.dtype)).reshape(*y.shape[:2], *w.shape[1:])
        if self.cfg.qkv_bias:
            b = self.weight(bias, w.shape[1:], (axis, "head_dim"), nn.initializers.zeros).astype(self.dtype)
            out += b[None, None]
        return out


class Transformer(nn.Module):
    """The decoder without its head: hidden states out, so that nobody holds [B, S, V] by accident.

    Attributes:
      cfg: the shape.
      dtype: compute dtype; parameters are float32.
      remat: what the backward pass recomputes: "none", "full" blocks, or all but their products, "dots".
      unroll: decode through layers one by one with a cache each, where a scan would copy what it slices: on a CPU.
      kernel: rows that attend to themselves alone do so by it, see `attention.kernel_for`; None: by `attend`.
    """

    cfg: ModelConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    unroll: bool = False
    kernel: attention.Kernel | None = None

    @nn.compact
    def __call__(self, tokens_BxS, position_BxS, segment_BxS, group: Group | None = None) -> tuple[Array, Any]:
        """Returns hidden states [B, S, D] after the last norm, and the keys and values, [L, B, S, K, h] each.

        Args:
          tokens_BxS: i32 tokens.
          position_BxS: i32 places in the sequence (RoPE and causality).
          segment_BxS: i32; a token sees keys of the same segment only; 0 is padding.
          group: the rows hold whole groups: the dense layers see them as they are, attention sees prompts and
            responses apart.
        """
        c = self.cfg
        table = weight(self, "embed", (c.vocab_size, c.d_model), ("vocab", "embed"), nn.initializers.normal(0.02))
        if not c.tied:
            weight(self, "head", (c.vocab_size, c.d_model), ("vocab", "embed"), nn.initializers.normal(0.02))
        x = lookup.embed(table, tokens_BxS, self.dtype)
        x = nn.with_logical_constraint(x, ("batch", None, None))

        own = position_BxS, segment_BxS
        rows, masks = None, []
        if self.kernel:
            rows = group.apart(segment_BxS) if group else segment_BxS
        elif group:
            shared, own = zip(group.cut(position_BxS), group.cut(segment_BxS))
            position, segment = (jnp.repeat(x, group.samples, axis=0) for x in shared)
            masks = [visible(*shared, *shared, c.sliding_window), visible(*own, position, segment, c.sliding_window)]
        if not self.kernel:
            masks.append(visible(*own, *own, c.sliding_window))
        ctx = Context(*rope_tables(c, position_BxS), tuple(masks), rows)

        saved = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
        block = Block if self.remat == "none" else nn.remat(Block, prevent_cse=False, policy=saved[self.remat])
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=c.n_layers,
            in_axes=(nn.broadcast, nn.broadcast),
            out_axes=0,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, key_value = layers(c, self.dtype, group, self.kernel, name="layers")(x, None, ctx)
        scale = weight(self, "final_norm", (c.d_model,), ("embed",), nn.initializers.ones)
        return rms_norm(x, scale, c.norm_eps), key_value


def rope_tables(c: ModelConfig, position_BxS: Array) -> tuple[Array, Array]:
    """cos and sin, f32[B, S, 1, h]."""
    angle = position_BxS[:, :, None].astype(jnp.float32) * inverse_frequencies(c)[None, None]
    angle = jnp.concatenate([angle, angle], axis=-1)[:, :, None]
    return jnp.cos(angle), jnp.sin(angle)


def head_weight(params) -> Array:
    """[V, D]: the output head, which is the embedding where the model ties them."""
    return params.get("head", params["embed"])


def init_params(cfg: ModelConfig, key: Array):
    """Fresh float32 parameters as a plain nested dict (no Flax boxes)."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    return jax.jit(lambda key: nn.unbox(Transformer(cfg).init(key, tokens, tokens, tokens + 1))["params"])(key)


def logical_axes(cfg: ModelConfig):
    """The tree of parameters with its logical axis names, as flax.linen.spmd PartitionSpecs."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    boxed = jax.eval_shape(Transformer(cfg).init, jax.random.key(0), tokens, tokens, tokens)
    return nn.get_partition_spec(boxed)["params"]


def abstract_params(cfg: ModelConfig):
    """The tree of parameters as ShapeDtypeStructs."""
    return jax.eval_shape(lambda key: init_params(cfg, key), jax.random.key(0))
