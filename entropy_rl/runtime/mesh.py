"""The mesh of a run: its axes, its shape on the devices at hand, and the mesh that sampling uses.

Axes: `data` (each index has a copy of the parameters), `fsdp` (splits the parameters), `tensor` (splits heads, mlp and
vocabulary). The rows of any batch are split over `data` and `fsdp` together.
"""

import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")
ROWS = (DATA, FSDP)  # the axes over which the rows of a batch are split
BATCH = PartitionSpec(ROWS)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of a run.

    Args:
        data: copies of the parameters; −1: as many as the other axes leave devices for.
        fsdp: the devices that the parameters are split over.
        tensor: the devices that heads, mlp and vocabulary are split over.
        devices: the devices to use; None: all.

    Raises:
        ValueError: If the sizes do not multiply to the number of devices.
    """
    found = np.array(jax.devices() if devices is None else devices)
    shape = mesh_shape(data, fsdp, tensor, found.size)
    # jax.make_mesh makes explicit axes by default, under which Flax's logical constraints do not work
    return Mesh(_grid(shape, found[: math.prod(shape)].tolist()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def row_shards(mesh: Mesh | AbstractMesh) -> int:
    """The number of parts that the rows of a batch are split into."""
    return mesh.shape[DATA] * mesh.shape[FSDP]


def sampling_mesh(mesh: Mesh, tensor: int) -> Mesh:
    """The same devices for a rollout: neighbours in groups of t, whose members share the heads.

    Args:
        mesh: the training mesh.
        tensor: t; 0: the training mesh itself.

    Raises:
        ValueError: If the mesh cannot be divided into such groups.
    """
    shape = mesh.devices.shape
    if (other := sampling_shape(shape, tensor)) == shape:
        return mesh
    return Mesh(mesh.devices.reshape(other), AXES, axis_types=mesh.axis_types)


def sampling_shape(shape: tuple[int, ...], tensor: int) -> tuple[int, ...]:
    """The shape of `sampling_mesh`, with the same errors.

    Example:
        >>> sampling_shape((1, 8, 1), 4)
        (1, 2, 4)
    """
    data, fsdp, own = shape
    tensor = tensor or own
    if fsdp * own % tensor:
        raise ValueError(f"rollout.tensor={tensor} must divide mesh.fsdp × mesh.tensor = {fsdp * own}")
    return data, fsdp * own // tensor, tensor


def mesh_shape(data: int, fsdp: int, tensor: int, count: int) -> tuple[int, int, int]:
    """The mesh's shape on `count` devices, with the errors of `make_mesh`.

    Example:
        >>> mesh_shape(-1, 2, 1, 8)
        (4, 2, 1)
    """
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


def _grid(shape: tuple[int, int, int], devices: list[jax.Device]) -> np.ndarray:
    """The devices in the mesh's shape: on TPUs along the torus, with `data` outermost over slices.

    Raises:
        ValueError: If mesh.data is not a multiple of the number of slices.
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


def row_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of any array whose first axis is the rows of a batch."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())
