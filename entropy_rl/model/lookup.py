"""Looking tokens up in a table that is split over the mesh, without gathering it.

Shapes: B rows, S positions, V vocabulary, D width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from entropy_rl.runtime.mesh import FSDP, ROWS, TENSOR, row_shards

Array = jax.Array


def embed(table_VxD: Array, tokens_BxS: Array, dtype: np.dtype) -> Array:
    """[B, S, D]: the table's rows, in `dtype`.

    A table's vocabulary is split over `tensor` and its width over `fsdp`. The devices of an fsdp group exchange their
    tokens, each looks up its slice of the width for all of them, and the slices go to the devices that hold the rows:
    B·S·D values are sent, not V·D, and the table's gradient is summed in place. XLA alone would gather the table. If
    the rules do not split the width, as in sampling, every device looks up the tokens of its own rows.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or tokens_BxS.shape[0] % row_shards(mesh):
        return jnp.take(table_VxD, tokens_BxS, axis=0).astype(dtype)

    split = dict(nn.get_logical_axis_rules()).get("embed", FSDP) is not None

    def local(table: Array, tokens: Array) -> Array:
        index = jax.lax.all_gather(tokens, FSDP, axis=0, tiled=True) if split else tokens
        index = index - jax.lax.axis_index(TENSOR) * table.shape[0]
        here = (index >= 0) & (index < table.shape[0])
        found = jnp.where(here[:, :, None], jnp.take(table, jnp.where(here, index, 0), axis=0), 0).astype(dtype)
        whole = jax.lax.psum(found, TENSOR)  # one device holds the token, the others add zeros
        return jax.lax.all_to_all(whole, FSDP, split_axis=0, concat_axis=2, tiled=True) if split else whole

    table_spec = P(TENSOR, FSDP if split else None)
    return jax.shard_map(local, in_specs=(table_spec, P(ROWS)), out_specs=P(ROWS))(table_VxD, tokens_BxS)
