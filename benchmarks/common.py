"""What the benchmarks share: the work, the clock, the machine's limits, and runs side by side in fresh processes.

Every side of a comparison is a process of its own, under the same allocator settings, in the order A B A B …: what
is reported is the median of the ratios of neighbours, because a machine's speed drifts more than programs differ.
"""

import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

GROUPS, SAMPLES, P, T = 8, 8, 64, 64  # the work: 8 prompts of up to 64 tokens, 8 responses of 64 tokens to each
VOCAB = 49152
ROOT = pathlib.Path(__file__).parent.parent
# glibc gives large blocks back at once, and faults them in again, unless told otherwise; both sides are told
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_ARENA_MAX": "1"}


def work(groups: int = GROUPS, samples: int = SAMPLES, vocab: int = VOCAB, seed: int = 0, P: int = P, T: int = T):
    """prompt_NxP, prompt_mask_NxP (padded on the left), tokens_BxT of full length, advantage_B: the same for all."""
    rng = np.random.default_rng(seed)
    length = rng.integers(P // 4, P + 1, groups)
    mask = (np.arange(P) >= P - length[:, None]).astype(np.int32)
    prompt = rng.integers(3, vocab, (groups, P)).astype(np.int32) * mask
    tokens = rng.integers(3, vocab, (groups * samples, T)).astype(np.int32)
    return prompt, mask, tokens, rng.standard_normal(groups * samples).astype(np.float32)


def questions(path: pathlib.Path, count: int = 64, seed: int = 0) -> pathlib.Path:
    """Writes so many long sums as a .jsonl file of questions and answers: prompts of 40 to 64 of SmolLM2's tokens."""
    rng = np.random.default_rng(seed)
    with path.open("w") as f:
        for _ in range(count):
            terms = rng.integers(10, 100, rng.integers(9, 14)).tolist()
            question = f"Work this out step by step: {' + '.join(map(str, terms))} ="
            f.write(json.dumps({"question": question, "answer": str(sum(terms))}) + "\n")
    return path


def letters(response: str, entry=None) -> float:
    """A reward that differs between any two texts: so every group has something to learn from, whoever samples it."""
    return sum(c in "aeiou" for c in response) / max(1, len(response))


def rss_mb() -> float:
    """The process's peak resident memory so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory_mb() -> float:
    """The peak so far of what JAX holds on an accelerator, else of the process, MB."""
    if "jax" in sys.modules:
        stats = sys.modules["jax"].devices()[0].memory_stats()
        if stats and "peak_bytes_in_use" in stats:
            return stats["peak_bytes_in_use"] / 2**20
    return rss_mb()


def measure(f: Callable[[], object], loaded_mb: float, tokens: int, repeats: int = 3) -> dict:
    """One call to warm up, then the median of `repeats`; f returns when its result is there."""
    f()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    return {"seconds": median, "tokens_per_s": tokens / median, "memory_mb": memory_mb() - loaded_mb, "all": seconds}


def limits(dtype="float32") -> dict:
    """The device's best matmul rate in this dtype (GFLOP/s) and copy bandwidth (GB/s, read and written), now."""
    import jax
    import jax.numpy as jnp

    accelerator = jax.default_backend() != "cpu"
    n, best = 8192 if accelerator else 2048, lambda f: min(_time(f) for _ in range(8))
    x = jnp.ones((n, n), dtype)
    product = jax.jit(lambda x: x @ x)
    if accelerator:
        big = jnp.ones(2**30, jnp.float32)
        move = jax.jit(lambda x: x + 1)
        copy = lambda: move(big).block_until_ready()
    else:
        big = np.ones(50_000_000, np.float32)
        out = np.empty_like(big)
        copy = lambda: np.copyto(out, big)
    return {
        "matmul_gflops": 2 * n**3 / best(lambda: product(x).block_until_ready()) / 1e9,
        "copy_gb_per_s": 2 * big.nbytes / best(copy) / 1e9,
    }


def _time(f) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def side_by_side(sides: dict[str, tuple[str, ...]], rounds: int = 2) -> dict:
    """Runs every side (name -> script, interpreter, arguments) in the order A B A B; results by side.

    Each run prints one JSON object as its last line.
    """
    results: dict[str, list[dict]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (script, python, *arguments) in sides.items():
            env = os.environ | MALLOC | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
            done = subprocess.run([python, script, *arguments], capture_output=True, text=True, env=env)
            if done.returncode:
                sys.exit(f"{name}: {done.stderr[-3000:]}")
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name:>8}: {summary(results[name][-1])}", file=sys.stderr, flush=True)
    return results


def summary(r: dict) -> str:
    return f"{r['seconds']:.2f} s  {r['tokens_per_s']:.0f} tokens/s  {r['memory_mb']:.0f} MB over the loaded model"


def report(name: str, results: dict[str, list[dict]], **more) -> None:
    """Prints a table and writes benchmarks/out/<name>.json."""
    first, *others = results
    record: dict = {"machine": machine(), "results": results, **more, "ratios": {}}
    print("| side | tokens/s | memory over the loaded model, MB |\n|---|---|---|")
    for side, runs in results.items():
        speed, memory = (statistics.median(r[key] for r in runs) for key in ("tokens_per_s", "memory_mb"))
        print(f"| {side} | {speed:.0f} | {memory:.0f} |")
    for other in others:
        ratios = [b["seconds"] / a["seconds"] for a, b in zip(results[first], results[other], strict=True)]
        record["ratios"][other] = statistics.median(ratios)
        print(f"\n{first} / {other}: {statistics.median(ratios):.2f} × (of {', '.join(f'{x:.2f}' for x in ratios)})")
    out = pathlib.Path(__file__).parent / "out"
    out.mkdir(exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def machine() -> dict:
    import jax

    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "cpu": platform.processor() or platform.machine(),
        "jax": jax.__version__,
        **limits(),
    }


def row(record: dict) -> str:
    """A line of gpu.sh's table."""
    r = record["result"]
    share = r.get("share_of_copy" if "gb_per_s" in r else "share_of_matmul")
    shown = "" if share is None else f"{share:.0%}"
    return f"| {record['name']} | {r['tokens_per_s']:.0f} | {1e3 * r['seconds']:.0f} | {shown} | {r['memory_mb']:.0f} |"


if __name__ == "__main__":
    print(row(json.loads(sys.stdin.read())))
