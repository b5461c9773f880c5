#!/usr/bin/env bash
# The runs of results/lora: three seeds, each in full and by LoRA from the same warmed-up model. An interrupted run resumes.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
runs=${RUNS:-runs/lora}

for seed in 0 1 2; do
  start=$runs/start-$seed
  if [ ! -d "$start" ]; then
    "$python" -m entropy_rl.train --config=configs/smollm2.py:grpo --workdir="$runs/warmup-$seed" \
      --config.seed="$seed" --config.train.steps=0
    "$python" -c "import entropy_rl; entropy_rl.load('$runs/warmup-$seed').save('$start')"
  fi
  from=(--config.model.source="$start" --config.warmup.updates=0 --config.seed="$seed" --config.log.rollouts=10)
  "$python" -m entropy_rl.train --config=configs/smollm2.py:grpo --workdir="$runs/full-$seed" "${from[@]}"
  "$python" -m entropy_rl.train --config=configs/smollm2.py:grpo --workdir="$runs/rank16-$seed" "${from[@]}" \
    --config.model.lora.rank=16 --config.optim.lr=1e-4
  for side in full rank16; do cp "$runs/$side-$seed/metrics.jsonl" "results/lora/$side-$seed.jsonl"; done
done
"$python" results/lora/table.py >results/lora/table.md
