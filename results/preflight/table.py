"""python results/preflight/table.py results/preflight/*.json: the reports as a Markdown table."""

import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

HEAD = """| model | topology | mesh d×f×t | sampling | sequences | pieces | state | KV | update peak | rollout peak \
| of | fits | TFLOP | collectives | update s | exposed s | MFU | prefill s | decode ms | rollout s |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"""
UNKNOWN = "–"  # a program did not compile


def row(path: str) -> str:
    """The table's row of one report."""
    report = json.loads(pathlib.Path(path).read_text())
    return "| " + " | ".join([*_memory(report), *_update(report), *_rollout(report)]) + " |"


def _memory(report: dict[str, Any]) -> list[str]:
    update, rollout = report["programs"]["update"], report["programs"]["rollout"]
    return [
        report["model"].split("/")[-1],
        report["topology"],
        *("×".join(map(str, report[key].values())) for key in ("mesh", "sampling_mesh")),
        f"{report['sequences_per_update']} × {report['length']}",
        str(report["pieces"]),
        _gb(report["parameters"] + report["optimiser"]),
        _gb(report["kv_cache"]),
        _gb(update["peak"]),
        _gb(rollout["peak"]),
        _gb(report["capacity"]),
        "yes" if report["fits"] else "no",
    ]


def _update(report: dict[str, Any]) -> list[str]:
    if "mfu" not in report:
        return [UNKNOWN] * 5
    programs = [report["programs"][name] for name in ("update", "score") if name in report["programs"]]

    def total(figure: Callable[[dict[str, Any]], float]) -> float:
        return sum(map(figure, programs))

    return [
        f"{total(lambda program: program['flops']) / 1e12:.0f}",
        _gb(total(lambda program: program["collective_bytes"])),
        f"{report['update_seconds']:.1f}",
        f"{total(lambda program: program['time']['exposed']):.2f}",
        f"{report['mfu']:.0%}",
    ]


def _rollout(report: dict[str, Any]) -> list[str]:
    rollout = report["programs"]["rollout"]
    if "decode" not in rollout:
        return [UNKNOWN] * 3
    prefill, decode, whole = (part["time"]["step"] for part in (rollout["prefill"], rollout["decode"], rollout))
    return [f"{prefill:.2f}", f"{1e3 * decode:.1f}", f"{whole:.0f}"]


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f}"


if __name__ == "__main__":
    print(HEAD)
    for path in sys.argv[1:]:
        print(row(path))
