"""The real programs of a run, with shapes in the place of arrays: the update, and what a rollout is made of.

Shapes: N prompts and B = N·G responses of an update, P prompt and T response positions, W slots of a rollout.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from entropy_rl import config as config_lib
from entropy_rl.model import decode, head, sharding
from entropy_rl.model.shapes import SHAPES
from entropy_rl.model.transformer import ModelConfig
from entropy_rl.runtime.mesh import row_shards
from entropy_rl.sampling import batching as rollouts
from entropy_rl.sampling import slots as sampler
from entropy_rl.training import engine as engine_lib
from entropy_rl.training import step
from entropy_rl.training.packing import Packed


class Run(NamedTuple):
    """A run that has no devices: its engine, and what its update is called with."""

    c: ConfigDict
    cfg: ModelConfig
    e: engine_lib.Engine
    update_args: tuple


class Called(NamedTuple):
    """A program: the function, its arguments, the mesh and the rules it is for, and the bytes of a chip beside it."""

    f: Any
    args: tuple
    on: tuple[Mesh, Any]
    beside: float


def prepare(c: ConfigDict, devices: list) -> Run:
    """The run on these devices, which may be a topology's. Raises ValueError as a run would at its start."""
    config_lib.check(c)
    cfg = SHAPES[c.model.source] if c.model.source in SHAPES else engine_lib.load(c)[0]
    if c.data.max_prompt_len + c.rollout.max_tokens > cfg.max_positions:
        raise ValueError(
            f"data.max_prompt_len={c.data.max_prompt_len} + rollout.max_tokens={c.rollout.max_tokens} must be at most "
            f"the model's {cfg.max_positions} positions"
        )
    e = engine_lib.build(c, cfg, None, engine_lib.mesh_of(c, devices))
    key = jax.eval_shape(lambda: jax.random.key(0))
    first = jax.ShapeDtypeStruct((), jnp.bool_)
    return Run(c, cfg, e, (e.abstract_state, batch(c, e), key, first))


def scored(c: ConfigDict) -> bool:
    """An update's batch is scored before it, by the policy that the rollout was made with (`loop.py: score`)."""
    return c.train.layout == "packed" or c.train.micro_batches > 1 or c.train.updates_per_rollout > 1


def slots(run: Run) -> int:
    """W: `rollout.slots`, or all responses of a step, where a run takes as many as fit."""
    c, shards = run.c, row_shards(run.e.sampling[0])
    B = c.rollout.prompts * c.rollout.samples
    W = min(c.rollout.slots or B, B)
    return B if W == B else max(shards, W // shards * shards)


def rollout(run: Run) -> dict[str, Called]:
    """The programs of a rollout where its cache is largest: weights, the prompts' pass, an admission, a chunk of steps.

    All responses at once: the admission doubles the cache to its full room, prompts are shared by their responses.
    Fewer slots: it refills some at full room, and each slot has a copy of its prompt's keys. The weights that sampling
    reads lie beside the parameters.
    """
    c, model, params = run.c, run.e.model, run.e.abstract_state.params
    here, there = (run.e.mesh, run.e.rules), run.e.sampling
    N, n, T, P = c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens, c.data.max_prompt_len
    W, room = slots(run), rollouts.places(T)
    how = sampler.How(
        sampler.Sampling(c.rollout.temperature, c.rollout.top_p, c.rollout.top_k), T, tuple(run.cfg.eos_ids)
    )
    B = N * n
    shared, before = (n, min(rollouts.ROOM, room)) if W == B else (1, room)
    while 2 * before < room:
        before *= 2

    def read(params, prompt, mask, uid, key):
        return sampler.read_prompts(model, params, prompt, mask, uid, key, n=n)

    def admission(room):
        return lambda ready, prompts, old, keep, row: sampler.admit(
            model, ready, prompts, old, keep, row, n=n, shared=shared, room=room, how=how
        )

    def chunk(ready, old, alive):
        return sampler.advance(model, ready, old, alive, steps=steps_of(run), how=how)

    lies = decode.decode_sharding(model, sharding.param_shardings(run.cfg, *there))
    make_ready = jax.jit(lambda params: decode.decode_weights(model, params, places=P + T), out_shardings=lies)
    key = jax.eval_shape(lambda: jax.random.key(0))
    asked, uid = _ints(N, P), jax.ShapeDtypeStruct((N,), jnp.uint32)
    read_args = (params, *placed(here, (asked, asked, uid, key)))
    with engine_lib.on_mesh(*here, model.dtype):
        shapes = jax.eval_shape(make_ready, params)
        read_shapes = jax.eval_shape(read, *read_args)
    ready = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, lies)
    prompts, row = placed(there, (read_shapes, _ints(W)))
    with engine_lib.on_mesh(*there, model.dtype):
        old, _ = jax.eval_shape(admission(before), ready, prompts, None, row, row)
        admit_args = (ready, prompts, placed(there, old), row, row)
        full, _ = jax.eval_shape(admission(room), *admit_args)
    alive = placed(there, jax.ShapeDtypeStruct((W,), jnp.bool_))
    beside, weights = bytes_per_chip(params), bytes_per_chip(ready)
    called = {
        "prefill": Called(jax.jit(read, keep_unused=True), read_args, here, 0.0),
        "ready": Called(make_ready, (params,), here, bytes_per_chip(placed(here, read_shapes))),
        "admit": Called(jax.jit(admission(room), keep_unused=True), admit_args, there, beside),
        "decode": Called(
            jax.jit(chunk, keep_unused=True, donate_argnums=1),
            (ready, placed(there, full), alive),
            there,
            bytes_per_chip(prompts) + beside,
        ),
    }
    if there[0] is not here[0]:
        move = jax.jit(sampler.constrain), (placed(here, read_shapes),)
        called["move"] = Called(*move, there, beside + weights)
    return called


