"""One mesh, one table from logical axes to mesh axes, and the shardings that follow from them."""

import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from entropy_rl.model.transformer import ModelConfig, logical_axes

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))  # rows of any batch

RULES = (
    ("batch", ("data", "fsdp")),
    ("layers", None),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("head_dim", None),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """The mesh ("data", "fsdp", "tensor"); data = −1 takes the devices that the others leave.

    Raises:
      ValueError: where the sizes do not multiply to the number of devices.
    """
    devices = np.array(jax.devices() if devices is None else devices)
    shape = mesh_shape(data, fsdp, tensor, devices.size)
    # make_mesh's default axes are explicit, under which Flax's logical constraints do not work
    return Mesh(_grid(shape, devices[: math.prod(shape)].tolist()), AXES, axis_types=(AxisType.Auto,) * 3)


def shards(mesh: Mesh) -> int:
    """The parts that the rows of a batch are spread over."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def sampling_mesh(mesh: Mesh, tensor: int) -> Mesh:
    """The same devices for a rollout: neighbours in groups of `tensor`, whose members share the heads.

    `tensor` 0: as in training. Raises ValueError where the mesh does not fall into such groups.
    """
    shape = mesh.devices.shape
    if (other := sampling_shape(shape, tensor)) == shape:
        return mesh
    return Mesh(mesh.devices.reshape(other), AXES, axis_types=mesh.axis_types)


def sampling_shape(shape: tuple[int, ...], tensor: int) -> tuple[int, ...]:
    """The shape of `sampling_mesh`; raises as it."""
    data, fsdp, own = shape
    tensor = tensor or own
    if fsdp * own % tensor:
        raise ValueError(f"rollout.tensor={tensor} must divide mesh.fsdp × mesh.tensor = {fsdp * own}")
    return data, fsdp * own // tensor, tensor


def mesh_shape(data: int, fsdp: int, tensor: int, count: int) -> tuple[int, int, int]:
    """The mesh's shape on so many devices; raises as `make_mesh`."""
    for name, size in (("fsdp", fsdp), ("tensor", tensor)):
        if size < 1:
            raise ValueError(f"mesh.{name}={size} must be 1 or more")
    if data == -1:
        data = max(1, count // (fsdp * tensor))
    size = data * fsdp * tensor
    if not 0 < size <= count or (size < count and jax.process_count() > 1):
        raise ValueError(
            f"mesh.data={data} × mesh.fsdp={fsdp} × mesh.tensor={tensor} must be the number of devices, "
            f"{count}, or less on one machine"
        )
    return data, fsdp, tensor


def _grid(shape: tuple[int, int, int], devices: list) -> np.ndarray:
    """The devices in the mesh's shape: on TPUs along the torus, with `data` outermost over slices.

    Raises:
      ValueError: several slices that mesh.data does not divide into.
    """
    if devices[0].platform != "tpu":
        return np.array(devices).reshape(shape)
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if shape[0] % slices:
        raise ValueError(f"mesh.data={shape[0]} must be a multiple of the {slices} slices: the others stay within one")
    within = (shape[0] // slices, *shape[1:])
    return mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)


def rules(cfg: ModelConfig, mesh: Mesh | AbstractMesh, key: str = "mesh.tensor", gathered: bool = False):
    """The table for this model: key/value heads replicate where `tensor`, the config's `key`, does not divide them.

    `gathered`: weights are whole but for `tensor`.

    Raises:
      ValueError: where `tensor` divides the query heads, mlp or vocabulary unevenly; lists the legal sizes.
    """
    tensor = mesh.shape["tensor"]
    sizes = {"n_heads": cfg.n_heads, "d_ff": cfg.d_ff, "vocab_size": cfg.vocab_size}
    if bad := [f"{k}={v}" for k, v in sizes.items() if v % tensor]:
        legal = [t for t in range(1, cfg.n_heads + 1) if all(v % t == 0 for v in sizes.values())]
        raise ValueError(f"{key}={tensor} must divide the model's {', '.join(bad)}; legal sizes: {legal}")
    if cfg.d_model % mesh.shape["fsdp"]:
        raise ValueError(f"mesh.fsdp={mesh.shape['fsdp']} must divide the model's d_model={cfg.d_model}")
    replicate = ({"kv_heads"} if cfg.n_kv_heads % tensor else set()) | ({"embed"} if gathered else set())
    return tuple((name, None if name in replicate else axis) for name, axis in RULES)


def param_shardings(cfg: ModelConfig, mesh: Mesh, table):
    """The tree of parameters as NamedShardings, by the mesh's table."""
    return nn.logical_to_mesh_sharding(logical_axes(cfg), mesh, table)


def like_params(tree, params, shardings, mesh: Mesh):
    """Shardings for an optimiser's state: sub-trees of the parameters' shape as they are, all else replicated."""
    outline: Any = jax.tree.structure(params)
    is_params = lambda x: outline == jax.tree.structure(x)
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: shardings if is_params(x) else replicated, tree, is_leaf=is_params)
