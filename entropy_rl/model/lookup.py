"""Looking tokens up in a table that is spread over the mesh, without gathering it.

Shapes: B rows, S positions, V vocabulary, D width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

Array = jax.Array
ROWS = ("data", "fsdp")


def embed(table_VxD: Array, tokens_BxS: Array, dtype) -> Array:
    """[B, S, D]: the table's rows, in `dtype`.

    A table's vocabulary lies over `tensor` and its width over `fsdp`. The devices of an fsdp group tell one another
    their tokens, each looks up its slice of the width for all, and the slices go to where the rows are: B·S·D values
    on the wires and not V·D, and the table's gradient is added up where it lies. Left to XLA the table is gathered.
    Where the rules have the width whole, as sampling may, every device looks up its own rows' tokens.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or tokens_BxS.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return jnp.take(table_VxD, tokens_BxS, axis=0).astype(dtype)

    split = dict(nn.get_logical_axis_rules()).get("embed", "fsdp") is not None

    def local(table, tokens):
        at = jax.lax.all_gather(tokens, "fsdp", axis=0, tiled=True) if split else tokens
        at = at - jax.lax.axis_index("tensor") * table.shape[0]
        here = (at >= 0) & (at < table.shape[0])
        found = jnp.where(here[:, :, None], jnp.take(table, jnp.where(here, at, 0), axis=0), 0).astype(dtype)
        whole = jax.lax.psum(found, "tensor")  # one of them holds it, the others zeros
        return jax.lax.all_to_all(whole, "fsdp", split_axis=0, concat_axis=2, tiled=True) if split else whole

    lies = P("tensor", "fsdp" if split else None)
    return jax.shard_map(local, in_specs=(lies, P(ROWS)), out_specs=P(ROWS))(table_VxD, tokens_BxS)
