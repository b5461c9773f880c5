"""python results/preflight/table.py results/preflight/*.json: the reports as a Markdown table."""

import json
import pathlib
import sys


def row(path: str) -> str:
    r = json.loads(pathlib.Path(path).read_text())
    update, rollout = r["programs"]["update"], r["programs"]["rollout"]
    gb = lambda x: f"{x / 1e9:.1f}"
    meshes = ["×".join(str(n) for n in r[key].values()) for key in ("mesh", "sampling_mesh")]
    cells = [r["model"].split("/")[-1], r["topology"], *meshes, f"{r['sequences_per_update']} × {r['length']}"]
    cells += [str(r["pieces"]), gb(r["parameters"] + r["optimiser"]), gb(r["kv_cache"])]
    cells += [gb(p["peak"]) for p in (update, rollout)] + [gb(r["capacity"]), "yes" if r["fits"] else "no"]
    if "mfu" in r:
        parts = [r["programs"][name] for name in ("update", "score") if name in r["programs"]]
        total = lambda of: sum(of(part) for part in parts)
        cells += [f"{total(lambda p: p['flops']) / 1e12:.0f}", gb(total(lambda p: p["collective_bytes"]))]
        cells += [f"{r['update_seconds']:.1f}", f"{total(lambda p: p['time']['exposed']):.2f}", f"{r['mfu']:.0%}"]
    else:
        cells += ["–"] * 5
    if "decode" in rollout:
        cells += [f"{rollout['prefill']['time']['step']:.2f}", f"{1e3 * rollout['decode']['time']['step']:.1f}"]
        cells += [f"{rollout['time']['step']:.0f}"]
    else:
        cells += ["–"] * 3
    return "| " + " | ".join(cells) + " |"


HEAD = """| model | topology | mesh d×f×t | sampling | sequences | pieces | state | KV | update peak | rollout peak \
| of | fits | TFLOP | collectives | update s | exposed s | MFU | prefill s | decode ms | rollout s |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"""

if __name__ == "__main__":
    print(HEAD)
    for path in sys.argv[1:]:
        print(row(path))
