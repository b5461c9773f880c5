"""One layer of the decoder: attention, then the MLP, with norms before or after them, or both.

Shapes: B rows, S positions, D width, F mlp width, H query heads, K key/value heads, h head_dim, N rows that each hold
a group of G responses (B = N·G when they are cut apart), P prompt positions.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer

from entropy_rl.model import attention
from entropy_rl.model.attention import KeyValue
from entropy_rl.model.config import ADAPTER, ModelConfig
from entropy_rl.model.kinds import ALIKE, Kind, pick
from entropy_rl.model.rope import rotate

Array = jax.Array
_LECUN = nn.initializers.lecun_normal()
_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
}


class Context(NamedTuple):
    """The inputs that all layers share; `of` gives those of one layer.

    Attributes:
        cos: f32[B, S, 1, h], RoPE's table; stacked, [options, …], if layers differ in it.
        sin: the same.
        masks: for each part that a query attends to, bool[B, S, T] (bool[B, T] for a cached part); stacked if layers
            differ in their windows.
        rows: i32[B, S], the segments of rows that attend to themselves by a kernel, without masks; otherwise None.
        kind: of the layer.
    """

    cos: Array
    sin: Array
    masks: tuple[Array, ...]
    rows: Array | None = None
    kind: Kind = ALIKE

    def of(self, kind: Kind) -> "Context":
        """The inputs of a layer of that kind."""
        cos, sin = (pick(table, kind.rope) for table in (self.cos, self.sin))
        return Context(cos, sin, tuple(pick(mask, kind.window) for mask in self.masks), self.rows, kind)


class Group(NamedTuple):
    """The layout of a row that holds a whole group: a prompt, then its responses, each of which sees both.

    Attributes:
        prompt: the prompt's positions.
        samples: the number of responses, which have equally many positions.
    """

    prompt: int
    samples: int

    def cut(self, x_NxL: Array) -> tuple[Array, Array]:
        """[N, P + G·S, …] -> (the prompts [N, P, …], the responses [N·G, S, …])."""
        N, length = x_NxL.shape[0], x_NxL.shape[1] - self.prompt
        responses = x_NxL[:, self.prompt :].reshape(N * self.samples, length // self.samples, *x_NxL.shape[2:])
        return x_NxL[:, : self.prompt], responses

    def apart(self, x_NxL: Array) -> Array:
        """[N, P + G·S, …] -> [N·G, P + S, …]: each response after a copy of its prompt."""
        prompt, response = self.cut(x_NxL)
        return jnp.concatenate([jnp.repeat(prompt, self.samples, axis=0), response], axis=1)

    def paste(self, prompt_NxP: Array, response_BxS: Array) -> Array:
        """The inverse of `cut`."""
        N, (B, S, *rest) = prompt_NxP.shape[0], response_BxS.shape
        return jnp.concatenate([prompt_NxP, response_BxS.reshape(N, B // N * S, *rest)], axis=1)


def rms_norm(x: Array, scale: Array, cfg: ModelConfig) -> Array:
    """x over its root mean square along the axes of `scale`, which is computed in float32, times `scale`; dtype of x.

    With `ModelConfig.norm_offset` it is times 1 + scale, in float32.
    """
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=tuple(range(-scale.ndim, 0)), keepdims=True) + cfg.norm_eps)
    scale = jnp.expand_dims(scale, range(x.ndim - scale.ndim))
    if cfg.norm_offset:
        return (y * (1 + scale.astype(jnp.float32))).astype(x.dtype)
    return scale.astype(x.dtype) * y.astype(x.dtype)


def norm_init(cfg: ModelConfig) -> Initializer:
    """A norm multiplies by 1 at first."""
    return nn.initializers.zeros if cfg.norm_offset else nn.initializers.ones


def dense(x_BxSxD: Array, w_DxF: Array) -> Array:
    """x · w over flattened rows: a weight's gradient then contracts one axis; two would cost a transposed copy."""
    B, S, D = x_BxSxD.shape
    return (x_BxSxD.reshape(B * S, D) @ w_DxF).reshape(B, S, -1)


def weight(module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...], init: Initializer) -> Any:
    """A float32 parameter of a module, with the logical names of its axes."""
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


