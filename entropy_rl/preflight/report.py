"""What a run would need and how long its programs would take: figures, as text or JSON."""

import re
import time
from typing import Any

import jax
from absl import logging
from jax.experimental import topologies
from ml_collections import ConfigDict

from entropy_rl.preflight import chips, collectives, flops, hlo, numbers, programs
from entropy_rl.preflight.advice import advice

_GB = 1e9


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
        "layout": run.e.plan.layout,
        "remat": c.model.remat,
        "sequences_per_update": c.rollout.prompts * c.rollout.samples // c.train.updates_per_rollout,
        "length": c.data.max_prompt_len + c.rollout.max_tokens,
        "pieces": run.e.plan.micro if run.e.plan.layout == "packed" else c.train.micro_batches,
        "rollout_parts": c.rollout.parts,
        "capacity": topology.chip.memory,
        "parameters": params,
        "optimiser": optimiser,
        "kv_cache": cache,
        "programs": {},
    }
    with run.e.on_mesh():
        update = look_at(run, topology, run.e.update, run.update_args, 0.0)
        update["useful_flops"] = programs.useful_flops(run) / topology.size
        rollout = look_at(run, topology, run.e.rollout, run.rollout_args, optimiser)
    if "time" in update:
        update["mfu"] = update["useful_flops"] / (update["time"]["step"] * topology.chip.flops)
    report["programs"] = {"update": update, "rollout": rollout}
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


def look_at(run: programs.Run, topology: chips.Topology, jitted, args, resident: float) -> dict[str, Any]:
    """Compiles one program; `resident` bytes lie beside it on every chip."""
    logging.info("compiling the %s", "rollout" if jitted is run.e.rollout else "update")
    began = time.monotonic()
    traced = jitted.trace(*args)
    try:
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
        "largest": [list(x) for x in program.largest()],
    }
    if jitted is run.e.rollout:  # one pass over the prompts, then the loop's body: what a second decode step adds
        none, one = (measure(run, topology, program, traced.jaxpr, n) for n in (0, 1))
        found["prefill"], found["decode"] = times(none), times({k: _minus(one[k], none[k]) for k in one})
        steps = run.c.rollout.max_tokens - 1
        one_call = found["prefill"]["time"]["step"] + steps * found["decode"]["time"]["step"]
        found["time"] = {"step": run.c.rollout.parts * one_call}
    else:
        found |= times(measure(run, topology, program, traced.jaxpr, 1))
    return found | {"compile_seconds": time.monotonic() - began}


def measure(run, topology, program: hlo.Program, jaxpr, decode: int) -> dict[str, Any]:
    """Per chip: FLOPs, bytes and seconds of each kind, with the decoding loop run `decode` times."""
    trips, chip, mesh = programs.trips(run, decode), topology.chip, run.e.mesh
    done = flops.count(jaxpr.jaxpr, trips) / topology.size
    moved = program.traffic(trips)
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


def _minus(a, b):
    if isinstance(a, dict):
        return {k: tuple(x - y for x, y in zip(v, b.get(k, (0.0, 0.0, 0.0)), strict=True)) for k, v in a.items()}
    return a - b


def needed(message: str, capacity: float) -> float:
    """Bytes that the compiler says a program would have used; a little over the capacity where it does not say."""
    found = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message)
    return float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1) if found else capacity * 1.01


def text(r: dict[str, Any]) -> str:
    """The report for a terminal."""
    gb = lambda x: f"{x / _GB:8.2f} GB"
    lines = [
        f"{r['model']} on {r['topology']}, mesh {r['mesh']}, layout {r['layout']}, remat {r['remat']}",
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
            lines += ["", name, f"  activations       {gb(p['activations'])}"]
        lines += [f"  peak              {gb(p['peak'])}  of {r['capacity'] / _GB:.1f} GB"]
        lines += [f"    {gb(b)}  {shape}  {label[:90]}" for b, shape, label in p.get("largest", [])]
        for part in ("", "prefill", "decode"):
            if "flops" in (m := p.get(part, {}) if part else p):
                lines += _spent(part or name, m)
        if "mfu" in p:
            lines += [f"  estimated MFU     {p['mfu']:8.1%}"]
        if name == "rollout" and "time" in p:
            lines += [f"  whole rollout     {p['time']['step']:8.1f} s, every response at full length"]
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
