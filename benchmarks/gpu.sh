#!/bin/bash
# One GPU, under nine minutes: the shapes of Qwen2.5 with random weights in bfloat16, each side in a fresh process.
#
#   PEER=PYTHON_WITH_TRL MODEL=FOLDER benchmarks/gpu.sh    # absolute paths; without PEER, only our side runs
#   LIMIT=300 benchmarks/gpu.sh                            # seconds; what has not begun by then is left out
#
# Micro-batches have 8448 positions: two prompts of 128, computed once, with 8 responses of 512 each. MFU is the share
# of the matmul rate (in decoding: of the copy bandwidth) that the same process measures. Each product counts once, also
# if remat or the first pass over micro-batches computes it again. The peer holds parameters and moments in bfloat16, we
# hold them in float32. benchmarks/out/gpu.jsonl receives one JSON object per line.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python3}
export PYTHONPATH=$PWD/..:$PWD${PYTHONPATH:+:$PYTHONPATH} XLA_PYTHON_CLIENT_MEM_FRACTION=.92
small=Qwen/Qwen2.5-0.5B larger=Qwen/Qwen2.5-1.5B
out=out/gpu.jsonl end=$((SECONDS + ${LIMIT:-520}))
shapes=$(mktemp -d)
trap 'rm -r "$shapes"' EXIT
mkdir -p out
: >"$out"

run() { # NAME INTERPRETER SCRIPT ARGUMENTS: prints one line of the table, or the error
  local name=$1 line left=$((end - SECONDS))
  shift
  if line=$(timeout $((left < 1 ? 1 : left < 150 ? left : 150)) "$@" --repeats 3 2>"$shapes/err" | tail -1) && [ -n "$line" ]; then
    echo "{\"name\": \"$name\", \"result\": $line}" | tee -a "$out" | "$python" common.py
  else
    echo "| $name | failed: $(tail -1 "$shapes/err") |"
  fi
}

nvidia-smi --query-gpu=name,memory.total --format=csv,noheader || true
echo "| work | tokens/s | ms | MFU or share of the bandwidth | memory over the loaded model, MB |"
echo "|---|---|---|---|---|"
update=(--groups 4 --micro 2 --prompt 128 --tokens 513)
decode=(--groups 32 --prompt 128 --tokens 256)
peer() { # NAME SHAPE ARGUMENTS: TRL's side on a shape with random weights
  if [ -n "${PEER:-}" ]; then
    "$python" ours.py config --shape "$2" --model "$shapes/model" >/dev/null 2>&1
    run "$1" "$PEER" trl_side.py "${@:3}" --model "$shapes/model" --random
  fi
}

run "train step, 0.5B" "$python" ours.py train --shape $small "${update[@]}"
peer "train step, 0.5B, TRL" $small train --groups 4 --prompt 128 --tokens 513 --micro 16
run "decode, 256 sequences, 0.5B" "$python" ours.py rollout --shape $small "${decode[@]}"
peer "decode, 256 sequences, 0.5B, transformers" $small rollout "${decode[@]}"
run "train step, 0.5B, without the kernel" "$python" ours.py train --shape $small "${update[@]}" --plain-attention
run "scoring, 0.5B" "$python" ours.py score --shape $small "${update[@]}"
run "head, 0.5B, 8192 positions" "$python" ours.py head --shape $small --tokens 8192
run "train step, 1.5B" "$python" ours.py train --shape $larger "${update[@]}"
peer "train step, 1.5B, TRL" $larger train --groups 4 --prompt 128 --tokens 513 --micro 16
run "train step, 1.5B, LoRA" "$python" ours.py train --shape $larger "${update[@]}" --lora 16
run "skewed lengths, 0.5B" "$python" ours.py skewed --shape $small --groups 32 --prompt 128
run "skewed lengths, 0.5B, fixed batch" "$python" ours.py skewed --fixed --shape $small --groups 32 --prompt 128
if [ -n "${MODEL:-}" ]; then # a Hugging Face folder: a whole RL step
  timeout $((end - SECONDS > 1 ? end - SECONDS : 1)) "$python" bench_step.py --model "$MODEL" ${PEER:+--peer "$PEER"} --rounds 1
fi
