"""The report for TPUs: the programs of a run are compiled for a topology that need not be present."""

import functools
import re
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import logging
from jax.experimental import topologies
from ml_collections import ConfigDict

from entropy_rl.preflight import hlo, programs, rollout, traffic
from entropy_rl.preflight.chips import Topology
from entropy_rl.preflight.cost import cost_of
from entropy_rl.preflight.programs import Phase, Run
from entropy_rl.preflight.report import Report
from entropy_rl.preflight.sizes import bytes_per_chip, cache_bytes

_COST = ("flops", "bytes", "time", "collective_bytes", "collectives")  # the keys of `Cost.to_json`
_MEMORY = ("arguments", "activations", "resident", "peak", "largest", "error")


def compile_for(c: ConfigDict, topology: Topology, first_failure: bool = False) -> Report:
    """Compiles the programs of a run for TPUs, and reports what they need per chip.

    Args:
        c: the configuration.
        topology: the chips.
        first_failure: what comes after the first program that does not fit is left out.

    Raises:
        ValueError: If a run would refuse the configuration, or if libtpu is missing or made for another JAX.
    """
    run = programs.prepare(c, devices(topology))
    state = bytes_per_chip(run.engine.abstract_state)
    if state > topology.chip.memory:
        error = f"the state alone takes {state / 1e9:.1f} GB: nothing was compiled"
        return _report(run, topology, {"update": {"peak": state, "error": error}}, None)
    found: dict[str, dict[str, Any]] = {}
    for name, compiled in _programs(run, topology).items():
        found[name] = compiled()
        if first_failure and found[name]["peak"] > topology.chip.memory:
            break
    scored = ("update", "score") if run.is_scored else ("update",)
    known = all("time" in found.get(name, {}) for name in scored)
    return _report(run, topology, found, sum(found[name]["time"]["step"] for name in scored) if known else None)


def _programs(run: Run, topology: Topology) -> dict[str, Callable[[], dict[str, Any]]]:
    """What compiles each program of a run and reports its figures, in order."""
    c, state = run.config, run.engine.abstract_state
    beside = bytes_per_chip(state.opt_state) + bytes_per_chip(state.ref)  # what all but the updates leave alone

    def update(run: Run, name: str, measured: bool = False) -> Callable[[], dict[str, Any]]:
        return lambda: figures(run, topology, name, programs.update(run, measured))

    found = {"update": update(run, "update")}
    if run.is_scored:
        scoring = programs.score(run)._replace(resident=beside)
        found["score"] = lambda: figures(run, topology, "score", scoring)
    if c.measure.every:
        found["measured update"] = update(run, "measured update", measured=True)
    if c.warmup.updates:
        found["warm-up update"] = update(programs.warm_up(run), "warm-up update")
    found["rollout"] = functools.partial(rollout_figures, run, topology, beside)
    for batch in programs.evaluations(run):
        name = "evaluation, greedy" if batch.config.rollout.samples == 1 else "evaluation, sampled"
        found[name] = functools.partial(rollout_figures, batch, topology, beside)
    return found


def _report(run: Run, topology: Topology, found: dict[str, dict[str, Any]], update_seconds: float | None) -> Report:
    engine = run.engine
    return Report.of(
        run,
        topology,
        mesh=dict(engine.training.mesh.shape),
        sampling_mesh=dict(engine.sampling.mesh.shape),
        parameters=bytes_per_chip(engine.abstract_state.params),
        optimiser=bytes_per_chip(engine.abstract_state.opt_state),
        kv_cache=cache_bytes(run),
        programs=found,
        update_seconds=update_seconds,
    )


def devices(topology: Topology) -> list[jax.Device]:
    """The topology's devices, which serve for compiling only.

    Raises:
        ValueError: If libtpu cannot be loaded or does not know the topology.
    """
    # chips of one host, 2×2 in a full slice; a slice of fewer is a part of one host
    host = [*map(min, topology.shape, (2, 2, 1)), 1][:3]
    try:
        return list(topologies.get_topology_desc(str(topology), "tpu", chips_per_host_bounds=host).devices)
    except Exception as error:  # libtpu's loader has its own
        raise ValueError(
            f"--topology={topology}: the TPU's compiler could not be loaded or does not know this shape ({error}); "
            f'it comes with pip install "jax[tpu]=={jax.__version__}"'
        ) from error


def rollout_figures(run: Run, topology: Topology, resident: float) -> dict[str, Any]:
    """Compiles the phases of a rollout: the memory of the one that needs most, and the cost of each (decode: per step).

    In the time of the whole, each slot makes its share of the responses one after another, all at full length: every
    response takes an admission and its steps. The other phases run once.

    Args:
        run: the run.
        topology: the chips.
        resident: bytes of the rest of the state, which every chip holds meanwhile.
    """
    found = {}
    for name, phase in rollout.phases(run).items():
        beside = phase._replace(resident=phase.resident + resident)
        found[name] = figures(run, topology, name, beside, run.chunk if name == "decode" else 1)
    worst = max(found, key=lambda name: found[name]["peak"])
    out = {"worst": worst} | {key: found[worst][key] for key in _MEMORY if key in found[worst]}
    out["compile_seconds"] = sum(one.get("compile_seconds", 0.0) for one in found.values())
    if all("time" in one for one in found.values()):
        out |= {name: {key: one[key] for key in ("peak", *_COST)} for name, one in found.items()}
        seconds = {name: one["time"]["step"] for name, one in found.items()}
        turns = -(-run.responses // run.slots)
        turn = seconds["admit"] + (run.config.rollout.max_tokens - 1) * seconds["decode"]
        once = sum(spent for name, spent in seconds.items() if name not in ("admit", "decode"))
        out["time"] = {"step": once + turns * turn}
    return out


def figures(run: Run, topology: Topology, name: str, phase: Phase, steps: int = 1) -> dict[str, Any]:
    """Compiles one phase, and reports its memory and its cost per chip.

    Args:
        run: the run.
        topology: the chips.
        name: for the log.
        phase: the function.
        steps: that the phase makes; the cost is that of one step.
    """
    logging.info("compiling: %s", name)
    began = time.monotonic()
    try:
        traced, compiled = phase.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        return {"peak": needed(str(error), topology.chip.memory) + phase.resident, "error": str(error)[:4000]}
    memory, source = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and source is not None, "every compiler of XLA has both"
    program = hlo.read(source)
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    cost = cost_of(program, traced.jaxpr.jaxpr, programs.trips(run), phase.layout.mesh, topology)
    return {
        "arguments": memory.argument_size_in_bytes,
        "activations": memory.temp_size_in_bytes,
        "resident": phase.resident,
        "peak": peak + memory.temp_size_in_bytes + phase.resident,
        "largest": [list(buffer) for buffer in traffic.largest(program)],
        **cost.per_step(steps).to_json(),
        "compile_seconds": time.monotonic() - began,
    }


def needed(message: str, capacity: float) -> float:
    """Bytes that a program would need, by the compiler's message; if it has no number, 1% more than the capacity."""
    found = re.search(r"([\d.]+)([KMGT])\)? (?:of [\d.]+[KMGT] hbm|exceeds available HBM)", message)
    return float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1) if found else capacity * 1.01
