"""The kernels for whole rows against plain attention: the TPU's is interpreted, the GPU's is called without cuDNN."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from entropy_rl.model import attention, precision
from entropy_rl.model.attention import attend, visible
from entropy_rl.model.block import Group
from entropy_rl.model.config import ModelConfig, Rope
from entropy_rl.model.transformer import Transformer, init_params
from entropy_rl.runtime.mesh import make_mesh

B, S, H, K, h = 2, 200, 4, 2, 128
SPLASH = functools.partial(attention.splash, interpret=True)
CALL = functools.partial(attention.cudnn, implementation="xla")
SEGMENT = jnp.asarray([[1] * 70 + [2] * 120 + [0] * 10, [0] * 30 + [1] * 170])  # packed; padded on the left
POSITION = jnp.asarray([[*range(70), *range(120), *[0] * 10], [*[0] * 30, *range(170)]])


def plain(q, k, v, window):
    return attend(q, ((k, v),), (visible(POSITION, SEGMENT, POSITION, SEGMENT, window),))


def qkv(dtype=jnp.float32, S=S):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(B, S, n, h)), dtype) for n in (H, K, K, H)]


@pytest.mark.parametrize("kernel", [SPLASH, CALL], ids=["splash", "cudnn"])
@pytest.mark.parametrize("window", [None, 40])
def test_a_kernel_agrees_with_plain_attention_and_its_gradient(kernel, window):
    *rows, g = qkv()
    real = (SEGMENT > 0)[:, :, None, None]

    def both(f):
        def loss(q, k, v):
            return jnp.sum(jnp.where(real, f(q, k, v), 0) * g)

        return jax.jit(lambda *x: (jnp.where(real, f(*x), 0), jax.grad(loss, (0, 1, 2))(*x)))(*rows)

    got, got_grad = both(lambda *x: attention.rows(kernel, *x, SEGMENT, window))
    want, want_grad = both(lambda *x: plain(*x, window))
    np.testing.assert_allclose(got, want, atol=2e-5)
    for a, b in zip(got_grad, want_grad, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, atol=2e-4)


def device(platform, **more):
    return types.SimpleNamespace(platform=platform, **more)


@pytest.mark.parametrize(
    "on, dtype, head_dim, kernel",
    [
        (device("tpu"), "float32", 128, attention.splash),
        (device("gpu", compute_capability="8.0"), "bfloat16", 128, attention.cudnn),
        (device("gpu", compute_capability="12.0"), "float16", 64, attention.cudnn),
        (device("gpu", compute_capability="8.0"), "float32", 128, None),
        (device("gpu", compute_capability="8.0"), "bfloat16", 256, None),
        (device("gpu", compute_capability="8.0"), "bfloat16", 60, None),
        (device("gpu", compute_capability="7.5"), "float16", 128, None),  # a T4
        (device("gpu", compute_capability="gfx90a"), "bfloat16", 128, None),  # AMD's
        (device("cpu"), "bfloat16", 128, None),
    ],
)
def test_the_kernel_is_chosen_by_what_the_device_can_do(on, dtype, head_dim, kernel):
    assert attention.kernel_for(on, jnp.dtype(dtype), head_dim) is kernel


def test_auto_is_bfloat16_if_the_device_multiplies_it_natively():
    found = [precision.compute_dtype("auto", device("gpu", compute_capability=x)) for x in ("7.5", "8.6", "gfx90a")]
    assert found == [jnp.float32, jnp.bfloat16, jnp.float32]
    assert precision.compute_dtype("auto", device("tpu")) == jnp.bfloat16
    assert precision.compute_dtype("auto", device("cpu")) == jnp.float32


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 4)])
def test_on_a_gpu_rows_become_a_call_of_cudnn(shape, monkeypatch):
    """Lowered for CUDA, without a GPU: packed rows, forward and back, even if `tensor` does not divide kv heads."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)  # cuDNN is not installed here
    *rows, g = qkv(jnp.bfloat16, S=199)
    segment = SEGMENT[:, :199]

    def loss(*x):
        return jnp.sum((attention.rows(attention.cudnn, *x, segment, 40) * g).astype(jnp.float32))

    with jax.set_mesh(make_mesh(*shape)):
        text = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*rows).lower(lowering_platforms=("cuda",)).as_text()
    text = text.replace("\\22", '"')  # quotes within a call's settings
    for wanted in (
        "@__cudnn$fmhaScaleBiasSoftmax(",
        "@__cudnn$fmhaScaleBiasSoftmaxBackward(",
        '"mask_type": "CAUSAL"',
        '"sliding_window_length": 0',  # cuDNN before 9.10.2 refuses a window of its own beside a bias
    ):
        assert wanted in text
    assert f"tensor<{B}x{H}x256x256x" not in text  # the scores are never held


CFG = ModelConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64)
WINDOWS = dataclasses.replace(
    CFG, n_layers=3, sliding_window=4, full_layers=(1,), local_rope=Rope(30.0), nope_layers=(2,)
)


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [CFG, WINDOWS], ids=["alike", "windows"])
def test_a_group_by_a_kernel_is_the_same_model(cfg):
    """Prompts padded on the left, with three responses each, of different lengths."""
    params, group = init_params(cfg, jax.random.key(0)), Group(5, 3)
    prompt_mask = jnp.asarray([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    mask = (jnp.arange(7)[None] < jnp.asarray([7, 3, 0, 2, 7, 1])[:, None]).astype(int)
    segment = group.paste(prompt_mask, mask)
    start = jnp.repeat(prompt_mask.sum(axis=1), 3)[:, None]
    position = group.paste(jnp.maximum(jnp.cumsum(prompt_mask, axis=1) - 1, 0), start + jnp.arange(7)[None])
    tokens = jax.random.randint(jax.random.key(1), segment.shape, 0, 64)
    real = (segment > 0)[:, :, None]

    def loss(params, kernel):
        hidden, _ = Transformer(cfg, kernel=kernel).apply({"params": params}, tokens, position, segment, group=group)
        return jnp.sum(jnp.where(real, hidden, 0) ** 2 * jnp.arange(32.0)[None, None]), hidden

    grads = jax.grad(loss, has_aux=True)
    (got_grad, got), (want_grad, want) = grads(params, CALL), grads(params, None)
    np.testing.assert_allclose(jnp.where(real, got - want, 0), 0, atol=2e-5)

    def same(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 + 3e-5 * np.abs(b).max())

    jax.tree.map(same, got_grad, want_grad)


@pytest.mark.parametrize(
    "cfg, inner",
    [
        (CFG, CALL),
        (dataclasses.replace(WINDOWS, head_dim=128), SPLASH),
        pytest.param(WINDOWS, CALL, marks=pytest.mark.slow),
    ],
    ids=["alike", "windows, splash", "windows"],
)
def test_a_model_of_packed_rows_calls_the_kernel_and_is_the_same_model(cfg, inner):
    """With windows that differ by layer, each layer branches to the kernel that has its window."""
    params = init_params(cfg, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (B, S), 0, 64)
    calls = []

    def hidden(kernel):
        return Transformer(cfg, kernel=kernel).apply({"params": params}, tokens, POSITION, SEGMENT)[0]

    def spy(*args):
        calls.append((args[0].shape, args[4]))
        return inner(*args)

    got, want = hidden(spy), hidden(None)
    assert set(calls) == {((B, S, 4, cfg.head_dim), window) for window in cfg.windows}
    np.testing.assert_allclose(jnp.where((SEGMENT > 0)[:, :, None], got - want, 0), 0, atol=2e-5)
