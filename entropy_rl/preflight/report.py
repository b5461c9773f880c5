"""What a run would need and how long its programs would take: figures, as text or JSON."""

import re
import time
from typing import Any

import jax
from absl import logging
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from entropy_rl.preflight import chips, collectives, flops, hlo, numbers, programs, traffic
from entropy_rl.preflight.advice import advice
from entropy_rl.training import engine as engine_lib

_GB = 1e9
_TIMES = ("flops", "bytes", "time", "collective_bytes", "collectives")  # the keys of `times`


def preflight(c: ConfigDict, topology: chips.Topology) -> dict[str, Any]:
    """Compiles the run's programs for the topology, where it is of TPUs, and says per chip what they need.

    Raises:
        ValueError: a config that a run would refuse; no libtpu, or one that is not of this JAX.
    """
    if not topology.is_tpu:
        return numbers.estimate(c, topology)
    run = programs.prepare(c, devices(topology))
    state = run.e.abstract_state
    params, optimiser = programs.bytes_per_chip(state.params), programs.bytes_per_chip(state.opt_state)
    cache = programs.cache_bytes(run)
    report: dict[str, Any] = {
        "topology": str(topology),
        "model": c.model.source,
        "mesh": dict(run.e.mesh.shape),
        "sampling_mesh": dict(run.e.sampling[0].shape),
        "layout": run.e.plan.layout,
        "remat": c.model.remat,
        "sequences_per_update": c.rollout.prompts * c.rollout.samples // c.train.updates_per_rollout,
        "length": c.data.max_prompt_len + c.rollout.max_tokens,
        "pieces": run.e.plan.micro if run.e.plan.layout == "packed" else c.train.micro_batches,
        "rows": run.e.plan.rows,
        "slots": programs.slots(run),
        "capacity": topology.chip.memory,
        "parameters": params,
        "optimiser": optimiser,
        "kv_cache": cache,
        "programs": {},
    }
    here = run.e.mesh, run.e.rules
    report["useful_flops"] = programs.useful_flops(run) / topology.size
    training = {"update": programs.Called(run.e.update, run.update_args, here, 0.0)}
    if programs.scored(c):
        training["score"] = programs.Called(run.e.score, (state.params, run.update_args[1]), here, optimiser)
    found = {name: look_at(run, topology, name, called) for name, called in training.items()}
    report["programs"] = found | {"rollout": rolled_out(run, topology, optimiser)}
    if all("time" in one for one in found.values()):
        report["update_seconds"] = sum(one["time"]["step"] for one in found.values())
        report["mfu"] = report["useful_flops"] / (report["update_seconds"] * topology.chip.flops)
    report["peak"] = max(p["peak"] for p in report["programs"].values())
    report["fits"] = report["peak"] <= topology.chip.memory
    report["advice"] = [] if report["fits"] else advice(c, report)
    return report


def devices(topology: chips.Topology) -> list:
    """The topology's devices, which can be compiled for and nothing else."""
    try:
        return list(topologies.get_topology_desc(str(topology), "tpu").devices)
    except Exception as error:  # the loader of the library raises its own
        raise ValueError(
            f"--topology={topology}: the TPU's compiler could not be had or does not know this shape ({error}); "
            f'it comes with pip install "jax[tpu]=={jax.__version__}"'
        ) from error


