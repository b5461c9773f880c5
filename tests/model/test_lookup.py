"""Looking up tokens on meshes: the values and the gradient of a plain look-up, without a gather of the table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from entropy_rl.model import lookup
from entropy_rl.runtime.mesh import FSDP, ROWS, TENSOR, make_mesh

V, D, B, S = 24, 16, 8, 5


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)])
def test_a_mesh_looks_up_the_same_and_keeps_the_table_where_it_is(shape):
    rng = np.random.default_rng(0)
    table, g = rng.normal(size=(V, D)).astype(np.float32), rng.normal(size=(B, S, D)).astype(np.float32)
    tokens = rng.integers(0, V, (B, S))

    def run(table, tokens, g):
        out, pull = jax.vjp(lambda t: lookup.embed(t, tokens, jnp.float32), table)
        return out, pull(g)[0]

    want = jax.jit(run)(table, tokens, g)
    np.testing.assert_array_equal(want[0], table[tokens])
    mesh = make_mesh(*shape)

    def put(x, *spec):
        return jax.device_put(x, NamedSharding(mesh, P(*spec)))

    with jax.set_mesh(mesh):
        args = put(table, TENSOR, FSDP), put(tokens, ROWS), put(g, ROWS)
        compiled = jax.jit(run, out_shardings=tuple(args[i].sharding for i in (2, 0))).lower(*args).compile()
        got = compiled(*args)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_allclose(got[1], want[1], atol=1e-6)
    if shape != (8, 1, 1):  # on which every device has the whole table
        assert f"f32[{V},{D}]" not in compiled.as_text()


def test_rows_that_do_not_divide_over_the_mesh_are_looked_up_plainly():
    table = jnp.arange(V * D, dtype=jnp.float32).reshape(V, D)
    with jax.set_mesh(make_mesh(1, 8, 1)):
        out = jax.jit(lambda t: lookup.embed(t, jnp.array([[3, 1]]), jnp.bfloat16))(table)
    assert out.dtype == jnp.bfloat16 and np.array_equal(out[0], table[np.array([3, 1])].astype(jnp.bfloat16))
