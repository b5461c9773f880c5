"""LoRA (arXiv 2106.09685): adapters beside frozen weights, in one tree of parameters.

The adapter of a matrix W, [inputs, outputs], is two more leaves of the layers, A [inputs, rank] and B [rank, outputs]:
x · W becomes x · W + scale · (x · A) · B, with scale = alpha / rank (`block.py: Block.adapt`). Adapters are float32 and
trained; all other leaves are frozen. `split` and `join` part the tree into the two. A tree without adapters is trained
as a whole, so whoever trains calls these two and need not know.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from entropy_rl.model.config import ADAPTER, Lora, ModelConfig
from entropy_rl.model.precision import stochastic
from entropy_rl.model.transformer import Params, init_params

Array = jax.Array


def adapted(cfg: ModelConfig, lora: Lora | None) -> ModelConfig:
    """The configuration with adapters of the layers' matrices.

    Args:
        cfg: the decoder.
        lora: the adapters; None or rank 0: none.

    Raises:
        ValueError: The rank is more than a matrix has rows or columns.
    """
    if lora is None or not lora.rank:
        return dataclasses.replace(cfg, lora=None)
    width, heads, groups = cfg.d_model, cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
    other = {"q": heads, "k": groups, "v": groups, "o": heads, "gate": cfg.d_ff, "up": cfg.d_ff, "down": cfg.d_ff}
    for name in lora.targets:
        if lora.rank > (least := min(width, other[name])):
            raise ValueError(
                f"model.lora.rank={lora.rank} is more than {name}_proj, {width} by {other[name]}, can have; give at "
                f"most {least}, or take {name}_proj out of model.lora.targets"
            )
    return dataclasses.replace(cfg, lora=lora)


def plain(cfg: ModelConfig) -> ModelConfig:
    """The configuration of the merged model."""
    return dataclasses.replace(cfg, lora=None)


def split(params: Params) -> tuple[Params, Params]:
    """(the trained part, the frozen part) of the parameters, or of any tree like them: the adapters, and the rest.

    Without adapters everything is trained, and the frozen part is empty.
    """
    trained = {name: x for name, x in params["layers"].items() if ADAPTER in name}
    if not trained:
        return params, {}
    frozen = {name: x for name, x in params["layers"].items() if name not in trained}
    return {"layers": trained}, {**params, "layers": frozen}


def join(trained: Params, frozen: Params) -> Params:
    """The inverse of `split`."""
    return {**frozen, "layers": {**frozen["layers"], **trained["layers"]}} if frozen else trained


def fresh(cfg: ModelConfig, key: Array) -> Params:
    """The trained part of the parameters at the start: A uniform in ±1/√inputs, as PEFT has it, and B zero."""
    return split(init_params(cfg, key))[0]


class Pending(NamedTuple):
    """A matrix with its adapter, not yet added; it has the shape and the dtype of the sum.

    Attributes:
        weight: [..., inputs, outputs], whose inputs and outputs may be several axes.
        a: [..., inputs, rank].
        b: [..., rank, outputs].
        scale: of the product.
        number: of the matrix, which its rounding draws from.
    """

    weight: Any
    a: Any
    b: Any
    scale: float
    number: int

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weight."""
        return tuple(self.weight.shape)

    @property
    def dtype(self) -> np.dtype:
        """float32, in which nothing is lost."""
        return np.dtype(np.float32)


def pending(cfg: ModelConfig, params: Params) -> Params:
    """The tree of the merged model, with a `Pending` for each matrix that has an adapter."""
    if cfg.lora is None:
        return params
    trained, frozen = split(params)
    adapters, layers = trained["layers"], dict(frozen["layers"])
    for number, name in enumerate(cfg.lora.targets):
        parts = layers[name], adapters[f"{name}{ADAPTER}a"], adapters[f"{name}{ADAPTER}b"]
        layers[name] = Pending(*parts, cfg.lora.scale, number)
    return {**frozen, "layers": layers}


def merged(cfg: ModelConfig, params: Params, dtype: DTypeLike) -> Params:
    """The parameters of the merged model (`plain(cfg)`), in this dtype: W + scale · A · B, computed in float32."""

    def done(x: Any) -> Array:
        return add(x, dtype) if isinstance(x, Pending) else x.astype(dtype)

    return jax.tree.map(done, pending(cfg, params), is_leaf=is_pending)


def is_pending(x: Any) -> bool:
    """Whether x is a matrix to which its adapter has not been added."""
    return isinstance(x, Pending)


def add(x: Pending, dtype: DTypeLike = np.float32) -> Array:
    """The sum, which in bfloat16 is rounded stochastically, by the same draws at each call.

    A frozen bfloat16 weight is a number of bfloat16: to the nearest, an adapter's small change of it would vanish.
    """
    rank, key = x.a.shape[-1], jax.random.fold_in(jax.random.key(0), x.number)

    def layer(parts: tuple[Array, ...]) -> Array:
        weight, a, b, i = parts
        product = jnp.matmul(a.reshape(-1, rank), b.reshape(rank, -1), precision="highest")
        summed = weight.astype(jnp.float32) + x.scale * product.reshape(weight.shape)
        return stochastic(summed, jax.random.fold_in(key, i)) if dtype == jnp.bfloat16 else summed.astype(dtype)

    # layer by layer, so that the float32 sum of one alone is in memory
    return jax.lax.map(layer, (x.weight, x.a, x.b, jnp.arange(len(x.weight))))


def now(x: Any, dtype: DTypeLike = np.float32) -> Any:
    """A leaf of `pending` as an array on the weight's devices: the sum in this dtype, or the leaf as it is."""
    if not isinstance(x, Pending):
        return x
    return jax.jit(add, static_argnames="dtype", out_shardings=x.weight.sharding)(x, dtype=jnp.dtype(dtype))


def on_host(x: Any) -> np.ndarray:
    """The same in this process's memory."""
    return np.asarray(now(x))
