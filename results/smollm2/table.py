"""The table of results/smollm2/README.md, from the metrics of the runs: python table.py RUNS"""

import json
import pathlib
import sys

import numpy as np

print("| method | steps | greedy accuracy, 95% interval | entropy, first → last four steps | gradients kept |")
print("|---|---|---|---|---|")
for method in ("grpo", "clip_cov", "forking"):
    text = (pathlib.Path(sys.argv[1]) / method / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    rl = [r for r in rows if r["step"]]
    mean = lambda key, part: np.mean([r[key] for r in part])  # noqa: E731
    for r in rows:
        if r.get("eval/chain_sum/accuracy") is None or (r["step"] == 0 and method != "grpo"):
            continue
        low, high = r["eval/chain_sum/low"], r["eval/chain_sum/high"]
        accuracy = f"{r['eval/chain_sum/accuracy']:.1%} [{100 * low:.1f}, {100 * high:.1f}]"
        last = r["step"] == rl[-1]["step"]
        entropy = f"{mean('entropy/mean', rl[:4]):.3f} → {mean('entropy/mean', rl[-4:]):.3f}" if last else ""
        kept = f"{mean('tokens/kept_frac', rl):.1%}" if last else ""
        print(f"| {'start' if r['step'] == 0 else method} | {r['step']} | {accuracy} | {entropy} | {kept} |")
