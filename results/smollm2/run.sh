#!/usr/bin/env bash
# The three runs of results/smollm2, which all start from the same warm-up. An interrupted run resumes.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
runs=${RUNS:-runs/smollm2}

if [ ! -d "$runs/start" ]; then
  "$python" -m entropy_rl.train --config=configs/smollm2.py:grpo --workdir="$runs/warmup" --config.train.steps=0
  "$python" -c "import entropy_rl; entropy_rl.load('$runs/warmup').save('$runs/start')"
fi
train() {  # method, steps
  "$python" -m entropy_rl.train --config="configs/smollm2.py:$1" --workdir="$runs/$1" --config.model.source="$runs/start" \
    --config.warmup.updates=0 --config.train.steps="$2"
}
train grpo 40
train clip_cov 20
train forking 20
"$python" -m entropy_rl.analyze --workdir="$runs/grpo" --compare="$runs/clip_cov,$runs/forking" \
  > results/smollm2/report.txt
for method in grpo clip_cov forking; do cp "$runs/$method/metrics.jsonl" "results/smollm2/$method.jsonl"; done
cp "$runs/grpo/report/curves.png" results/smollm2/curves.png
"$python" results/smollm2/table.py "$runs" > results/smollm2/table.md
