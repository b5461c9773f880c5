"""What recording a step's rollouts costs: in one run, every other step records every token.

    python benchmarks/bench_record.py                              # the quickstart's model and task
    python benchmarks/bench_record.py --config smollm2 --steps 12  # SmolLM2-135M

The steps between take the program of a run that records nothing. Compared is the time from the start of a step's
updates to the start of the next rollout: the updates, the tokens' way to the host, the file. The first two steps,
which compile, are left out.
"""

import argparse
import json
import pathlib
import runpy
import statistics
import tempfile
import time

import common

from entropy_rl import loop
from entropy_rl.record import jsonl
from entropy_rl.runtime import host
from entropy_rl.training.engine import Engine
from entropy_rl.training.experience import Collector
from entropy_rl.training.optimizer import optimizer_of


def timed_run(name: str, steps: int) -> common.Result:
    """One run of `steps` measured steps, half of them recorded."""
    c = runpy.run_path(str(common.ROOT / "configs" / f"{name}.py"))["get_config"]("kl_cov")
    c.warmup.updates, c.eval.every, c.train.steps, c.checkpoint.every, c.log.rollouts = 0, 0, 2 + steps, 1000, 2
    begun: list[float] = []  # of each step's updates
    rollouts: list[tuple[float, float]] = []  # start and end
    update_all, collect = loop.update_all, Collector.collect
    plain: list[Engine] = []

    def updates(engine, state, parts, key, measure, record):
        if not plain:
            method = engine.method._replace(records=False)
            plain.append(
                Engine(c, engine.model_config, None, engine.mesh, method, optimizer_of(c.optim), engine.samples)
            )
        begun.append(time.perf_counter())
        return update_all(engine if record else plain[0], state, parts, key, measure, record)

    def collected(*args):
        start = time.perf_counter()
        found = collect(*args)
        rollouts.append((start, time.perf_counter()))
        return found

    loop.update_all, Collector.collect = updates, collected
    with tempfile.TemporaryDirectory() as folder:
        loop.run(c, folder)
        rows = jsonl.read(pathlib.Path(folder) / "metrics.jsonl")[1::2]  # the recorded steps
        size = sum(path.stat().st_size for path in pathlib.Path(folder).glob("rollouts/*.parquet"))
    tokens = sum(row["length/mean"] for row in rows) * c.rollout.prompts * c.rollout.samples
    spans = [start - began for began, (start, _) in zip(begun, rollouts[1:], strict=False)][2:]
    without, recorded = spans[::2], spans[1::2]
    rollout = statistics.median(end - start for start, end in rollouts[2:])
    more = statistics.median(b - a for a, b in zip(without, recorded, strict=False))
    return {
        "share": more / (rollout + statistics.median(without)),
        "seconds_more": more,
        "step_seconds": rollout + statistics.median(without),
        "bytes_per_token": size / tokens,
        "without": without,
        "recorded": recorded,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="quickstart", choices=("quickstart", "smollm2"))
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    host.prepare()
    found = timed_run(options.config, options.steps)
    out = pathlib.Path(__file__).parent / "out"
    out.mkdir(exist_ok=True)
    record = {"machine": common.machine(), "result": found}
    (out / f"record-{options.config}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(
        f"{options.config}: a recorded step takes {1e3 * found['seconds_more']:.0f} ms more, "
        f"{found['share']:.1%} of {found['step_seconds']:.2f} s; {found['bytes_per_token']:.0f} bytes per token"
    )


if __name__ == "__main__":
    main()
