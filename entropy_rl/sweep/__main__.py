"""Runs methods × seeds, then says what this many seeds show. The same command continues an interrupted sweep.

python -m entropy_rl.sweep --config=configs/quickstart.py --methods=grpo,kl_cov,forking --seeds=10 --out=runs/sweep

Any `--config.key=a,b,c` adds an axis; `--config.key=a` sets a value for all runs. Runs of one seed share their warm-up.
Each is an ordinary run directory, OUT/runs/ARM/seed-N, with its log in log.txt. The results are OUT/index.html,
table.csv, runs.csv and curves.csv.
"""

import argparse
import pathlib
import re
import shlex
import sys
from collections.abc import Sequence

from absl import logging

from entropy_rl.sweep import report, runner
from entropy_rl.sweep.plan import plan, seeds_of


def main(argv: Sequence[str] | None = None) -> None:
    """The command; `argv`: its arguments, without the program's name."""
    parser = argparse.ArgumentParser(
        prog="python -m entropy_rl.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a config file, or file:argument")
    parser.add_argument("--methods", required=True, help="recipes, separated by commas; compared with the first")
    parser.add_argument("--seeds", required=True, help="how many (10), from-to (100-109), or these (3,5)")
    parser.add_argument("--out", required=True, help="the directory of the sweep")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores or GPUs")
    parser.add_argument("--dry_run", action="store_true", help="check everything, list the runs and stop")
    given = list(sys.argv[1:] if argv is None else argv)
    args, rest = parser.parse_known_args(given)
    logging.set_verbosity(logging.INFO)
    try:
        if args.jobs < 1:
            raise ValueError(f"--jobs={args.jobs} must be 1 or more")
        made = plan(args.config, args.methods.split(","), seeds_of(args.seeds), [_setting(text) for text in rest])
        if args.dry_run:
            print("\n".join(job.command(f"{args.out}/{job.folder}") for job in made.jobs))
            return
        out, shares = pathlib.Path(args.out), runner.places(args.jobs)
        out.mkdir(parents=True, exist_ok=True)
        unshared = runner.run_all(out, made.warm_ups, shares)
        ready = [job for job in made.jobs if job.warm_up not in unshared]
        failed = runner.run_all(out, ready, shares)
        failed |= {j.folder: f"its warm-up failed: {unshared[j.warm_up]}" for j in made.jobs if j.warm_up in unshared}
        print(report.write(out, made, failed, shlex.join(["python", "-m", "entropy_rl.sweep", *given])))
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"\npage: {out / 'index.html'}")
    if failed:
        sys.exit(1)


def _setting(text: str) -> tuple[str, str]:
    if not (found := re.fullmatch(r"--config\.([^=]+)=(.*)", text, re.DOTALL)):
        raise ValueError(f"{text}: unknown; a sweep takes its own flags, --config.key=value and --config.key=a,b")
    return found[1], found[2]


if __name__ == "__main__":
    main()
