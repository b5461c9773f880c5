"""One layer of the decoder: attention, then the MLP.

Shapes: B rows, S positions, D width, F mlp width, H query heads, K key/value heads, h head_dim, N rows that each hold
a group of G responses (B = N·G when they are cut apart), P prompt positions.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer

from entropy_rl.model import attention
from entropy_rl.model.attention import KeyValue
from entropy_rl.model.config import ADAPTER, ModelConfig
from entropy_rl.model.rope import rotate

Array = jax.Array
_LECUN = nn.initializers.lecun_normal()


class Context(NamedTuple):
    """The inputs that all layers share.

    Attributes:
        cos: f32[B, S, 1, h], RoPE's table.
        sin: the same.
        masks: for each part that a query attends to, bool[B, S, T] (bool[B, T] for a cached part).
        rows: i32[B, S], the segments of rows that attend to themselves by a kernel, without masks; otherwise None.
    """

    cos: Array
    sin: Array
    masks: tuple[Array, ...]
    rows: Array | None = None


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


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """x over its root mean square along the last axis, which is computed in float32, times `scale`; dtype of x."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return jnp.expand_dims(scale.astype(x.dtype), range(x.ndim - 1)) * y.astype(x.dtype)


def dense(x_BxSxD: Array, w_DxF: Array) -> Array:
    """x · w over flattened rows: a weight's gradient then contracts one axis; two would cost a transposed copy."""
    B, S, D = x_BxSxD.shape
    return (x_BxSxD.reshape(B * S, D) @ w_DxF).reshape(B, S, -1)


def weight(module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...], init: Initializer) -> Any:
    """A float32 parameter of a module, with the logical names of its axes."""
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


class Block(nn.Module):
    """Attention and SwiGLU: each takes the RMS-normalised residual, and its result is added to the residual.

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
    def __call__(self, x_BxSxD: Array, past: tuple[KeyValue, ...] | None, ctx: Context) -> tuple[Array, KeyValue]:
        """(The residual [B, S, D] after this layer, (keys, values) [B, S, K, h] of the tokens given).

        Args:
            x_BxSxD: the residual.
            past: for one new token per row: what it attends to besides itself, see `attention.attend_one`.
            ctx: the inputs that all layers share.
        """
        q, k, v = self.heads(x_BxSxD, ctx)
        x_BxSxD = x_BxSxD + self.output(self.attend(q, k, v, past, ctx))
        x_BxSxD = x_BxSxD + self.mlp(x_BxSxD)
        return nn.with_logical_constraint(x_BxSxD, ("batch", None, None)), (k, v)

    # The steps of __call__. `nowrap`: they are parts of one compact method, and profiles name them as such.

    @nn.nowrap
    def heads(self, x_BxSxD: Array, ctx: Context) -> tuple[Array, Array, Array]:
        """Queries [B, S, H, h], keys and values [B, S, K, h], rotated to their positions."""
        c = self.cfg
        y = rms_norm(x_BxSxD, self.scale("attn_norm", c.d_model, "embed"), c.norm_eps)
        fan_in = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))

        def part(name: str, heads: int, axis: str) -> Array:
            w = self.weight(name, (c.d_model, heads, c.head_dim), ("embed", axis, "head_dim"), fan_in)
            return self.project(y, name, w, axis)

        q, k, v = (
            part("q", c.n_heads, "heads"),
            part("k", c.n_kv_heads, "kv_heads"),
            part("v", c.n_kv_heads, "kv_heads"),
        )
        if c.qk_norm:
            q = rms_norm(q, self.scale("q_norm", c.head_dim, "head_dim"), c.norm_eps)
            k = rms_norm(k, self.scale("k_norm", c.head_dim, "head_dim"), c.norm_eps)
        return rotate(q, ctx.cos, ctx.sin), rotate(k, ctx.cos, ctx.sin), v

    @nn.nowrap
    def attend(self, q: Array, k: Array, v: Array, past: tuple[KeyValue, ...] | None, ctx: Context) -> Array:
        """[B, S, H, h]: the values that each query attends to, in the form that the rows' layout allows."""
        if self.kernel and ctx.rows is not None:
            return self.attend_by_kernel(self.kernel, q, k, v, ctx.rows)
        if self.group:
            (q_p, q_r), (k_p, k_r), (v_p, v_r) = (self.group.cut(x) for x in (q, k, v))
            prompts = attention.attend(q_p, ((k_p, v_p),), ctx.masks[:1])
            responses = attention.attend(q_r, ((k_p, v_p), (k_r, v_r)), ctx.masks[1:])
            return self.group.paste(prompts, responses)
        if past is None:
            return attention.attend(q, ((k, v),), ctx.masks)
        return attention.attend_one(q[:, 0], (k[:, 0], v[:, 0]), past, ctx.masks)[:, None].astype(self.dtype)

    @nn.nowrap
    def attend_by_kernel(self, kernel: attention.Kernel, q: Array, k: Array, v: Array, segment_BxS: Array) -> Array:
        """The same by a kernel. A group's prompt attends to itself once per response; its dense layers run once."""
        if not self.group:
            return attention.rows(kernel, q, k, v, segment_BxS, self.cfg.sliding_window)
        q, k, v = (self.group.apart(x) for x in (q, k, v))
        out = attention.rows(kernel, q, k, v, segment_BxS, self.cfg.sliding_window)
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
    def mlp(self, x_BxSxD: Array) -> Array:
        """[B, S, D]: SwiGLU (Shazeer, 2020) of the normalised residual."""
        D, F = self.cfg.d_model, self.cfg.d_ff
        y = rms_norm(x_BxSxD, self.scale("mlp_norm", D, "embed"), self.cfg.norm_eps)
        gate = self.weight("gate", (D, F), ("embed", "mlp")).astype(self.dtype)
        up = self.weight("up", (D, F), ("embed", "mlp")).astype(self.dtype)
        down = self.weight("down", (F, D), ("mlp", "embed")).astype(self.dtype)
        gated = self.adapt("gate", y, dense(y, gate), {"embed": D}, {"mlp": F})
        inner = nn.silu(gated) * self.adapt("up", y, dense(y, up), {"embed": D}, {"mlp": F})
        return self.adapt("down", inner, dense(inner, down), {"mlp": F}, {"embed": D})

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

    def scale(self, name: str, size: int, axis: str) -> Any:
        """A norm's parameter, [size], which starts at 1."""
        return self.weight(name, (size,), (axis,), nn.initializers.ones)
