"""What only a GPU can show: cuDNN's attention, an update and a run on the device. Skipped where there is none.

JAX_PLATFORMS=cuda,cpu python -m pytest tests/test_gpu.py -m "slow or not slow"
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs
import updates

from entropy_rl import loop
from entropy_rl.model import attention, precision
from entropy_rl.model.attention import attend, visible
from entropy_rl.model.transformer import Transformer
from entropy_rl.objective.tokens import TokenGrads
from entropy_rl.training import scoring

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="JAX has no GPU here")
NEEDS_CUDNN = "cuDNN's attention needs compute capability 8.0"


def relative(a, b) -> float:
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    assert np.isfinite(a).all()
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("h", [64, 128])
@pytest.mark.parametrize("window", [None, 40])
def test_cudnn_is_attention_and_its_gradient(dtype, h, window):
    """Packed rows and a row padded on the left, of a length that is not whole blocks, against float32."""
    if attention.kernel_for(jax.devices()[0], jnp.dtype(dtype), h) is None:
        pytest.skip(NEEDS_CUDNN)
    segment = jnp.asarray([[1] * 70 + [2] * 120 + [0] * 10, [0] * 30 + [1] * 170])
    position = jnp.asarray([[*range(70), *range(120), *[0] * 10], [*[0] * 30, *range(170)]])
    rng = np.random.default_rng(0)
    q, k, v, g = (jnp.asarray(rng.normal(size=(2, 200, n, h)), dtype) for n in (8, 2, 2, 8))
    real = (segment > 0)[:, :, None, None]

    def plain(q, k, v):
        return attend(q, ((k, v),), (visible(position, segment, position, segment, window),))

    def kernel(q, k, v):
        return attention.rows(attention.cudnn, q, k, v, segment, window)

    def both(f, *x):
        def loss(*x):
            return jnp.sum(jnp.where(real, f(*x), 0).astype(jnp.float32) * g.astype(jnp.float32))

        return jax.jit(lambda *x: (jnp.where(real, f(*x), 0), *jax.grad(loss, (0, 1, 2))(*x)))(*x)

    with jax.default_matmul_precision("highest"):
        wanted = both(plain, *(x.astype(jnp.float32) for x in (q, k, v)))
    unit = float(jnp.finfo(dtype).eps)
    for name, got, want in zip(("out", "dq", "dk", "dv"), both(kernel, q, k, v), wanted):
        assert relative(got, want) < 2 * unit, name


def test_float32_scores_are_those_of_the_processor():
    """logp and entropy of a batch, within what another order of additions changes."""
    with jax.default_matmul_precision("highest"):
        score = functools.partial(scoring.token_stats, Transformer(updates.CFG))
        found = jax.jit(score, static_argnums=2)(updates.params(), updates.batch(), 1.0)
        with jax.default_device(jax.devices("cpu")[0]):
            wanted = jax.jit(score, static_argnums=2)(updates.params(), updates.batch(), 1.0)
    for a, b in zip(jax.device_get(found), jax.device_get(wanted)):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_the_gradient_through_the_kernel_is_that_of_float32(packed):
    """The same token gradient pulled back through the model in bfloat16 with the kernel, and in float32 without."""
    batch = updates.packed() if packed else updates.batch()
    kernel = attention.kernel_for(jax.devices()[0], jnp.dtype("bfloat16"), updates.CFG.head_dim)
    if kernel is None:
        pytest.skip(NEEDS_CUDNN)
    g = TokenGrads(jnp.asarray(batch.advantage * batch.mask), jnp.asarray(0.1 * batch.mask))

    def gradient(model):
        return scoring.pull_back(scoring.pieces(model, 1.0, 1, batch), updates.params(), g)

    with precision.precision(jnp.dtype(jnp.float32)):
        want = jax.jit(lambda: gradient(Transformer(updates.CFG)))()
    bfloat16 = functools.partial(Transformer, updates.CFG, dtype=jnp.bfloat16)
    got, plain = (jax.jit(lambda k: gradient(bfloat16(kernel=k)), static_argnums=0)(k) for k in (kernel, None))
    assert updates.distance(got, want) < 0.05
    assert updates.distance(got, want) < 2 * updates.distance(plain, want)


@pytest.mark.slow
def test_a_run_repeats_and_resumes_bit_for_bit(tmp_path):
    """Also after an interruption: the same rows, the same recorded rollouts, the same checkpoint."""
    whole, again, resumed = (tmp_path / name for name in ("whole", "again", "resumed"))
    loop.run(small_runs.get_config(), str(whole))
    loop.run(small_runs.get_config(), str(again))
    c = small_runs.get_config()
    c.train.steps = 4
    loop.run(c, str(resumed))
    loop.run(small_runs.get_config(), str(resumed))
    assert [small_runs.differences(whole, other, 10) for other in (again, resumed)] == [[], []]
