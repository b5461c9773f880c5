"""python results/preflight/table.py results/preflight/*.json: the reports as a Markdown table."""

import json
import pathlib
import sys


def row(path: str) -> str:
    r = json.loads(pathlib.Path(path).read_text())
    update, rollout = r["programs"]["update"], r["programs"]["rollout"]
    gb = lambda x: f"{x / 1e9:.1f}"
    mesh = "×".join(str(n) for n in r["mesh"].values())
    cells = [r["model"].split("/")[-1], r["topology"], mesh, f"{r['sequences_per_update']} × {r['length']}"]
    cells += [str(r["pieces"]), gb(r["parameters"] + r["optimiser"]), gb(r["kv_cache"])]
    cells += [gb(p["peak"]) for p in (update, rollout)] + [gb(r["capacity"]), "yes" if r["fits"] else "no"]
    if "time" in update:
        t = update["time"]
        cells += [f"{update['flops'] / 1e12:.0f}", gb(update["collective_bytes"])]
        cells += [f"{t['step']:.1f}", f"{t['exposed']:.2f}", f"{update['mfu']:.0%}"]
    else:
        cells += ["–"] * 5
    if "decode" in rollout:
        cells += [f"{rollout['prefill']['time']['step']:.2f}", f"{1e3 * rollout['decode']['time']['step']:.0f}"]
    else:
        cells += ["–"] * 2
    return "| " + " | ".join(cells) + " |"


HEAD = """| model | topology | mesh d×f×t | sequences | pieces | state | KV | update peak | rollout peak | of | fits \
| TFLOP | collectives | update s | exposed s | MFU | prefill s | decode ms |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"""

if __name__ == "__main__":
    print(HEAD)
    for path in sys.argv[1:]:
        print(row(path))
