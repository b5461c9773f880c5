"""Measures what the metrics of finished runs do not have: claims 7, 8, 10, 11, 12 and doubt 7.

python results/claims/measure.py RUNS/a_core [forks hotter …]     # a sweep; all that its name asks for, or these

Each is written into the run directory, measured/NAME.json; one that is there is not made again.
"""

import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tokens
from etils import epath

from entropy_rl.record import files, jsonl

ROOT = pathlib.Path(__file__).parents[2]
TEMPERATURES = "0.5,0.7,1,1.3,1.6"
TARGET = re.compile(r"(?:Calculate|make|equals) (\d+)")  # in countdown's three questions
# What no run of a bed was trained on: name -> config, settings with the lengths that they need, number of problems.
# Sums of two digits have few questions: half of them are asked, where a run holds a quarter out. reasoning-gym cannot
# make targets from 41 to 60 alone: of those from 30 on, the larger ones are counted.
_SUMS, _SEARCH = "configs/study.py:two_readings", "configs/study.py:countdown"
TRANSFER = {
    "two_digits": (_SUMS, "data.settings.min_terms=2 data.settings.max_terms=2 data.held_out_modulus=2", 60),
    "four_digits": (
        _SUMS,
        "data.settings.min_terms=4 data.settings.max_terms=4 data.max_prompt_len=15 rollout.max_tokens=40",
        768,
    ),
    "larger_targets": (_SEARCH, "data.settings.min_target=30 data.settings.max_target=60", 1024),
    "four_numbers": (
        _SEARCH,
        "data.settings.min_numbers=4 data.settings.max_numbers=4 rollout.max_tokens=112",
        768,
    ),
}


class Measure(NamedTuple):
    """What is measured of which runs.

    Attributes:
        arms: sweep -> the arms; () for all of them.
        make: run directory -> name -> value.
    """

    arms: dict[str, tuple[str, ...]]
    make: Callable[[pathlib.Path], dict[str, Any]]


def evaluated(run: pathlib.Path, name: str, flags: Sequence[str]) -> list[dict[str, Any]]:
    """The results of `python -m entropy_rl.evaluate`, a row per set, policy and pair of temperatures."""
    out = run / "measured" / name
    command = [sys.executable, "-m", "entropy_rl.evaluate", f"--workdir={run}", f"--out={out}", "--rollouts=false"]
    subprocess.run([*command, *flags], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return json.loads((out / "results.json").read_text())["results"]


def hotter(run: pathlib.Path, k: int = 16, problems: int = 256) -> dict[str, float]:
    """Claim 10: avg@k of the start at pairs of temperatures, "fork/other"."""
    flags = ["--steps=0", f"--k={k}", f"--problems={problems}", "--temperature=1", "--fork_threshold=80%"]
    flags += [f"--fork_temperature={TEMPERATURES}", f"--other_temperature={TEMPERATURES}"]
    rows = evaluated(run, "hotter", flags)
    found = {f"{row['forks']['fork']:g}/{row['forks']['other']:g}": row[f"avg@{k}"][0] for row in rows}
    return found | {"threshold": rows[0]["forks"]["threshold"]}


def explores(run: pathlib.Path, k: int = 64, problems: int = 256) -> dict[str, float]:
    """Doubt 7: pass@k, distinct answers and their entropy at the start, in the middle and at the end."""
    kept = tokens.kept_steps(run)
    middle = min(kept, key=lambda step: abs(2 * step - kept[-1]))
    named = {"start": kept[0], "middle": middle, "end": kept[-1]}
    steps = ",".join(str(step) for step in dict.fromkeys(named.values()))
    flags = [f"--steps={steps}", f"--k={k}", f"--problems={problems}", "--temperature=1"]
    by_step = {row["policy"].rpartition("@")[2]: row for row in evaluated(run, "explores", flags)}
    found = {f"{name}/step": float(step) for name, step in named.items()}
    for name, step in named.items():
        row = by_step[str(step)]
        found |= {f"{name}/{key}": value[0] for key, value in row.items() if "@" in key and value[0] is not None}
    return found


def transfers(run: pathlib.Path) -> dict[str, float]:
    """Claim 12: the greedy accuracy of the end on tasks that no run was trained on, and the number of problems."""
    bed = json.loads((run / "config.json").read_text())["data"]["task"]
    found = {}
    for name, (config, settings, problems) in TRANSFER.items():
        if (config == _SUMS) == (bed == "chain_sum"):
            flags = [f"--config={config}", *(f"--config.{setting}" for setting in settings.split())]
            evaluated(run, name, [*flags, f"--problems={problems}", "--k=0"])
            rows = jsonl.read(run / "measured" / name / "responses.jsonl")
            asked = [row for row in rows if row["score"] is not None and counts(name, row["question"])]
            found[name] = sum(row["score"] >= 1 for row in asked) / len(asked)
            found[f"{name}/problems"] = float(len(asked))
    return found


def counts(name: str, question: str) -> bool:
    """Whether a problem is one of the task's: of larger targets those above 40, which no run saw."""
    return name != "larger_targets" or int(TARGET.findall(question)[0]) > 40


CORE = {"a_core": ("grpo",), "b_core": ("grpo",), "d_core": ("grpo",)}
MEASURES = {
    "forks": Measure(CORE, tokens.forks),
    "hotter": Measure(CORE, hotter),
    "explores": Measure(
        {"a_core": ("grpo",), "b_core": ("grpo",), "a_kl_cov": (), "b_kl_cov": ()}
        | {"a_shares": ("forking",), "b_shares": ("forking",)},
        explores,
    ),
    "transfers": Measure({"a_shares": ("dapo", "forking"), "b_shares": ("dapo", "forking")}, transfers),
    "language": Measure({"d_core": ("dapo", "forking", "bottom80")}, tokens.language),
}


def measure(sweep: pathlib.Path, names: Sequence[str] = ()) -> list[str]:
    """Makes what a sweep's finished runs lack; returns the files that were written, relative to the sweep."""
    written = []
    for name in names or MEASURES:
        arms, make = MEASURES[name]
        if sweep.name not in arms:
            continue
        for run in sorted((sweep / "runs").glob("*/seed-*")):
            path = run / "measured" / f"{name}.json"
            if path.exists() or not (run.parent.name in arms[sweep.name] or not arms[sweep.name]) or not _done(run):
                continue
            print(f"{sweep.name}: {name} of {run.parent.name}, {run.name}", flush=True)
            kept(run, name, make)
            written.append(str(path.relative_to(sweep)))
    return written


def kept(run: pathlib.Path, name: str, make: Callable[[pathlib.Path], dict[str, Any]]) -> dict[str, Any]:
    """What is in a run's measured/NAME.json, which is made if it is not there."""
    path = run / "measured" / f"{name}.json"
    if not path.exists():
        found = make(run)
        path.parent.mkdir(exist_ok=True)
        files.replace(epath.Path(path), json.dumps(found, indent=1, allow_nan=True) + "\n")
    return json.loads(path.read_text())


def _done(run: pathlib.Path) -> bool:
    if not (run / "metrics.jsonl").exists():
        return False
    rows, last = jsonl.read(run / "metrics.jsonl"), json.loads((run / "config.json").read_text())["train"]["steps"]
    return bool(rows) and rows[-1]["step"] == last


if __name__ == "__main__":
    measure(pathlib.Path(sys.argv[1]), sys.argv[2:])