def rolled_out(run: programs.Run, topology: chips.Topology, resident: float) -> dict[str, Any]:
    """Compiles the programs of a rollout: the memory of the one that takes most, and the time of each, decode's a step.

    The whole: the prompts' pass, weights and prompts to where slots read them, then as many rounds as there are
    responses for a slot, all at full length, each with an admission. `resident` bytes lie beside it on every chip.
    """
    found = {}
    for name, called in programs.rollout(run).items():
        steps = programs.steps_of(run) if name == "decode" else 1
        found[name] = look_at(run, topology, name, called._replace(beside=called.beside + resident), steps)
    worst = max(found, key=lambda name: found[name]["peak"])
    memory = ("arguments", "activations", "resident", "peak", "largest", "error")
    out = {"worst": worst} | {k: found[worst][k] for k in memory if k in found[worst]}
    out["compile_seconds"] = sum(one.get("compile_seconds", 0.0) for one in found.values())
    if all("time" in one for one in found.values()):
        out |= {name: {k: one[k] for k in ("peak", *_TIMES)} for name, one in found.items()}
        spent = {name: one["time"]["step"] for name, one in found.items()}
        rounds = -(-run.c.rollout.prompts * run.c.rollout.samples // programs.slots(run))
        one_round = spent["admit"] + (run.c.rollout.max_tokens - 1) * spent["decode"]
        once = sum(spent[name] for name in found if name not in ("admit", "decode"))
        out["time"] = {"step": once + rounds * one_round}
    return out


def look_at(
    run: programs.Run, topology: chips.Topology, name: str, called: programs.Called, steps: int = 1
) -> dict[str, Any]:
    """Compiles one program. Its time is that of one of so many steps."""
    logging.info("compiling: %s", name)
    began, resident = time.monotonic(), called.beside
    try:
        with engine_lib.on_mesh(*called.on, run.e.model.dtype):
            traced = called.f.trace(*called.args)
            compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        return {"peak": needed(str(error), topology.chip.memory) + resident, "error": str(error)[:4000]}
    memory = compiled.memory_analysis()
    program = hlo.read(compiled.as_text())
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    found: dict[str, Any] = {
        "arguments": memory.argument_size_in_bytes,
        "activations": memory.temp_size_in_bytes,
        "resident": resident,
        "peak": peak + memory.temp_size_in_bytes + resident,
        "largest": [list(x) for x in traffic.largest(program)],
    }
    found |= times(_each(measure(run, topology, called.on[0], program, traced.jaxpr), steps))
    return found | {"compile_seconds": time.monotonic() - began}


def measure(run, topology, mesh: Mesh, program: hlo.Program, jaxpr) -> dict[str, Any]:
    """Per chip: FLOPs, bytes and seconds of each kind."""
    trips, chip = programs.trips(run), topology.chip
    done = flops.count(jaxpr.jaxpr, trips) / topology.size
    moved = traffic.bytes_moved(program, trips)
    sums: dict[str, Any] = {}
    overlapped = exposed = 0.0
    for one in collectives.find(program, trips):
        spent = one.times * collectives.seconds(one, mesh, topology)
        overlapped, exposed = overlapped + spent * one.overlapped, exposed + spent * (not one.overlapped)
        name = f"{one.kind} {collectives.axes(one, mesh)}"
        count, sent, secs = sums.get(name, (0.0, 0.0, 0.0))
        sums[name] = (count + one.times, sent + one.times * one.sent(), secs + spent)
    return {
        "flops": done,
        "bytes": moved,
        "compute": done / chip.flops,
        "memory": moved / chip.bandwidth,
        "wires": overlapped,
        "exposed": exposed,
        "collectives": sums,
    }


def times(m: dict[str, Any]) -> dict[str, Any]:
    """The figures of a program or a part of one: t = max(compute, memory, wires) + exposed collectives."""
    spent = {k: m[k] for k in ("compute", "memory", "wires", "exposed")}
    spent["step"] = max(m["compute"], m["memory"], m["wires"]) + m["exposed"]
    table = [dict(what=k, times=n, bytes=b, seconds=s) for k, (n, b, s) in m["collectives"].items() if n]
    return {
        "flops": m["flops"],
        "bytes": m["bytes"],
        "time": spent,
        "collective_bytes": sum(row["bytes"] for row in table),
        "collectives": sorted(table, key=lambda row: -row["bytes"]),
    }


def _each(m: dict[str, Any], steps: int) -> dict[str, Any]:
    """What one step of so many has a share in."""
    part = lambda v: {k: tuple(x / steps for x in row) for k, row in v.items()} if isinstance(v, dict) else v / steps
    return {k: part(v) for k, v in m.items()}


def needed(message: str, capacity: float) -> float:
    """Bytes that the compiler says a program would have used; a little over the capacity where it does not say."""
    found = re.search(r"([\d.]+)([KMGT])\)? (?:of [\d.]+[KMGT] hbm|exceeds available HBM)", message)
    return float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1) if found else capacity * 1.01


def text(r: dict[str, Any]) -> str:
    """The report for a terminal."""
    gb = lambda x: f"{x / _GB:8.2f} GB"
    lines = [
        f"{r['model']} on {r['topology']}, mesh {r['mesh']}, layout {r['layout']}, remat {r['remat']}",
        f"sampling: mesh {r['sampling_mesh']}, {r['slots']} slots",
        f"an update: {r['sequences_per_update']} sequences of up to {r['length']} tokens in {r['pieces']} pieces",
        "",
        "per chip",
        f"  parameters        {gb(r['parameters'])}",
        f"  optimiser         {gb(r['optimiser'])}",
        f"  KV cache          {gb(r['kv_cache'])}",
    ]
    for name, p in r["programs"].items():
        if "error" in p:
            lines += ["", f"{name}: does not fit: {p['error'].splitlines()[0]}", f"  peak              {gb(p['peak'])}"]
            continue
        if "activations" in p:
            most = f", at its largest in {p['worst']}" if "worst" in p else ""
            lines += ["", name + most, f"  activations       {gb(p['activations'])}"]
        lines += [f"  peak              {gb(p['peak'])}  of {r['capacity'] / _GB:.1f} GB"]
        lines += [f"    {gb(b)}  {shape}  {label[:90]}" for b, shape, label in p.get("largest", [])]
        for part in ("", "prefill", "ready", "move", "admit", "decode"):
            if "flops" in (m := p.get(part, {}) if part else p):
                lines += _spent(part or name, m)
        if name == "rollout" and "time" in p:
            lines += [f"  whole rollout     {p['time']['step']:8.1f} s, every response at full length"]
    if "mfu" in r:
        both = " and its batch scored" if "score" in r["programs"] else ""
        lines += ["", f"an update{both}: {r['update_seconds']:.4g} s, estimated MFU {r['mfu']:.1%}"]
    if "by" in r:
        lines += ["", r["by"]]
    lines += ["", "fits" if r["fits"] else "does not fit; change:", *(f"  {line}" for line in r["advice"])]
    return "\n".join(lines)


def _spent(name: str, m: dict[str, Any]) -> list[str]:
    t = m["time"]
    lines = [
        f"  {name}: {m['flops'] / 1e12:.3g} TFLOP, {m['bytes'] / _GB:.3g} GB moved, {t['step']:.4g} s = max(compute "
        f"{t['compute']:.3g}, memory {t['memory']:.3g}, wires {t['wires']:.3g}) + exposed {t['exposed']:.3g}"
    ]
    for row in m["collectives"]:
        lines.append(
            f"    {row['what']:32} {row['times']:8.0f} times {row['bytes'] / _GB:9.3f} GB {row['seconds']:8.4f} s"
        )
    return lines
