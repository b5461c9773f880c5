"""The optimiser: its rate by any schedule, what it sees of stacked layers, and its state on a mesh.

Shapes: L layers, D width, H heads, h head_dim, F mlp width.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import muon
from states import assert_bitwise

from entropy_rl import config
from entropy_rl.model import lora, sharding
from entropy_rl.model.config import Lora, ModelConfig
from entropy_rl.model.matrices import INPUTS
from entropy_rl.model.transformer import abstract_params, logical_axes
from entropy_rl.record.checkpoint import Checkpoints
from entropy_rl.runtime.mesh import make_mesh
from entropy_rl.training.optimizer import ADAM_RMS, optimizer_of, rate_of, updates_of
from entropy_rl.training.rounding import in_float32, moved

NAMES = ("adamw", "adafactor", "lion", "muon", "sgd")
CFG = ModelConfig(64, 128, 3, 4, 4, 32, 256, qkv_bias=True)  # D and H·h, but not h, are worth factoring


def section(**changes):
    c = config.default()
    c.optim.update(changes)
    config.check(c)
    return c.optim


def tree(seed, dtype=jnp.float32):
    leaves, outline = jax.tree.flatten(abstract_params(CFG))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return outline.unflatten([jax.random.normal(k, x.shape).astype(dtype) for k, x in zip(keys, leaves, strict=True)])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("warmup, schedule", [(0, "constant"), (4, "constant"), (0, "linear"), (4, "cosine")])
def test_the_rate_is_that_of_the_next_update(name, warmup, schedule):
    """At a constant gradient of 1, every optimiser moves what is no matrix by the rate; Muon as NAdamW does."""
    optim = section(name=name, lr=0.5, warmup_updates=warmup, schedule=schedule, grad_clip=1e9)
    optimizer, params = optimizer_of(optim, 10), {"embed": jnp.zeros(2), "layers": {"q": jnp.zeros((1, 2, 1, 2))}}
    update, ones = jax.jit(optimizer.update), jax.tree.map(jnp.ones_like, params)
    state, rates, moves = optimizer.init(params), [], []
    for _ in range(10):
        rates.append(float(rate_of(optim, state, updates=10)))
        updates, state = update(ones, state, params)
        moves.append(-float(updates["embed"][0]))
    after = np.arange(10 - warmup) / (10 - warmup)
    fall = {"constant": 1 + 0 * after, "linear": 1 - after, "cosine": (1 + np.cos(np.pi * after)) / 2}[schedule]
    assert rates == pytest.approx([0.5 * i / warmup for i in range(warmup)] + list(0.5 * fall))
    nadam = optax.nadamw(1.0, weight_decay=0.0)
    steps, own = [], nadam.init(jnp.zeros(()))
    for _ in range(10 if name == "muon" else 0):
        step, own = nadam.update(jnp.ones(()), own, jnp.zeros(()))
        steps.append(-float(step))
    assert moves == pytest.approx(np.multiply(rates, steps or 1.0), rel=1e-3) and moves[-1] > 0


def test_a_schedule_falls_over_the_updates_of_all_turns():
    c = config.apply_recipe(config.default(), "lopti")
    c.train.steps, c.train.updates_per_rollout = 5, 4
    assert updates_of(c) == 5 * 4 * 2
    c.train.steps = 0
    assert updates_of(c) == 1
    with pytest.raises(ValueError, match=r"optim\.schedule='cosine' falls over a run's updates"):
        optimizer_of(section(schedule="cosine"))


def test_the_table_of_matrices_has_all_of_them():
    """A leaf of the layers that joins the width with anything else is a matrix; its inputs are what x · W contracts."""
    for name, axes in logical_axes(CFG)["layers"].items():
        is_matrix = "embed" in axes and len(axes) > 2
        assert (name in INPUTS) == is_matrix, name
        if is_matrix:
            inputs = axes[1 : 1 + INPUTS[name]]
            assert inputs == (("embed",) if name in ("q", "k", "v", "gate", "up") else axes[1:-1]), name


def alone(name):
    """The same optimiser of one plain matrix, as Optax has it."""
    if name == "muon":
        return muon(0.1, consistent_rms=ADAM_RMS)
    return optax.adafactor(0.1, multiply_by_parameter_scale=False)


@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_each_matrix_of_each_layer_is_moved_as_if_it_were_alone(name):
    optimizer = optimizer_of(section(name=name, lr=0.1, grad_clip=1e9), 1)
    params, grads = tree(0), [tree(1), tree(2)]
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    single, one_update = alone(name), jax.jit(alone(name).update)
    for g in grads:
        updates, state = update(g, state, params)
    for leaf, shape in (("q", (128, 128)), ("o", (128, 128)), ("gate", (128, 256)), ("down", (256, 128))):
        for layer in range(CFG.n_layers):
            matrix = params["layers"][leaf][layer].reshape(shape)
            one = single.init(matrix)
            for g in grads:
                expected, one = one_update(g["layers"][leaf][layer].reshape(shape), one, matrix)
            np.testing.assert_allclose(updates["layers"][leaf][layer].reshape(shape), expected, rtol=2e-4, atol=1e-6)


def test_adafactor_keeps_sums_of_rows_and_columns():
    params = abstract_params(CFG)
    state = jax.eval_shape(optimizer_of(section(name="adafactor"), 1).init, params)
    kept, whole = (sum(x.size for x in jax.tree.leaves(t)) for t in (state, params))
    assert kept < 0.05 * whole


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_the_mean_is_kept_in_its_dtype(name):
    kept = jax.eval_shape(optimizer_of(section(name=name, mu_dtype="bfloat16"), 1).init, abstract_params(CFG))
    plain = jax.eval_shape(optimizer_of(section(name=name), 1).init, abstract_params(CFG))
    half = {jax.tree_util.keystr(p) for p, x in jax.tree_util.tree_leaves_with_path(kept) if x.dtype == jnp.bfloat16}
    assert half and all(".mu[" in path for path in half)
    assert {x.dtype for x in jax.tree.leaves(plain)} == {jnp.dtype(jnp.float32), jnp.dtype(jnp.int32)}


@pytest.mark.parametrize("name", NAMES)
def test_adapters_alone_can_be_what_is_moved(name):
    """And a matrix's adapter is two matrices: Muon makes both steps orthogonal."""
    optimizer = optimizer_of(section(name=name, lr=1.0, grad_clip=1e9), 1)
    trained = lora.fresh(lora.adapted(CFG, Lora(4, 8.0, ("q", "o"))), jax.random.key(0))
    uneven = jax.tree.map(lambda x: np.asarray(x) * np.arange(1.0, 1 + x.shape[-1], dtype=np.float32), trained)
    updates, _ = optimizer.update(uneven, optimizer.init(trained), trained)
    assert jax.tree.structure(updates) == jax.tree.structure(trained)
    step, given = (np.linalg.svd(x["layers"]["o_lora_a"][0].reshape(128, 4))[1] for x in (updates, uneven))
    assert step.min() > 0 and given.min() < 0.5 * given.max()
    assert name != "muon" or step.min() > 0.6 * step.max()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_as_large_as_the_parameters_is_split_as_they_are(name):
    optimizer, params = optimizer_of(section(name=name), 1), abstract_params(CFG)
    mesh = make_mesh(2, 2, 2, devices=jax.devices())
    of_params = sharding.param_shardings(CFG, mesh, sharding.rules(CFG, mesh))
    state = jax.eval_shape(optimizer.init, params)
    for x, place in zip(
        jax.tree.leaves(state), jax.tree.leaves(sharding.like_params(state, params, of_params, mesh)), strict=True
    ):
        assert x.size < 2048 or np.prod(place.shard_shape(x.shape)) <= x.size // 2, x.shape