def placed(on: tuple[Mesh, Any], tree: Any) -> Any:
    """Shapes with the shardings that sampling gives them: rows over the batch's axes, heads over the heads'."""
    mesh, rules = on

    def place(x):
        names = ("batch",)[: x.ndim]
        if x.ndim >= 4:  # keys and values
            names = (None,) * (x.ndim - 4) + ("batch", "kv_heads")
        spec = nn.logical_to_mesh_axes(names, rules) or PartitionSpec()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)


def steps_of(run: Run) -> int:
    """Steps of a chunk."""
    return min(rollouts.CHUNK, max(run.c.rollout.max_tokens - 1, 1))


def batch(c: ConfigDict, e: engine_lib.Engine) -> step.Batch:
    """An update's batch at its full size, in packed rows where the config asks for them."""
    N, P, T = c.rollout.prompts // c.train.updates_per_rollout, c.data.max_prompt_len, c.rollout.max_tokens
    B = N * c.rollout.samples
    packed = None
    if e.plan.layout == "packed":
        N, rows = 0, _ints(e.plan.rows, e.plan.micro, e.plan.length)
        packed = Packed(*[rows] * 5)
    real = jax.ShapeDtypeStruct((B, T), jnp.float32)
    valid, uid = jax.ShapeDtypeStruct((B,), jnp.bool_), jax.ShapeDtypeStruct((B,), jnp.uint32)
    asked, answered = _ints(N, P), _ints(B, T)
    return step.Batch(asked, asked, answered, answered, valid, real, real, real, real, real, uid, packed)


def trips(run: Run) -> dict[str, float]:
    """How often the loops run whose length is data, by their scopes' names, when all responses are full."""
    c, e = run.c, run.e
    T = c.rollout.max_tokens
    pieces = e.plan.micro if e.plan.layout == "packed" else c.train.micro_batches
    sequences = c.rollout.prompts * c.rollout.samples // c.train.updates_per_rollout
    positions = sequences * T / pieces / row_shards(e.mesh)
    return {
        step.PIECES: pieces,
        sampler.STEPS: steps_of(run),
        head.CHUNKS: positions / head.chunk_of(e.model.dtype),
        head.REST: 1,
    }


def bytes_per_chip(tree: Any) -> float:
    """Of a tree of ShapeDtypeStructs with shardings."""
    size = lambda x: x.dtype.itemsize * _product(x.sharding.shard_shape(x.shape))
    return float(sum(size(x) for x in jax.tree.leaves(tree)))


def cache_bytes(run: Run) -> float:
    """KV cache of one chip at its full room, the prompts' keys as they were read, and as the slots have them."""
    c, cfg, (mesh, _) = run.c, run.cfg, run.e.sampling
    tensor = mesh.shape["tensor"]
    heads = cfg.n_kv_heads // tensor if cfg.n_kv_heads % tensor == 0 else cfg.n_kv_heads
    W, N, B = slots(run), c.rollout.prompts, c.rollout.prompts * c.rollout.samples
    rows = N if W == B else W
    positions = (N + rows) * c.data.max_prompt_len + W * rollouts.places(c.rollout.max_tokens)
    one = 2 * cfg.n_layers * heads * cfg.head_dim * jnp.dtype(run.e.model.dtype).itemsize
    return positions * one / row_shards(mesh)


def parameters(run: Run) -> float:
    """Parameters that are multiplied with: all but an embedding that is only looked up."""
    total = sum(_product(x.shape) for x in jax.tree.leaves(run.e.abstract_state.params))
    return total if run.cfg.tied else total - run.cfg.vocab_size * run.cfg.d_model


def useful_flops(run: Run) -> float:
    """6·N·tokens + attention, forward and back, under a causal mask: what an update is for, on all chips."""
    c, cfg = run.c, run.cfg
    S = c.data.max_prompt_len + c.rollout.max_tokens - 1
    sequences = c.rollout.prompts * c.rollout.samples // c.train.updates_per_rollout
    attention = 6 * S * S * cfg.n_layers * cfg.n_heads * cfg.head_dim
    return sequences * (6 * parameters(run) * S + attention)


def _ints(*shape: int):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _product(shape) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
