"""Copies what the verdicts need out of the sweeps into results/claims/data.

SWEEP.runs.csv has the runs, SWEEP.steps.csv.gz their metrics, SWEEP.measured.csv what measure.py measured, and
SWEEP.words.csv the tokens of the start with their mean entropy.

python results/claims/collect.py RUNS        # RUNS: the folder that run.sh wrote its sweeps into

Only runs that are finished are copied. All numbers of the claims' pages are made from these files (verdicts.py).
"""

import csv
import gzip
import io
import json
import pathlib
import re
import shutil
import sys
from collections.abc import Mapping, Sequence

from entropy_rl.record import jsonl

DATA = pathlib.Path(__file__).parent / "data"
COLUMNS = (
    r"step|reward/mean|entropy/mean|length/mean|length/clipped_frac|group/degenerate_frac|tokens/kept_frac|kl/old|grad/norm"
    r"|cov/.*|entropy/delta.*|quadrant/.*/(share|entropy_change)|eval/.*"
)


def collect(sweep: pathlib.Path) -> int:
    """Copies one sweep; returns how many of its runs are finished."""
    with (sweep / "runs.csv").open(newline="") as file:
        done = [row for row in csv.DictReader(file) if row["state"] == "done"]
    DATA.mkdir(exist_ok=True)
    shutil.copy(sweep / "runs.csv", DATA / f"{sweep.name}.runs.csv")
    names, rows = ["arm", "seed"], []
    for run in done:
        for row in jsonl.read(sweep / run["folder"] / "metrics.jsonl"):
            kept = {k: v for k, v in row.items() if re.fullmatch(COLUMNS, k)}
            names += [name for name in kept if name not in names]
            rows.append({"arm": run["arm"], "seed": run["seed"]} | {k: _text(v) for k, v in kept.items()})
    packed = gzip.compress(_csv(names, rows), mtime=0)  # equal rows make equal files
    (DATA / f"{sweep.name}.steps.csv.gz").write_bytes(packed)
    measured, words = [], []
    for run in done:
        own = {"arm": run["arm"], "seed": run["seed"]}
        for path in sorted((sweep / run["folder"] / "measured").glob("*.json")):
            found = json.loads(path.read_text())
            for token, count, mean in found.pop("words", []):
                words.append(own | {"token": token, "count": count, "entropy": _text(mean)})
            measured += [own | {"name": f"{path.stem}/{k}", "value": _text(v)} for k, v in found.items()]
    for name, some in (("measured", measured), ("words", words)):
        if some:
            (DATA / f"{sweep.name}.{name}.csv").write_bytes(_csv(list(some[0]), some))
    return len(done)


def _csv(names: Sequence[str], rows: Sequence[Mapping[str, object]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _text(value: float | int | None) -> str:
    return "" if value is None or value != value else f"{value:.7g}"


if __name__ == "__main__":
    for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
        if (folder / "runs.csv").exists():
            print(folder.name, collect(folder), "runs")
