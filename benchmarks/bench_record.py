"""What `log.rollouts=1` costs: training steps that record every token, against steps that record none.

    python benchmarks/bench_record.py                   # the quickstart's model and task
    python benchmarks/bench_record.py --config smollm2  # SmolLM2-135M

Both sides run the loop of `entropy_rl.train` without a warm-up; the first steps, which compile, are left out. Prints
the bytes that a token takes, too.
"""

import argparse
import json
import pathlib
import runpy
import statistics
import sys
import tempfile

import common


def side(name: str, every: int, steps: int) -> common.Result:
    """The median step of one run, by its own clock, which includes writing the record of the step before."""
    from entropy_rl import loop
    from entropy_rl.record import jsonl

    c = runpy.run_path(str(common.ROOT / "configs" / f"{name}.py"))["get_config"]("kl_cov")
    c.warmup.updates, c.eval.every, c.train.steps, c.checkpoint.every = 0, 0, 4 + steps, 1000
    c.log.rollouts = every
    with tempfile.TemporaryDirectory() as folder:
        loop.run(c, folder)
        rows = jsonl.read(pathlib.Path(folder) / "metrics.jsonl")[4:]
        tokens = sum(row["length/mean"] for row in rows) * c.rollout.prompts * c.rollout.samples
        size = sum(path.stat().st_size for path in pathlib.Path(folder).glob("rollouts/*.parquet"))
    times = [sum(v for k, v in row.items() if k.startswith("time/") and v is not None) for row in rows]
    per_token = size / (tokens * (4 + steps) / steps)
    seconds = statistics.median(times)
    rate = tokens / steps / seconds
    memory = common.memory_mb()
    return {"seconds": seconds, "tokens_per_s": rate, "memory_mb": memory, "bytes_per_token": per_token, "all": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="quickstart", choices=("quickstart", "smollm2"))
    parser.add_argument("--side", type=int, help="run one side: the value of log.rollouts")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.side is not None:
        print(json.dumps(side(options.config, options.side, options.steps)))
        return
    shared = ("--config", options.config, "--steps", str(options.steps))
    sides = {
        name: (__file__, sys.executable, *shared, "--side", every) for name, every in (("without", "0"), ("with", "1"))
    }
    results = common.side_by_side(sides, options.rounds)
    common.report(f"record-{options.config}", results)
    print(f"{results['with'][-1]['bytes_per_token']:.0f} bytes per token")


if __name__ == "__main__":
    main()
