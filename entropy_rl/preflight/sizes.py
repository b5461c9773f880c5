"""The sizes of a run that follow from its shapes: bytes per chip, parameters, and the FLOPs that an update needs."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from entropy_rl.model import lora
from entropy_rl.preflight.programs import Run
from entropy_rl.runtime.mesh import TENSOR, row_shards
from entropy_rl.sampling import room


def bytes_per_chip(tree: Any) -> float:
    """Bytes on one chip of a tree of ShapeDtypeStructs with shardings."""
    leaves = jax.tree.leaves(tree)
    return float(sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in leaves))


def cache_bytes(run: Run) -> float:
    """Bytes on one chip of the KV cache at its full length, and of the prompts' keys, as prefilled and in the slots."""
    c, model, mesh = run.config, run.engine.model_config, run.engine.sampling.mesh
    tensor = mesh.shape[TENSOR]
    heads = model.n_kv_heads // tensor if model.n_kv_heads % tensor == 0 else model.n_kv_heads
    prompts = c.rollout.prompts
    prompts_in_slots = prompts if run.slots == run.responses else run.slots
    positions = (prompts + prompts_in_slots) * c.data.max_prompt_len
    positions += run.slots * room.places(c.rollout.max_tokens)
    position_bytes = 2 * model.n_layers * heads * model.head_dim * jnp.dtype(run.engine.model.dtype).itemsize
    return positions * position_bytes / row_shards(mesh)


def numbers(tree: Any) -> int:
    """How many numbers the leaves hold."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def multiplied_parameters(run: Run) -> tuple[int, int]:
    """The number of parameters in products, (trained, frozen): all, except for an embedding that is only looked up."""
    model = run.engine.model_config
    trained, frozen = map(numbers, lora.split(run.engine.abstract_state.params))
    looked_up = 0 if model.tied else model.vocab_size * model.d_model
    return (trained, frozen - looked_up) if frozen else (trained - looked_up, 0)


def useful_flops(run: Run) -> float:
    """FLOPs that an update needs on all chips: 6·parameters·tokens, and attention under a causal mask, both passes.

    A frozen parameter needs 4: its gradient is not computed.
    """
    c, model = run.config, run.engine.model_config
    length = c.data.max_prompt_len + c.rollout.max_tokens - 1
    attention = 6 * length * length * model.n_layers * model.n_heads * model.head_dim
    trained, frozen = multiplied_parameters(run)
    return run.sequences * ((6 * trained + 4 * frozen) * length + attention)
