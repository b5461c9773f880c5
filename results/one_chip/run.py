"""What trains on one chip: fills configs/one_chip.json, and prints the table of README.md.

    PYTHONPATH=. python results/one_chip/run.py [t4 l4 qwen2_5_0_5b …]    # all, or the chips and models that are named

TPUs are compiled for, one process per row and some minutes each, with pip install "jax[tpu]==<jax>"; GPUs are judged by
arithmetic. Rows that are there are kept. Each row tries pieces, remat and slots until it fits
(`entropy_rl/preflight/suggest.py`).
"""

import json
import pathlib
import subprocess
import sys
from typing import Any

from ml_collections import ConfigDict

from entropy_rl.preflight import chips
from entropy_rl.preflight.estimate import estimate
from entropy_rl.preflight.report import Report
from entropy_rl.preflight.suggest import suggest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "configs"))
import one_chip  # noqa: E402

GB = 1e9


def measure(model: str, chip: str, tokens: int, lora: bool) -> dict[str, Any]:
    """The row of one run."""
    if not chips.CHIPS[chip].is_tpu:
        found = suggest(one_chip.work(model, tokens, lora), chips.parse(f"{chip}:1"), arithmetic, adapters=False)
        return summary(found.report.to_json() | {"settings": found.settings})
    argument = f"{model},{tokens}" + ",lora" * lora
    command = sys.executable, "-m", "entropy_rl.preflight", f"--config={ROOT / 'configs' / 'one_chip.py'}:{argument}"
    flags = f"--topology={chip}:{one_chip.SHAPES[chip]}", "--json", "--suggest", "--nosuggest_lora"
    done = subprocess.run([*command, *flags], capture_output=True, text=True, cwd=ROOT)
    if not done.stdout.startswith("{"):
        sys.exit(f"{argument} on {chip}: {done.stderr[-3000:]}")
    return summary(json.loads(done.stdout))


_known: dict[str, Report] = {}


def arithmetic(c: ConfigDict, topology: chips.Topology) -> Report:
    """A GPU's report; its sizes are those of any GPU with the same dtype."""
    chip = topology.chip
    key = f"{chip.bfloat16} {c.to_json(sort_keys=True)}"
    if key not in _known:
        _known[key] = estimate(c, topology)
    report = _known[key]
    return report._replace(topology=str(topology), capacity=chip.memory, fits=report.peak <= chip.memory)


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """What the table needs of a report."""
    peaks = {name: program["peak"] for name, program in report["programs"].items()}
    state = report["parameters"] + report["optimiser"]
    stuck = [name for name, peak in peaks.items() if peak > report["capacity"]]  # the first had nothing left to change
    what = stuck[0] if stuck else max(peaks, key=lambda name: peaks[name])
    needs = peaks[what]
    if state > report["capacity"]:
        what, needs = "state alone", state
    row: dict[str, Any] = {
        "fits": report["fits"],
        "settings": report["settings"],
        "peak_gb": round(report["peak"] / GB, 2),
        "capacity_gb": round(report["capacity"] / GB, 2),
        "state_gb": round(state / GB, 2),
        "decided_by": f"the {what}: {needs / GB:.1f} of {report['capacity'] / GB:.1f} GB",
    }
    rollout = report["programs"].get("rollout", {})
    if report["fits"] and "time" in rollout:  # compiled
        row |= {
            "update_seconds": round(report["update_seconds"], 3),
            "rollout_seconds": round(rollout["time"]["step"], 2),
        }
    return row


def table(rows: dict[str, Any]) -> str:
    """Models by chips: for responses of 512 and of 2048 tokens, in full and by LoRA."""
    chips = [chip for chip in one_chip.CHIPS if any(name.split(",")[1] == chip for name in rows)]
    lines = ["| model | " + " | ".join(chips) + " |", "|---" * (1 + len(chips)) + "|"]
    for model, source in one_chip.SOURCES.items():
        for lora in (False, True):
            cells = []
            for chip in chips:
                found = [rows.get(one_chip.row_name(model, chip, tokens, lora)) for tokens in one_chip.TOKENS]
                cells.append(" / ".join(_cell(row) for row in found))
            lines.append(f"| {source.split('/')[1]}{', LoRA' if lora else ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "?"
    return f"{row['peak_gb']:.1f}" if row["fits"] else "–"


def main() -> None:
    rows: dict[str, Any] = json.loads(one_chip.TABLE.read_text()) if one_chip.TABLE.exists() else {}
    named = sys.argv[1:]
    for chip in [name for name in named if name in one_chip.CHIPS] or one_chip.CHIPS:
        for lora in (False, True):
            for model in [name for name in named if name in one_chip.SOURCES] or one_chip.SOURCES:
                for tokens in one_chip.TOKENS:
                    name = one_chip.row_name(model, chip, tokens, lora)
                    if name not in rows:
                        rows[name] = measure(model, chip, tokens, lora)
                        print(name, json.dumps(rows[name]), file=sys.stderr, flush=True)
                        one_chip.TABLE.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
