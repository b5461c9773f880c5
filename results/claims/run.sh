#!/usr/bin/env bash
# The sweeps of the claims, in the order in which they are worth running. An interrupted one continues where it was.
#
#   results/claims/run.sh a_core          # one of them, into runs/claims/a_core, and what is measured of its runs
#   results/claims/run.sh all             # all of them: some thirty hours on two cores, and D's three and a half
#   RUNS=/elsewhere JOBS=1 results/claims/run.sh a_core
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
RUNS=${RUNS:-runs/claims}
JOBS=${JOBS:-2}

SWEEPS=(
  a_core b_core a_clip_cov a_kl_cov b_clip_cov b_kl_cov a_held b_held a_shares b_shares
  a_clip_higher a_entropy_bonus a_reference_kl b_clip_higher b_entropy_bonus b_reference_kl
  a_random_positive_clip b_random_positive_clip a_matched_norm b_matched_norm
  a_rewards b_rewards a_forks b_forks a_clipping b_clipping a_dtype d_core
)

sweep() { # name, config, seeds, methods, settings
  mkdir -p "$RUNS/warmups" "$RUNS/$1"
  ln -sfn ../warmups "$RUNS/$1/warmups" # one warm-up for all arms of a seed, in whichever sweep they are
  "$PYTHON" -m entropy_rl.sweep "--config=configs/$2" "--seeds=$3" "--methods=$4" "--out=$RUNS/$1" "--jobs=$JOBS" \
    "${@:5}"
}

run() { # name of a sweep, whose first letter is its bed
  local bed=study.py:two_readings transforms=--config.algo.transforms
  [[ $1 == b_* ]] && bed=study.py:countdown
  if [[ $1 == d_core ]]; then # 1.6 GB per checkpoint: the start and the end alone
    sweep d_core smollm2.py 3 grpo,dapo,forking,bottom80 --config.checkpoint.{keep_every=40,keep=1}
    "$PYTHON" results/claims/measure.py "$RUNS/d_core"
    return
  fi
  case ${1#?_} in
    core) sweep "$1" $bed 10 grpo,rloo,reinforce_pp --config.{measure.every=5,log.rollouts=40,checkpoint.keep_every=40} ;;
    clip_cov) sweep "$1" $bed 10 clip_cov $transforms.clip_cov.fraction=2e-4,2e-3,2e-2 ;;
    kl_cov) sweep "$1" $bed 10 kl_cov $transforms.kl_cov.fraction=2e-3,2e-2,2e-1 --config.checkpoint.keep_every=100 ;;
    held) sweep "$1" $bed 10 adaptive_entropy $transforms.adaptive_entropy_bonus.{target=0.15,max_coef=0.2,step=0.002} ;;
    shares) sweep "$1" $bed 10 dapo,forking,forking10,forking50,bottom80,random_mask --config.checkpoint.keep_every=100 ;;
    clip_higher) sweep "$1" $bed 10 clip_higher --config.algo.objective.high=0.28,0.5,1.0 ;;
    entropy_bonus) sweep "$1" $bed 10 entropy_bonus $transforms.entropy_bonus.coef=1e-3,5e-3,2e-2 ;;
    reference_kl) sweep "$1" $bed 10 reference_kl $transforms.reference_kl.coef=1e-3,1e-2,1e-1 ;;
    random_positive_clip)
      sweep "$1" $bed 10 random_positive_clip $transforms.random_positive_clip.fraction=2e-4,2e-3,2e-2 ;;
    matched_norm) sweep "$1" $bed 10 matched_norm $transforms.matched_norm.inner.fraction=2e-4,2e-3,2e-2 ;;
    rewards) sweep "$1" $bed 10 grpo --config.reward.kind=random,format,incorrect,majority,none ;;
    forks) sweep "$1" $bed 10 forking_positions,forking_shuffled,forking_base,gmts ;;
    clipping)
      sweep "$1" $bed 10 grpo,no_clip --config.reward.kind=random --config.train.updates_per_rollout=4 ;;
    dtype) sweep "$1" $bed 10 grpo --config.model.dtype=bfloat16,bfloat16_float32_head ;;
    *) echo "no such sweep: $1; they are: ${SWEEPS[*]}" >&2; exit 2 ;;
  esac
  "$PYTHON" results/claims/measure.py "$RUNS/$1"
}

if [[ ${1:-} == all ]]; then
  for name in "${SWEEPS[@]}"; do run "$name"; done
else
  run "${1:-none}"
fi
