"""The same report for GPUs, by numbers alone: nothing is compiled, what cannot be known without that is left out."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from entropy_rl import config as config_lib
from entropy_rl.model import sharding
from entropy_rl.preflight import chips, flops, programs
from entropy_rl.preflight.advice import advice
from entropy_rl.runtime.mesh import AXES, mesh_shape, sampling_shape


def estimate(c: ConfigDict, topology: chips.Topology) -> dict[str, Any]:
    """Parameters, optimiser, KV cache and activations per GPU, FLOPs of an update and a bound on its time.

    The time is of an update and of scoring its batch before it. Parameters are gathered once for every pass over every
    piece, in compute dtype, their gradient
    reduced once for every piece in float32, and that the GPUs compute meanwhile. Attention counts by its plain
    form, which computes above the diagonal too.
    """
    shape = mesh_shape(**c.mesh.to_dict(), count=topology.size)
    *there, heads_over = other = sampling_shape(shape, c.rollout.tensor)
    config_lib.check_mesh(c, shape[0] * shape[1], there[0] * there[1])
    one = c.copy_and_resolve_references()
    with one.unlocked():
        one.mesh.update(data=1, fsdp=1, tensor=1)
        one.rollout.tensor = 0
        one.model.dtype = "bfloat16" if c.model.dtype == "auto" else c.model.dtype
    run = programs.prepare(one, jax.local_devices()[:1])  # the whole batch on one device that holds nothing
    cfg, chip = run.cfg, topology.chip
    for key, sizes in (("mesh.tensor", shape), ("rollout.tensor", other)):
        sharding.rules(cfg, AbstractMesh(sizes, AXES), key)
    with run.e.on_mesh():
        traced = [run.e.update.trace(*run.update_args)]
        if programs.scored(c):
            traced.append(run.e.score.trace(run.e.abstract_state.params, run.update_args[1]))
    pieces = run.e.plan.micro if run.e.plan.layout == "packed" else c.train.micro_batches
    size = lambda tree: float(sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree)))
    shards, tensor = shape[0] * shape[1], shape[2]
    over = shape[1] * tensor  # parameters are whole along `data`
    state = run.e.abstract_state
    params, optimiser = size(state.params) / over, size(state.opt_state) / over
    width = jnp.dtype(run.e.model.dtype).itemsize
    sequences = c.rollout.prompts * c.rollout.samples // c.train.updates_per_rollout
    length = c.data.max_prompt_len + c.rollout.max_tokens
    rows = -(-sequences // pieces // shards)
    saved = cfg.n_layers * rows * length * cfg.d_model * width * (1 if c.model.remat == "full" else 14)
    # one layer as it is computed: the scores of the plain attention, forward and back, and the mlp. Where the kernel
    # serves (`model/attention.py: cudnn`) a mask for all heads and its gradient stand in their place.
    kernel = width == 2 and cfg.head_dim % 8 == 0 and cfg.head_dim <= 128
    heads, what = (1, "attention's mask") if kernel else (cfg.n_heads / tensor, "attention's scores")
    scores = 2 * (2 if kernel else 4) * rows * length * length * heads
    layer = scores + 4 * rows * length * cfg.d_ff / tensor * width
    done = sum(flops.count(one.jaxpr.jaxpr, programs.trips(run)) for one in traced) / topology.size
    passes = 2 + len(traced)  # scored, forward, back
    wires = pieces * size(state.params) / tensor * (passes * width / 4 + 1) * (shape[1] - 1) / shape[1]
    spent = {"compute": done / chip.flops, "wires": wires / chip.links, "memory": 0.0, "exposed": 0.0}
    spent["step"] = max(spent.values())
    useful = programs.useful_flops(run) / topology.size
    cache = programs.cache_bytes(run) / math.prod(there) / (heads_over if cfg.n_kv_heads % heads_over == 0 else 1)
    # an update holds two trees of gradients; a rollout the parameters again in compute dtype, and where slots move, two
    # caches
    training = 3 * params + optimiser + saved + layer
    again = size(state.params) / (heads_over if c.rollout.tensor else over) * width / 4
    sampling = params + again + optimiser + 2 * cache
    peak = max(training, sampling)
    report: dict[str, Any] = {
        "topology": str(topology),
        "model": c.model.source,
        "mesh": dict(zip(AXES, shape, strict=True)),
        "sampling_mesh": dict(zip(AXES, (*there, heads_over), strict=True)),
        "layout": run.e.plan.layout,
        "remat": c.model.remat,
        "sequences_per_update": sequences,
        "length": length,
        "pieces": pieces,
        "slots": programs.slots(run),
        "capacity": chip.memory,
        "parameters": params,
        "optimiser": optimiser,
        "kv_cache": cache,
        "rows": run.e.plan.rows,
        "useful_flops": useful,
        "update_seconds": spent["step"],
        "mfu": useful / (spent["step"] * chip.flops),
        "programs": {
            "update": {
                "peak": training,
                "activations": saved + layer,
                "largest": [[scores, f"[{rows},{heads:.0f},{length},{length}], forward and back", what]],
                "flops": done,
                "bytes": 0.0,
                "time": spent,
                "collectives": [],
            },
            "rollout": {"peak": sampling},
        },
        "peak": peak,
        "fits": peak <= chip.memory,
        "by": "numbers alone: nothing was compiled",
    }
    report["advice"] = [] if report["fits"] else advice(c, report)
    return report
