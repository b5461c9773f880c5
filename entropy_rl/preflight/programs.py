"""The real programs of a run, with shapes in the place of arrays: the update and the rollout.

Shapes: N prompts and B = N·G responses of an update, P prompt and T response positions.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from entropy_rl import config as config_lib
from entropy_rl import engine as engine_lib
from entropy_rl import head, step
from entropy_rl.model import sharding
from entropy_rl.model.shapes import SHAPES
from entropy_rl.model.transformer import ModelConfig
from entropy_rl.packing import Packed


class Run(NamedTuple):
    """A run that has no devices: its engine, and what its two programs are called with."""

    c: ConfigDict
    cfg: ModelConfig
    e: engine_lib.Engine
    update_args: tuple
    rollout_args: tuple


def prepare(c: ConfigDict, devices: list) -> Run:
    """The run on these devices, which may be a topology's. Raises ValueError as a run would at its start."""
    config_lib.check(c)
    cfg = SHAPES[c.model.source] if c.model.source in SHAPES else engine_lib.load(c)[0]
    if c.data.max_prompt_len + c.rollout.max_tokens > cfg.max_positions:
        raise ValueError(
            f"data.max_prompt_len={c.data.max_prompt_len} + rollout.max_tokens={c.rollout.max_tokens} must be at most "
            f"the model's {cfg.max_positions} positions"
        )
    mesh = sharding.make_mesh(**c.mesh.to_dict(), devices=devices)
    config_lib.check_mesh(c, mesh.shape["data"] * mesh.shape["fsdp"])
    e = engine_lib.build(c, cfg, None, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    prompts = c.rollout.prompts // c.rollout.parts
    asked = _ints(prompts, c.data.max_prompt_len)
    first = jax.ShapeDtypeStruct((), jnp.bool_)
    return Run(
        c,
        cfg,
        e,
        (e.abstract_state, batch(c, e), key, first),
        (e.abstract_state.params, asked, asked, jax.ShapeDtypeStruct((prompts,), jnp.uint32), key),
    )


def batch(c: ConfigDict, e: engine_lib.Engine) -> step.Batch:
    """An update's batch at its full size, in packed rows unless the config asks for groups."""
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


def trips(run: Run, decode: float):
    """How often the loops run whose length is data, by the function that wrote them; all responses are full.

    Any other such loop, of which there is none around the model, counts once.
    """
    c, e = run.c, run.e
    T = c.rollout.max_tokens
    pieces = e.plan.micro if e.plan.layout == "packed" else c.train.micro_batches
    shards = e.mesh.shape["data"] * e.mesh.shape["fsdp"]
    sequences = c.rollout.prompts * c.rollout.samples // c.train.updates_per_rollout
    positions = sequences * T / pieces / shards
    table: dict[str, float] = {
        "score": pieces,
        "pull_back": pieces,
        "rollout": decode,
        "_over_chunks": positions / head.chunk_of(e.model.dtype),
        "logp_and_entropy": positions / head.chunk_of(e.model.dtype),  # the same loop, in the pass back
        head.REST: 1,
    }
    return lambda author: table.get(author, 1.0)


def bytes_per_chip(tree: Any) -> float:
    """Of a tree of ShapeDtypeStructs with shardings."""
    size = lambda x: jnp.dtype(x.dtype).itemsize * _product(x.sharding.shard_shape(x.shape))
    return float(sum(size(x) for x in jax.tree.leaves(tree)))


def cache_bytes(run: Run) -> float:
    """KV cache of one chip while the responses of a call are decoded, and the prompts' keys that they share."""
    c, cfg, mesh = run.c, run.cfg, run.e.mesh
    tensor = mesh.shape["tensor"]
    heads = cfg.n_kv_heads // tensor if cfg.n_kv_heads % tensor == 0 else cfg.n_kv_heads
    positions = (
        c.rollout.prompts // c.rollout.parts * (c.data.max_prompt_len + c.rollout.samples * (c.rollout.max_tokens - 1))
    )
    one = 2 * cfg.n_layers * heads * cfg.head_dim * jnp.dtype(run.e.model.dtype).itemsize
    return positions * one / (mesh.shape["data"] * mesh.shape["fsdp"])


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
