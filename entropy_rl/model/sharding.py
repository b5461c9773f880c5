"""One table from logical axes to mesh axes, and the shardings that follow from it."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, Mesh

from entropy_rl.model.config import ModelConfig
from entropy_rl.model.transformer import Params, logical_axes
from entropy_rl.runtime.mesh import FSDP, ROWS, TENSOR, replicated

Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]  # (logical axis, its mesh axis or axes; None: not split)

RULES: Rules = (
    ("batch", ROWS),
    ("layers", None),
    ("embed", FSDP),
    ("heads", TENSOR),
    ("kv_heads", TENSOR),
    ("head_dim", None),
    ("mlp", TENSOR),
    ("vocab", TENSOR),
    ("rank", None),
)


class MeshRules(NamedTuple):
    """A mesh with its table from logical axes to mesh axes."""

    mesh: Mesh
    rules: Rules


def rules(cfg: ModelConfig, mesh: Mesh | AbstractMesh, key: str = "mesh.tensor", gathered: bool = False) -> Rules:
    """The table of a model on a mesh: key/value heads are replicated if `tensor` does not divide them.

    Args:
        cfg: the model.
        mesh: the mesh.
        key: the config's key that `tensor` comes from, for the message.
        gathered: weights are split over `tensor` only.

    Raises:
        ValueError: If `tensor` does not divide the query heads, mlp and vocabulary (lists the legal sizes), or `fsdp`
            the width.
    """
    tensor = mesh.shape[TENSOR]
    sizes = {"n_heads": cfg.n_heads, "d_ff": cfg.d_ff, "vocab_size": cfg.vocab_size}
    if bad := [f"{k}={v}" for k, v in sizes.items() if v % tensor]:
        legal = [t for t in range(1, cfg.n_heads + 1) if all(v % t == 0 for v in sizes.values())]
        raise ValueError(f"{key}={tensor} must divide the model's {', '.join(bad)}; legal sizes: {legal}")
    if cfg.d_model % mesh.shape[FSDP]:
        raise ValueError(f"mesh.fsdp={mesh.shape[FSDP]} must divide the model's d_model={cfg.d_model}")
    replicate = ({"kv_heads"} if cfg.n_kv_heads % tensor else set()) | ({"embed"} if gathered else set())
    return tuple((name, None if name in replicate else axis) for name, axis in RULES)


def param_shardings(cfg: ModelConfig, mesh: Mesh, table: Rules) -> Params:
    """The tree of parameters as NamedShardings, by the mesh's table."""
    return nn.logical_to_mesh_sharding(logical_axes(cfg), mesh, table)


def like_params(tree: Any, params: Params, shardings: Params, mesh: Mesh) -> Any:
    """Shardings for an optimiser's state: a parameter's for what has its path's end and its shape, others replicated.

    So the moments of a part of the parameters, which is what Muon keeps, are found too. What is replicated is small:
    counts, and Adafactor's sums over rows and columns.
    """
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    known = {path: (x.shape, place) for (path, x), place in zip(paths, jax.tree.leaves(shardings), strict=True)}

    def place(path: tuple[Any, ...], x: Any) -> Any:
        ends = (path[i:] for i in range(len(path)))
        shape, sharding = next((known[end] for end in ends if end in known), (None, None))
        return sharding if x.shape == shape else replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, tree)
