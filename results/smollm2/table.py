"""The table of results/smollm2/README.md, from the metrics of the runs.

python table.py RUNS
"""

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

Rows = Sequence[dict[str, Any]]


def mean(rows: Rows, key: str) -> float:
    """The mean of a metric over some steps."""
    return float(np.mean([row[key] for row in rows]))


def lines(method: str, rows: Rows) -> list[str]:
    """One line of the table per evaluation of a run; the last one has the figures of the whole run."""
    steps = [row for row in rows if row["step"]]
    found = []
    for row in rows:
        if row.get("eval/chain_sum/accuracy") is None or (row["step"] == 0 and method != "grpo"):
            continue  # the start is the same for all methods
        low, high = row["eval/chain_sum/low"], row["eval/chain_sum/high"]
        accuracy = f"{row['eval/chain_sum/accuracy']:.1%} [{100 * low:.1f}, {100 * high:.1f}]"
        entropy = kept = ""
        if row["step"] == steps[-1]["step"]:
            entropy = f"{mean(steps[:4], 'entropy/mean'):.3f} → {mean(steps[-4:], 'entropy/mean'):.3f}"
            kept = f"{mean(steps, 'tokens/kept_frac'):.1%}"
        name = method if row["step"] else "start"
        found.append(f"| {name} | {row['step']} | {accuracy} | {entropy} | {kept} |")
    return found


def main(runs: pathlib.Path) -> None:
    """Prints the table."""
    print("| method | steps | greedy accuracy, 95% interval | entropy, first → last four steps | gradients kept |")
    print("|---|---|---|---|---|")
    for method in ("grpo", "clip_cov", "forking"):
        text = (runs / method / "metrics.jsonl").read_text()
        print("\n".join(lines(method, [json.loads(line) for line in text.splitlines()])))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
