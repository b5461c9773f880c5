"""The report for GPUs, by arithmetic alone: nothing is compiled, and what only a compiler knows is left out."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from entropy_rl import config as config_lib
from entropy_rl.model import lora, sharding
from entropy_rl.preflight import flops, programs
from entropy_rl.preflight.chips import Topology
from entropy_rl.preflight.cost import Seconds
from entropy_rl.preflight.programs import Run
from entropy_rl.preflight.report import Report
from entropy_rl.preflight.sizes import bytes_per_chip, cache_bytes, numbers
from entropy_rl.runtime.mesh import AXES, mesh_shape, sampling_shape

_Shape = tuple[int, ...]  # sizes of the mesh's axes


class _Activations(NamedTuple):
    """Bytes per GPU that an update holds between its passes.

    Attributes:
        saved: for all layers.
        layer: for the one layer that is being computed.
        scores: the part of `layer` that attention's scores, or their mask, take.
        shape: of the scores.
        label: their name.
    """

    saved: float
    layer: float
    scores: float
    shape: str
    label: str


def estimate(c: ConfigDict, topology: Topology) -> Report:
    """Memory, the FLOPs of an update, and a bound on the time of an update and of scoring its batch before it.

    Raises:
        ValueError: If a run would refuse the configuration.
    """
    shape = mesh_shape(**c.mesh.to_dict(), count=topology.size)
    sampling = sampling_shape(shape, c.rollout.tensor)
    config_lib.check_mesh(c, shape[0] * shape[1], sampling[0] * sampling[1])
    run = programs.prepare(_on_one_device(c, topology), jax.local_devices()[:1])
    for key, sizes in (("mesh.tensor", shape), ("rollout.tensor", sampling)):
        sharding.rules(run.engine.model_config, AbstractMesh(sizes, AXES), key)
    phases = [programs.update(run), *([programs.score(run)] if run.is_scored else [])]
    done = sum(flops.count(phase.trace().jaxpr.jaxpr, programs.trips(run)) for phase in phases) / topology.size
    # an update makes three passes (forward only, forward, backward), scoring its batch makes one
    seconds = _seconds(run, topology, shape, done, passes=2 + len(phases))
    activations = _activations(run, shape)
    state = run.engine.abstract_state
    params, trained, optimiser, ref = (  # whole along `data`
        bytes_per_chip(tree) / (shape[1] * shape[2])
        for tree in (state.params, lora.split(state.params)[0], state.opt_state, state.ref)
    )
    cache = _cache(run, sampling)
    # an update holds two trees of gradients, a measured one the old parameters as well
    update_peak = params + 2 * trained + optimiser + ref + activations.saved + activations.layer
    more = {"measured update": {"peak": update_peak + trained}} if c.measure.every else {}
    if c.warmup.updates:
        lesson = _activations(programs.warm_up(run), shape)
        more["warm-up update"] = {"peak": params + 2 * trained + optimiser + lesson.saved + lesson.layer}
    # a rollout holds the parameters again in the compute dtype and, while slots move, two caches
    rollout_peak = params + _sampling_weights(run, c.rollout.tensor, shape, sampling) + optimiser + ref + 2 * cache
    return Report.of(
        run,
        topology,
        mesh=dict(zip(AXES, shape, strict=True)),
        sampling_mesh=dict(zip(AXES, sampling, strict=True)),
        parameters=params,
        optimiser=optimiser,
        kv_cache=cache,
        programs={
            "update": {
                "peak": update_peak,
                "activations": activations.saved + activations.layer,
                "largest": [[activations.scores, activations.shape, activations.label]],
                "flops": done,
                "bytes": 0.0,
                "time": seconds.to_json(),
                "collectives": [],
            },
            **more,
            "rollout": {"peak": rollout_peak},
        },
        update_seconds=seconds.step,
        by="numbers alone: nothing was compiled",
    )


def _on_one_device(c: ConfigDict, topology: Topology) -> ConfigDict:
    """The configuration of the same batch on one device, which traces it and holds nothing."""
    auto = "bfloat16" if topology.chip.bfloat16 else "float32"
    one = c.copy_and_resolve_references()
    with one.unlocked():
        one.mesh.update(data=1, fsdp=1, tensor=1)
        one.rollout.tensor = 0
        one.model.dtype = auto if c.model.dtype == "auto" else c.model.dtype
    return one


def _activations(run: Run, shape: _Shape) -> _Activations:
    """Attention counts in its plain form, whose scores are kept for both passes.

    If cuDNN's kernel serves (`model/attention.py`), a mask for all heads and its gradient take the scores' place.
    """
    model, width = run.engine.model_config, _width(run)
    data, fsdp, tensor = shape
    length = run.config.data.max_prompt_len + run.config.rollout.max_tokens
    rows = -(-run.sequences // run.pieces // (data * fsdp))
    tensors_per_layer = 1 if run.config.model.remat == "full" else 14
    saved = model.n_layers * rows * length * model.d_model * width * tensors_per_layer
    heads: float
    if width == 2 and model.head_dim % 8 == 0 and model.head_dim <= 128:
        heads, number_bytes, label = 1, 2, "attention's mask"
    else:
        heads, number_bytes, label = model.n_heads / tensor, 4, "attention's scores"
    scores = 2 * number_bytes * rows * length * length * heads
    layer = scores + 4 * rows * length * model.d_ff / tensor * width
    return _Activations(saved, layer, scores, f"[{rows},{heads:.0f},{length},{length}], forward and back", label)


def _seconds(run: Run, topology: Topology, shape: _Shape, done: float, passes: int) -> Seconds:
    """The time of `done` FLOPs per GPU, while parameters are gathered and their gradient is reduced.

    For every piece, each pass gathers the parameters once in the compute dtype, and the gradient of the trained ones is
    reduced once in their own. Attention counts in its plain form, which computes above the diagonal too.
    """
    _, fsdp, tensor = shape
    params = run.engine.abstract_state.params
    pieces = passes * numbers(params) * _width(run) + bytes_per_chip(lora.split(params)[0])
    sent = run.pieces * pieces / tensor * (fsdp - 1) / fsdp
    return Seconds(compute=done / topology.chip.flops, memory=0.0, wires=sent / topology.chip.links, exposed=0.0)


def _sampling_weights(run: Run, rollout_tensor: int, shape: _Shape, sampling: _Shape) -> float:
    """Bytes per GPU of the weights that sampling reads: gathered over fsdp if `rollout.tensor` is set."""
    parts = sampling[2] if rollout_tensor else shape[1] * shape[2]
    return numbers(run.engine.abstract_state.params) / parts * _width(run)


def _cache(run: Run, sampling: _Shape) -> float:
    """Bytes per GPU of the KV cache. Its heads are split over `tensor` if their number allows it."""
    data, fsdp, tensor = sampling
    return cache_bytes(run) / (data * fsdp) / (tensor if run.engine.model_config.n_kv_heads % tensor == 0 else 1)


def _width(run: Run) -> int:
    """Bytes of a number in the compute dtype."""
    return jnp.dtype(run.engine.model.dtype).itemsize
