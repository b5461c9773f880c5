"""The part that the benchmarks share: the work, the clock, the machine's limits, and runs side by side.

Every side of a comparison runs in a fresh process, under the same allocator settings, in the order A B A B …. The
reported number is the median of the ratios of neighbours, because a machine's speed drifts more than programs differ.
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
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jax.typing import DTypeLike

GROUPS, SAMPLES, P, T = 8, 8, 64, 64  # the work: 8 prompts of up to 64 tokens, 8 responses of 64 tokens to each
VOCAB = 49152
ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the package, which need not be installed
# By default glibc returns large blocks to the system at once and faults them in again. Both sides run with these.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_ARENA_MAX": "1"}

Result = dict[str, Any]  # of one run: seconds, tokens_per_s, memory_mb, and more


class Work(NamedTuple):
    """Prompts and responses, N prompts and B = N · samples responses.

    Attributes:
        prompt_NxP: i32, padded on the left.
        prompt_mask_NxP: i32, 1 on the prompts' tokens.
        tokens_BxT: i32, responses of full length.
        advantage_B: f32, normally distributed.
    """

    prompt_NxP: np.ndarray
    prompt_mask_NxP: np.ndarray
    tokens_BxT: np.ndarray
    advantage_B: np.ndarray


def work(
    groups: int = GROUPS, samples: int = SAMPLES, vocab: int = VOCAB, seed: int = 0, P: int = P, T: int = T
) -> Work:
    """Random prompts of P/4 to P tokens and random responses: the same for both sides."""
    rng = np.random.default_rng(seed)
    length = rng.integers(P // 4, P + 1, groups)
    mask = (np.arange(P) >= P - length[:, None]).astype(np.int32)
    prompt = rng.integers(3, vocab, (groups, P)).astype(np.int32) * mask
    tokens = rng.integers(3, vocab, (groups * samples, T)).astype(np.int32)
    return Work(prompt, mask, tokens, rng.standard_normal(groups * samples).astype(np.float32))


def questions(path: pathlib.Path, count: int = 64, seed: int = 0) -> pathlib.Path:
    """Writes `count` long sums as a .jsonl file of questions and answers: prompts of 40 to 64 of SmolLM2's tokens."""
    rng = np.random.default_rng(seed)
    with path.open("w") as f:
        for _ in range(count):
            terms = rng.integers(10, 100, rng.integers(9, 14)).tolist()
            question = f"Work this out step by step: {' + '.join(map(str, terms))} ="
            f.write(json.dumps({"question": question, "answer": str(sum(terms))}) + "\n")
    return path


def letters(response: str, entry: object = None) -> float:
    """A reward that differs between any two texts, so that every group has something to learn from on either side."""
    return sum(c in "aeiou" for c in response) / max(1, len(response))


def rss_mb() -> float:
    """The process's peak resident memory so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory_mb() -> float:
    """The peak so far of JAX's memory on an accelerator, otherwise of the process's, MB."""
    if "jax" in sys.modules:
        stats = sys.modules["jax"].devices()[0].memory_stats()
        if stats and "peak_bytes_in_use" in stats:
            return stats["peak_bytes_in_use"] / 2**20
    return rss_mb()


def measure(f: Callable[[], object], loaded_mb: float, tokens: int, repeats: int = 3) -> Result:
    """One call to warm up, then the median of `repeats` calls.

    Args:
        f: The work; it returns when its result is there.
        loaded_mb: The peak memory before the work, which is subtracted.
        tokens: The number of tokens in the work.
        repeats: The number of timed calls.
    """
    f()
    seconds = [_time(f) for _ in range(repeats)]
    median = statistics.median(seconds)
    return {"seconds": median, "tokens_per_s": tokens / median, "memory_mb": memory_mb() - loaded_mb, "all": seconds}


def limits(dtype: "DTypeLike" = "float32") -> dict[str, float]:
    """The device's best matmul rate in this dtype (GFLOP/s) and copy bandwidth (GB/s, read and written), now."""
    import jax
    import jax.numpy as jnp

    accelerator = jax.default_backend() != "cpu"
    n = 8192 if accelerator else 2048
    x = jnp.ones((n, n), dtype)
    square = jax.jit(lambda x: x @ x)
    big: Any = jnp.ones(2**30, jnp.float32) if accelerator else np.ones(50_000_000, np.float32)
    add_one = jax.jit(lambda x: x + 1)
    out = None if accelerator else np.empty_like(big)

    def multiply() -> None:
        square(x).block_until_ready()

    def copy() -> None:
        if out is None:
            add_one(big).block_until_ready()
        else:
            np.copyto(out, big)

    return {
        "matmul_gflops": 2 * n**3 / _best(multiply) / 1e9,
        "copy_gb_per_s": 2 * big.nbytes / _best(copy) / 1e9,
    }


def _best(f: Callable[[], object]) -> float:
    return min(_time(f) for _ in range(8))


def _time(f: Callable[[], object]) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def side_by_side(sides: dict[str, tuple[str, ...]], rounds: int = 2) -> dict[str, list[Result]]:
    """Runs every side `rounds` times in the order A B A B.

    Args:
        sides: name -> (script, interpreter, arguments …). Each run prints one JSON object as its last line.
        rounds: How often each side runs.

    Returns:
        name -> the results, one per round.
    """
    results: dict[str, list[Result]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (script, python, *arguments) in sides.items():
            env = os.environ | MALLOC | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
            done = subprocess.run([python, script, *arguments], capture_output=True, text=True, env=env)
            if done.returncode:
                sys.exit(f"{name}: {done.stderr[-3000:]}")
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name:>8}: {summary(results[name][-1])}", file=sys.stderr, flush=True)
    return results


def summary(r: Result) -> str:
    return f"{r['seconds']:.2f} s  {r['tokens_per_s']:.0f} tokens/s  {r['memory_mb']:.0f} MB over the loaded model"


def report(name: str, results: dict[str, list[Result]]) -> None:
    """Prints a table and writes benchmarks/out/<name>.json."""
    first, *others = results
    record: dict[str, Any] = {"machine": machine(), "results": results, "ratios": {}}
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


def machine() -> dict[str, Any]:
    """The date, the device, the JAX version and the machine's limits."""
    import jax

    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "cpu": platform.processor() or platform.machine(),
        "jax": jax.__version__,
        **limits(),
    }


def row(record: dict[str, Any]) -> str:
    """A line of gpu.sh's table."""
    r = record["result"]
    share = r.get("share_of_copy" if "gb_per_s" in r else "share_of_matmul")
    shown = "" if share is None else f"{share:.0%}"
    return f"| {record['name']} | {r['tokens_per_s']:.0f} | {1e3 * r['seconds']:.0f} | {shown} | {r['memory_mb']:.0f} |"


if __name__ == "__main__":
    print(row(json.loads(sys.stdin.read())))