@pytest.mark.parametrize(
    "name, dtype",
    [
        pytest.param(name, dtype, marks=() if (name, dtype) == ("muon", jnp.float32) else pytest.mark.slow)
        for name in NAMES
        for dtype in (jnp.float32, jnp.bfloat16)
    ],
)
def test_eight_devices_move_the_parameters_as_one_does(name, dtype, tmp_path):
    """And the state is saved and comes back bit for bit."""
    optimizer, results = optimizer_of(section(name=name, lr=0.1, schedule="linear"), 9), []
    for shape, devices in (((1, 1, 1), jax.devices()[:1]), ((2, 2, 2), jax.devices())):
        mesh = make_mesh(*shape, devices=devices)
        params, grads = tree(0, dtype), tree(1, dtype)
        of_params = sharding.param_shardings(CFG, mesh, sharding.rules(CFG, mesh))
        abstract = jax.eval_shape(lambda p: optimizer.init(in_float32(p)), params)
        of_state = sharding.like_params(abstract, params, of_params, mesh)

        def step(params, state, grads):
            updates, state = optimizer.update(in_float32(grads), state, in_float32(params))
            return moved(params, updates, jax.random.key(3)), state

        init = jax.jit(lambda p: optimizer.init(in_float32(p)), in_shardings=(of_params,), out_shardings=of_state)
        step = jax.jit(step, in_shardings=(of_params, of_state, of_params), out_shardings=(of_params, of_state))
        state = init(jax.device_put(params, of_params))
        for _ in range(2):
            params, state = step(params, state, grads)
        results.append(in_float32(jax.device_get(params)))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    for one, eight, before in zip(*map(jax.tree.leaves, (*results, in_float32(tree(0, dtype)))), strict=True):
        assert np.any(one != before)
        if dtype == jnp.float32:
            np.testing.assert_allclose(eight, one, atol=1e-5, rtol=1e-5)
        else:  # a sum that differs in its last bit may be rounded to the other side
            assert np.mean(np.abs(eight - one) > 1e-5) < 1e-3
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"state": state, "params": params}, {})
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), (params, state))
    restored, _ = checkpoints.restore({"state": wanted[1], "params": wanted[0]})
    assert_bitwise(restored, {"state": state, "params": params})
