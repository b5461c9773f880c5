"""The dtype that a model computes in, how precise its products are, and the context that a program is traced in."""

import contextlib
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.model.sharding import MeshRules
from entropy_rl.model.transformer import Params
from entropy_rl.runtime import host

FLOAT32_HEAD = "bfloat16_float32_head"


def compute_dtype(name: str, device: jax.Device | None = None) -> np.dtype:
    """The dtype that `model.dtype` names, of all but the head.

    Args:
        name: a dtype's name, or "auto": bfloat16 if the accelerator multiplies it natively, otherwise float32; or
            `FLOAT32_HEAD`.
        device: the device to compute on; None: the first one.
    """
    if name == FLOAT32_HEAD:
        return jnp.dtype(jnp.bfloat16)
    if name != "auto":
        return jnp.dtype(name)
    device = device or jax.devices()[0]
    native = device.platform == "tpu" or host.compute_capability(device) >= 8
    return jnp.dtype(jnp.bfloat16 if native else jnp.float32)


def head_dtype(name: str, device: jax.Device | None = None) -> np.dtype:
    """The dtype of the head that `model.dtype` names: as `compute_dtype`, but float32 under `FLOAT32_HEAD`.

    The last hidden states and the output weights are then multiplied in float32, both when tokens are drawn and when
    they are scored: in bfloat16 the two differ by enough to ruin a run (arXiv 2510.26788). MiniMax-M1 trains with such
    a head (2506.13585; a summary was read).
    """
    return jnp.dtype(jnp.float32) if name == FLOAT32_HEAD else compute_dtype(name, device)


def held_in(dtype: np.dtype, params: Params) -> Params:
    """Parameters for use, in the dtype that a model computes in, which takes the same products of them as of float32.

    One leaf is converted at a time; the one that it was made of is freed.
    """

    def convert(x: jax.Array) -> jax.Array:
        if x.dtype == dtype:
            return x
        new = jax.block_until_ready(x.astype(dtype))
        x.delete()
        return new

    return jax.tree.map(convert, params)


def stochastic(x: jax.Array, key: jax.Array) -> jax.Array:
    """bfloat16 of float32: up or down with the chances that make the mean exact; what bfloat16 can hold stays.

    The 16 bits that are cut off are added to 16 random ones first: the carry decides. An infinite x stays infinite.
    """
    random = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    bits = (jax.lax.bitcast_convert_type(x, jnp.uint32) + random) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(jnp.bfloat16)


def precision(dtype: np.dtype) -> contextlib.AbstractContextManager:
    """A context in which float32 means float32: by default accelerators multiply float32 in bfloat16 passes."""
    return jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default")


def compiler_options(device: jax.Device) -> dict[str, str] | None:
    """The compiler's options for training on this device; None: its defaults.

    By default a TPU's compiler multiplies with a small gathered weight slice by slice as the slices arrive, and reads
    and writes the sum each time: on 16 chips, scoring with a 0.5B model took four times as long, by preflight's count.
    """
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"} if device.platform == "tpu" else None


@contextlib.contextmanager
def on_mesh(mesh_rules: MeshRules, dtype: np.dtype) -> Iterator[None]:
    """A context in which logical axes mean this mesh's axes, and products are as precise as the dtype."""
    with jax.set_mesh(mesh_rules.mesh), nn.logical_axis_rules(mesh_rules.rules), precision(dtype):
        yield
