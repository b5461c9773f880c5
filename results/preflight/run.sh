#!/usr/bin/env bash
# Compiles the papers' runs for pods that are not present, and writes one JSON report per run; then prints their table.
# Needs pip install "jax[tpu]==<jax>" and minutes per run, on any machine.
#
#   results/preflight/run.sh [NAME …]        # all runs, or those named; then the table of all reports in the folder
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python}

run() { # name, topology, config, flags
  local name=$1 topology=$2 config=$3
  shift 3
  if [[ ${#CHOSEN[@]} -gt 0 && ! " ${CHOSEN[*]} " == *" $name "* ]]; then
    return
  fi
  echo "$name" >&2
  local out=results/preflight/$name.json
  # exit code 1: the run compiled and does not fit
  "$PYTHON" -m entropy_rl.preflight "--config=$config" "--topology=$topology" --json "$@" \
    2>"${out%.json}.log" >"$out.part" || [[ $? == 1 && -s $out.part ]]
  mv "$out.part" "$out"
}

CHOSEN=("$@")
# the papers' batches, responses of 8192 tokens
run 0_5b-v5e-4x4 v5e:4x4 configs/entropy_mechanism.py:qwen2_5_0_5b
run 7b-v5p-4x4x4 v5p:4x4x4 configs/entropy_mechanism.py:qwen2_5_7b
run 7b-v5e-16x16 v5e:16x16 configs/entropy_mechanism.py:qwen2_5_7b --config.mesh.fsdp=256 \
  --config.train.micro_batches=1 --config.model.remat=full --config.rollout.tensor=4
run 32b-v5p-4x4x4 v5p:4x4x4 configs/entropy_mechanism.py:qwen2_5_32b
run 14b-v6e-16x16 v6e:16x16 configs/beyond_80_20.py:qwen3_14b --config.rollout.max_tokens=8192 \
  --config.rollout.slots=1024
# weak scaling: 4 sequences per chip in one layout, parameters over 16 chips
for shape in 2x2x4:16 4x4x4:64 4x8x8:256; do
  chips=${shape#*:}
  run "7b-weak-v5p-${shape%:*}" "v5p:${shape%:*}" configs/entropy_mechanism.py:qwen2_5_7b --config.mesh.fsdp=16 \
    "--config.rollout.prompts=$((chips * 4))" "--config.eval.batch=256"
done
# the other runs, as their configs have them: Qwen3 with responses of 20480 tokens
run 1_5b-v5e-4x8 v5e:4x8 configs/entropy_mechanism.py:qwen2_5_1_5b
run 3b-v5e-8x8 v5e:8x8 configs/entropy_mechanism.py:qwen2_5_3b
run llama-8b-v5p-4x4x4 v5p:4x4x4 configs/entropy_mechanism.py:llama3_1_8b
run mistral-7b-v5p-4x4x4 v5p:4x4x4 configs/entropy_mechanism.py:mistral_7b
run qwen3-8b-v5p-4x4x4 v5p:4x4x4 configs/beyond_80_20.py:qwen3_8b
run qwen3-14b-v6e-16x16 v6e:16x16 configs/beyond_80_20.py:qwen3_14b
run qwen3-32b-v5p-4x8x8 v5p:4x8x8 configs/beyond_80_20.py:qwen3_32b
"$PYTHON" results/preflight/table.py results/preflight/*.json
