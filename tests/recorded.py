"""A made-up run with recorded rollouts, whose responses hold what would do harm in a page."""

import json
import math

import numpy as np

from entropy_rl.record.rollouts import RolloutLog

WORDS = ["the", " sum", " is", "so", " wait", " 7", " 12", "\n", " +", " ="]
HOSTILE = [
    "<script>alert(1)</script>",
    "</script>",
    "\u2028",
    "\u2029",
    "\x00",
    "<!--",
    "]]>",
    "'\"`${x}\\",
    "=1+1",
    "&lt;",
]


def write_run(workdir, steps=(2, 4, 6), *, words=(*WORDS, *HOSTILE), prompts=3, samples=4, seed=0):
    """A run of 40 steps that follows the law, some of its steps recorded: (workdir, the [B, T] arrays by step)."""
    workdir.mkdir(parents=True)
    rng, rows, kept = np.random.default_rng(seed), [], {}
    for step in range(1, 41):
        entropy = 0.7 * math.exp(-step / 10)
        row = {"step": step, "entropy/mean": entropy, "reward/mean": -0.4 * math.exp(entropy) + 1.2 + 1e-3 * (step % 3)}
        row |= {"length/mean": 20.0 + step % 7, "cov/mean": 0.01, "cov/top_0.2pct": 1.5}
        rows.append(row | {"eval/a/accuracy": 0.5, "eval/a/low": 0.4, "eval/a/high": 0.6, "eval/a/problems": 8})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = RolloutLog(workdir, 1.0)
    for step in steps:
        lists, columns, mask = rollout(rng, step, words, prompts, samples)
        log.write(step, columns, lists, mask)
        kept[step] = lists | {"mask": mask} | {name: np.array(columns[name]) for name in ("length", "finished")}
    return workdir, kept


def rollout(rng, step, words, prompts, samples, T=24):
    """What `RolloutLog.write` takes. A word has the entropy of its number over the step, with a little noise."""
    B = prompts * samples
    length = rng.integers(6, T + 1, B)
    mask = np.arange(T) < length[:, None]
    ids = rng.integers(0, len(words), (B, T))
    entropy = ids / step * (1 + 0.01 * rng.random((B, T)))
    lists = {"id": ids, "token": np.array(words, object)[ids], "logp": -rng.random((B, T)), "entropy": entropy}
    lists["covariance"], lists["ratio"] = rng.normal(size=(B, T)), np.exp(0.1 * rng.normal(size=(B, T)))
    lists["fate"] = np.array(["kept", "clip", "kl_cov"], object)[rng.integers(0, 3, (B, T))]
    lists |= {name: rng.normal(size=(B, T)) for name in ("gradient", "gradient_after", "entropy_gradient")}
    columns = {
        "prompt": np.repeat(np.arange(prompts), samples).tolist(),
        "sample": list(range(samples)) * prompts,
        "question": [f"{words[-1]} question {i}" for i in range(prompts) for _ in range(samples)],
        "text": ["".join(lists["token"][b][mask[b]]) for b in range(B)],
        "reward": rng.random(B).tolist(),
        "advantage": rng.normal(size=B).tolist(),
        "length": length.tolist(),
        "finished": (length < T).tolist(),
    }
    return lists, columns, mask
