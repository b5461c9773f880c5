#!/usr/bin/env bash
# The entropy change of single updates on SmolLM2, measured and predicted, under AdamW and under SGD.
# Both runs start from the warm-up of results/smollm2/run.sh. An interrupted run resumes.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
runs=${RUNS:-runs/smollm2}

train() {  # optimiser, learning rate
  "$python" -m entropy_rl.train --config=configs/smollm2.py:grpo --workdir="$runs/entropy-$1" \
    --config.model.source="$runs/start" --config.warmup.updates=0 --config.optim.name="$1" --config.optim.lr="$2" \
    --config.rollout.prompts=2 --config.train.updates_per_rollout=1 --config.train.steps=12 \
    --config.measure.every=1 --config.eval.every=0 --config.checkpoint.every=12
}
train adamw 1e-6
train sgd 2e-3
for optimiser in adamw sgd; do
  "$python" -m entropy_rl.analyze --workdir="$runs/entropy-$optimiser" | sed -n '/^entropy change/,/^$/p' \
    > "results/entropy_change/$optimiser.txt"
done
