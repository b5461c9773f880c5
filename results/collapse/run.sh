#!/usr/bin/env bash
# The figure at the top of the README: the quickstart's model and task, 200 steps, with GRPO and with a method that holds
# entropy at a target. About ten minutes on two cores.
#
#   results/collapse/run.sh [RUNS]       # RUNS: the folder for the runs, runs/collapse unless given
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
RUNS=${1:-runs/collapse}

run() { # name, method, flags
  "$PYTHON" -m entropy_rl.train "--config=configs/quickstart.py:$2" "--workdir=$RUNS/$1" \
    --config.train.steps=200 --config.eval.every=50 --config.checkpoint.every=100 "${@:3}"
}

run grpo grpo
bonus=--config.algo.transforms.adaptive_entropy_bonus
run adaptive_entropy adaptive_entropy $bonus.target=0.15 $bonus.max_coef=0.2 $bonus.step=0.002
"$PYTHON" -m entropy_rl.analyze "--workdir=$RUNS/grpo" "--compare=$RUNS/adaptive_entropy" | grep -v "^plot:" | tee results/collapse/report.txt
cp "$RUNS/grpo/report/curves.png" results/collapse/curves.png
