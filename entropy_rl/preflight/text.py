"""A report as text for a terminal."""

from typing import Any

from entropy_rl.preflight.report import Report

_GB = 1e9
_PHASES = ("prefill", "ready", "move", "admit", "decode")


def text(report: Report) -> str:
    """The whole report."""
    lines = [*_head(report)]
    for name, program in report.programs.items():
        lines += _program(name, program, report.capacity)
    if report.mfu is not None:
        both = " and its batch scored" if "score" in report.programs else ""
        lines += ["", f"an update{both}: {report.update_seconds:.4g} s, estimated MFU {report.mfu:.1%}"]
    if report.by:
        lines += ["", report.by]
    lines += ["", "fits" if report.fits else "does not fit; change:", *(f"  {line}" for line in report.advice)]
    return "\n".join(lines)


def _head(report: Report) -> list[str]:
    return [
        f"{report.model} on {report.topology}, mesh {report.mesh}, layout {report.layout}, remat {report.remat}",
        f"sampling: mesh {report.sampling_mesh}, {report.slots} slots",
        f"an update: {report.sequences_per_update} sequences of up to {report.length} tokens in {report.pieces} pieces",
        "",
        "per chip",
        f"  parameters        {_gb(report.parameters)}",
        f"  optimiser         {_gb(report.optimiser)}",
        f"  KV cache          {_gb(report.kv_cache)}",
    ]


def _program(name: str, program: dict[str, Any], capacity: float) -> list[str]:
    peak = f"  peak              {_gb(program['peak'])}"
    if "error" in program:
        return ["", f"{name}: does not fit: {program['error'].splitlines()[0]}", peak]
    lines = []
    if "activations" in program:
        worst = f", at its largest in {program['worst']}" if "worst" in program else ""
        lines += ["", name + worst, f"  activations       {_gb(program['activations'])}"]
    lines.append(f"{peak}  of {capacity / _GB:.1f} GB")
    lines += [f"    {_gb(size)}  {shape}  {label[:90]}" for size, shape, label in program.get("largest", [])]
    if "flops" in program:
        lines += _cost(name, program)
    for phase in _PHASES:
        if phase in program:
            lines += _cost(phase, program[phase])
    if "worst" in program and "time" in program:
        lines.append(f"  the whole         {program['time']['step']:8.1f} s, every response at full length")
    return lines


def _cost(name: str, cost: dict[str, Any]) -> list[str]:
    seconds = cost["time"]
    lines = [
        f"  {name}: {cost['flops'] / 1e12:.3g} TFLOP, {cost['bytes'] / _GB:.3g} GB moved, {seconds['step']:.4g} s = "
        f"max(compute {seconds['compute']:.3g}, memory {seconds['memory']:.3g}, wires {seconds['wires']:.3g}) + "
        f"exposed {seconds['exposed']:.3g}"
    ]
    for row in cost["collectives"]:
        lines.append(
            f"    {row['what']:32} {row['times']:8.0f} times {row['bytes'] / _GB:9.3f} GB {row['seconds']:8.4f} s"
        )
    return lines


def _gb(size: float) -> str:
    return f"{size / _GB:8.2f} GB"