class Block(nn.Module):
    """Attention and a gated MLP: each takes the residual, and its result is added to it; norms are before or after.

    Attributes:
        cfg: the shape.
        dtype: the dtype to compute in; parameters are float32.
        group: the rows hold whole groups; None: they hold sequences.
        kernel: for rows that attend to themselves, see `Context.rows`.
    """

    cfg: ModelConfig
    dtype: jnp.dtype = jnp.float32
    group: Group | None = None
    kernel: attention.Kernel | None = None

    @nn.compact
    def __call__(
        self, x_BxSxD: Array, past: tuple[KeyValue, ...] | None, ctx: Context, kind: Kind = ALIKE
    ) -> tuple[Array, KeyValue]:
        """(The residual [B, S, D] after this layer, (keys, values) [B, S, K, h] of the tokens given).

        Args:
            x_BxSxD: the residual.
            past: for one new token per row: what it attends to besides itself, see `attention.attend_one`.
            ctx: the inputs that all layers share.
            kind: which of those that differ from layer to layer are this layer's.
        """
        ctx = ctx.of(kind)
        q, k, v = self.heads(self.before("attn", x_BxSxD), ctx)
        x_BxSxD = x_BxSxD + self.after("attn", self.output(self.attend(q, k, v, past, ctx)))
        x_BxSxD = x_BxSxD + self.after("mlp", self.mlp(self.before("mlp", x_BxSxD)))
        return nn.with_logical_constraint(x_BxSxD, ("batch", None, None)), (k, v)

    # The steps of __call__. `nowrap`: they are parts of one compact method, and profiles name them as such.

    @nn.nowrap
    def heads(self, y_BxSxD: Array, ctx: Context) -> tuple[Array, Array, Array]:
        """Queries [B, S, H, h], keys and values [B, S, K, h], rotated to their positions."""
        c = self.cfg
        fan_in = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))

        def part(name: str, heads: int, axis: str) -> Array:
            w = self.weight(name, (c.d_model, heads, c.head_dim), ("embed", axis, "head_dim"), fan_in)
            return self.project(y_BxSxD, name, w, axis)

        q, k, v = (
            part("q", c.n_heads, "heads"),
            part("k", c.n_kv_heads, "kv_heads"),
            part("v", c.n_kv_heads, "kv_heads"),
        )
        if c.qk_norm == "head":
            q = self.norm("q_norm", q, (c.head_dim,), ("head_dim",))
            k = self.norm("k_norm", k, (c.head_dim,), ("head_dim",))
        elif c.qk_norm == "width":
            q = self.norm("q_norm", q, (c.n_heads, c.head_dim), ("heads", "head_dim"))
            k = self.norm("k_norm", k, (c.n_kv_heads, c.head_dim), ("kv_heads", "head_dim"))
        q, k = rotate(q, ctx.cos, ctx.sin), rotate(k, ctx.cos, ctx.sin)
        if c.query_scalar is not None:  # attention divides the scores by the root of head_dim
            q = q * (c.head_dim / c.query_scalar) ** 0.5
        return q, k, v

    @nn.nowrap
    def attend(self, q: Array, k: Array, v: Array, past: tuple[KeyValue, ...] | None, ctx: Context) -> Array:
        """[B, S, H, h]: the values that each query attends to, in the form that the rows' layout allows."""
        if self.kernel and ctx.rows is not None:
            return self.attend_by_kernel(self.kernel, q, k, v, ctx.rows, ctx.kind)
        if self.group:
            (q_p, q_r), (k_p, k_r), (v_p, v_r) = (self.group.cut(x) for x in (q, k, v))
            prompts = attention.attend(q_p, ((k_p, v_p),), ctx.masks[:1])
            responses = attention.attend(q_r, ((k_p, v_p), (k_r, v_r)), ctx.masks[1:])
            return self.group.paste(prompts, responses)
        if past is None:
            return attention.attend(q, ((k, v),), ctx.masks)
        return attention.attend_one(q[:, 0], (k[:, 0], v[:, 0]), past, ctx.masks)[:, None].astype(self.dtype)

    @nn.nowrap
    def attend_by_kernel(
        self, kernel: attention.Kernel, q: Array, k: Array, v: Array, segment_BxS: Array, kind: Kind
    ) -> Array:
        """The same by a kernel. A group's prompt attends to itself once per response; its dense layers run once.

        A kernel is compiled for one window: a layer that is scanned over branches to the one that has its own.
        """
        if self.group:
            q, k, v = (self.group.apart(x) for x in (q, k, v))
        each = [functools.partial(attention.rows, kernel, window=window) for window in self.cfg.windows]
        out = jax.lax.switch(0 if kind.window is None else kind.window, each, q, k, v, segment_BxS)
        if not self.group:
            return out
        P = self.group.prompt
        return self.group.paste(out[:: self.group.samples, :P], out[:, P:])

    @nn.nowrap
    def output(self, heads_BxSxHxh: Array) -> Array:
        """[B, S, D]: attention's output projection."""
        B, S, H, h = heads_BxSxHxh.shape
        fan_in = nn.initializers.lecun_normal(in_axis=(0, 1), out_axis=2)
        o = self.weight("o", (H, h, self.cfg.d_model), ("heads", "head_dim", "embed"), fan_in).astype(self.dtype)
        flat = heads_BxSxHxh.reshape(B, S, H * h)
        out = dense(flat, o.reshape(H * h, self.cfg.d_model))
        return self.adapt("o", flat, out, {"heads": H, "head_dim": h}, {"embed": self.cfg.d_model})

    @nn.nowrap
    def mlp(self, y_BxSxD: Array) -> Array:
        """[B, S, D]: SwiGLU or GeGLU (Shazeer, 2020)."""
        D, F = self.cfg.d_model, self.cfg.d_ff
        gate = self.weight("gate", (D, F), ("embed", "mlp")).astype(self.dtype)
        up = self.weight("up", (D, F), ("embed", "mlp")).astype(self.dtype)
        down = self.weight("down", (F, D), ("mlp", "embed")).astype(self.dtype)
        y, activation = y_BxSxD, _ACTIVATIONS[self.cfg.activation]
        gated = self.adapt("gate", y, dense(y, gate), {"embed": D}, {"mlp": F})
        inner = activation(gated) * self.adapt("up", y, dense(y, up), {"embed": D}, {"mlp": F})
        return self.adapt("down", inner, dense(inner, down), {"mlp": F}, {"embed": D})

    def before(self, name: str, x_BxSxD: Array) -> Array:
        """The input of attention or the MLP: the residual, normalised if the model does that there."""
        return x_BxSxD if self.cfg.norms == "after" else self.norm(f"{name}_norm", x_BxSxD)

    def after(self, name: str, x_BxSxD: Array) -> Array:
        """The result of attention or the MLP, normalised if the model does that there."""
        return x_BxSxD if self.cfg.norms == "before" else self.norm(f"{name}_post_norm", x_BxSxD)

    def project(self, y_BxSxD: Array, name: str, w_DxNxh: Array, axis: str) -> Array:
        """[B, S, N, h]: y · w, plus the bias if the model has biases."""
        w, bias = w_DxNxh, f"{name}_bias"
        out = dense(y_BxSxD, w.reshape(w.shape[0], -1).astype(self.dtype))
        out = self.adapt(name, y_BxSxD, out, {"embed": w.shape[0]}, {axis: w.shape[1], "head_dim": w.shape[2]})
        out = out.reshape(*y_BxSxD.shape[:2], *w.shape[1:])
        if self.cfg.qkv_bias:
            b = self.weight(bias, w.shape[1:], (axis, "head_dim"), nn.initializers.zeros).astype(self.dtype)
            out += b[None, None]
        return out

    def adapt(
        self, name: str, x_BxSxI: Array, out_BxSxO: Array, inputs: dict[str, int], outputs: dict[str, int]
    ) -> Array:
        """`out`, plus what the adapter of the matrix of that name makes of x, if it has one (`lora.py`).

        Args:
            name: the matrix's leaf.
            x_BxSxI: its input.
            out_BxSxO: its output.
            inputs: the logical axes of its inputs, with their sizes.
            outputs: the same of its outputs.
        """
        lora = self.cfg.lora
        if lora is None or name not in lora.targets:
            return out_BxSxO
        inner = {"rank": lora.rank}
        # uniform in ±1/√inputs, as PEFT has it (torch's kaiming_uniform with a = √5)
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", tuple(range(len(inputs))), -1)
        x = x_BxSxI
        for part, axes, init in (("a", inputs | inner, uniform), ("b", inner | outputs, nn.initializers.zeros)):
            w = self.weight(f"{name}{ADAPTER}{part}", tuple(axes.values()), tuple(axes), init).astype(self.dtype)
            x = dense(x, w.reshape(x.shape[-1], -1))
        return out_BxSxO + lora.scale * x

    def weight(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...], init: Initializer = _LECUN) -> Any:
        """A parameter of this layer."""
        return weight(self, name, shape, axes, init)

    def norm(
        self, name: str, x: Array, shape: tuple[int, ...] | None = None, axes: tuple[str, ...] = ("embed",)
    ) -> Array:
        """x, normalised along the axes of the parameter of that name, which by default is the width."""
        scale = self.weight(name, shape or (self.cfg.d_model,), axes, norm_init(self.cfg))
        return rms_norm(x, scale, self.cfg)
