"""Enters methods into the atlas: chooses each one's knob, makes its runs, and adds its numbers to results/atlas/data.

python results/atlas/enter.py kl_cov forking                             # recipes of entropy_rl/config/recipes.py
python results/atlas/enter.py mine --knob=algo.transforms.mine.bound=0.3,0.5,0.7     # a recipe of your own
make results                                                             # the page, from the data

The knob has three values, each run with seeds 100 and 101 to half the length; the one with the highest mean accuracy
on the held-out problems is taken, of equals the first. The table's runs have the seeds 0 to 4. An interrupted command
continues. Any `--config.key=value` holds for all runs.
"""

import argparse
import csv
import json
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence

import knobs
import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
DATA = pathlib.Path(__file__).parent / "data"
sys.path.insert(0, str(ROOT / "results" / "claims"))

import measure  # noqa: E402  (of results/claims)
import tokens  # noqa: E402

from entropy_rl.record import jsonl  # noqa: E402

SEEDS, TRIED = "5", "100-101"  # of the table, and of the runs that choose the knob
# Of the table's runs: pass@16, and the start to go back to.
SETTINGS = ("eval.samples=16", "checkpoint.keep_every=100")
KEPT = ("arm", "seed", "command", "commit", "jax", "accuracy", "reward", "entropy_kept", "pass@16")


def parsed(given: Sequence[str]) -> argparse.Namespace:
    """The flags; `settings` are the assignments --config.key=value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", help="recipes")
    parser.add_argument("--knob", default="", help="key=a,b,c, of the only method; default: that of knobs.py")
    parser.add_argument("--bed", default="configs/study.py:two_readings", help="the bed's configuration")
    parser.add_argument("--out", default="runs/atlas", help="the folder of the runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--steps", type=int, default=200, help="of a run of the table; half of it to choose the knob")
    args, rest = parser.parse_known_args(given)
    args.settings = [setting for setting in rest if setting.startswith("--config.")]
    if unknown := [setting for setting in rest if setting not in args.settings]:
        parser.error(f"unknown: {unknown[0]}; settings are given as --config.key=value")
    if args.knob and (len(args.methods) > 1 or args.knob.partition("=")[2].count(",") != 2):
        parser.error(f"--knob={args.knob}: give one method, and three values, as key=a,b,c")
    return args


def sweep(args: argparse.Namespace, out: pathlib.Path, method: str, seeds: str, *settings: str) -> list[dict[str, str]]:
    """The rows of runs.csv after all runs of a sweep are done."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "warmups").is_symlink():  # one warm-up for all methods of a seed
        (out.parents[1] / "warmups").mkdir(exist_ok=True)
        (out / "warmups").symlink_to("../../warmups")
    command = [sys.executable, "-m", "entropy_rl.sweep", f"--config={args.bed}", f"--methods={method}"]
    command += [f"--seeds={seeds}", f"--out={out}", f"--jobs={args.jobs}", *args.settings]
    subprocess.run([*command, *(f"--config.{setting}" for setting in settings)], check=True, cwd=ROOT)
    with (out / "runs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def best(rows: Sequence[Mapping[str, str]]) -> str:
    """The value of the knob whose runs have the highest mean accuracy; of equals the first.

    Args:
        rows: of runs.csv, in the order of the values.
    """
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["arm"].rpartition("=")[2], []).append(float(row["accuracy"]))
    return max(found, key=lambda value: float(np.mean(found[value])))  # of equals the first


def speed(run: pathlib.Path) -> float:
    """Tokens of training per second of a step, the median over the steps, evaluations aside."""
    c = json.loads((run / "config.json").read_text())
    n = c["rollout"]["prompts"] * c["rollout"]["samples"]
    parts = ("rollout", "reward", "train", "other")
    rows = [row for row in jsonl.read(run / "metrics.jsonl") if row["step"] > 0]
    return float(np.median([n * row["length/mean"] / sum(row[f"time/{p}_s"] for p in parts) for row in rows]))


def forks_kept(run: pathlib.Path) -> float:
    """The share of the start's top 20% positions that are among the end's, on the start's responses (claim 8)."""
    return measure.kept(run, "forks", tokens.forks)["last/overlap"]


def enter(args: argparse.Namespace, method: str) -> pathlib.Path:
    """Makes a method's runs and writes its file in `DATA`."""
    key, values = (args.knob.partition("=")[::2]) if args.knob else knobs.knob_of(method)
    out, half = pathlib.Path(args.out).resolve(), args.steps // 2
    short = (*knobs.settings_of(method), f"train.steps={half}", f"eval.every={half}")
    tried = sweep(args, out / "knobs" / method, method, TRIED, *short, f"{key}={values}")
    value = best(tried)
    folder = out / "methods" / method
    whole = (*knobs.settings_of(method), *SETTINGS, f"train.steps={args.steps}", f"eval.every={args.steps}")
    rows = []
    for row in sweep(args, folder, method, SEEDS, *whole, f"{key}={value}"):
        run = folder / row["folder"]
        own = {name: row[name] for name in KEPT} | {"knob": f"{key}={value}", "method": method}
        rows.append(own | {"forks_kept": f"{forks_kept(run):.6g}", "tokens_per_s": f"{speed(run):.6g}"})
    DATA.mkdir(exist_ok=True)
    with (DATA / f"{method}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return DATA / f"{method}.csv"


if __name__ == "__main__":
    arguments = parsed(sys.argv[1:])
    for name in arguments.methods:
        print(f"{enter(arguments, name)}: entered by {shlex.join(['python', *sys.argv])}")
