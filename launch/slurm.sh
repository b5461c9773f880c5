#!/usr/bin/env bash
# A run on the GPUs of a Slurm cluster, one process per GPU. The script submits itself.
#
#   launch/slurm.sh [--dry-run] -- --config=configs/entropy_mechanism.py:qwen2_5_7b,clip_cov --workdir=/shared/runs/a
#
# The workdir must be on a file system that all nodes share. Five minutes before the time limit, and when the job is
# preempted, every process receives SIGTERM, saves and exits with 75; the job then requeues itself and resumes.
#
# From the environment, with defaults: NODES (1), GPUS per node (8), HOURS (24), PARTITION, ACCOUNT, NAME, PYTHON
# (.venv/bin/python), MODULE (entropy_rl.train).
set -euo pipefail

PREEMPTED=75
MODULE=${MODULE:-entropy_rl.train}

# Within the job: run one step, and requeue the job if it was preempted.
if [[ -n ${SLURM_JOB_ID:-} && ${ENTROPY_RL_SUBMITTED:-} == 1 ]]; then
  status=0
  # A process that exits first with 75 must not make srun kill the others, which are still saving. If a process dies,
  # the heartbeat ends those that wait for it.
  srun --kill-on-bad-exit=0 "${PYTHON:-.venv/bin/python}" -m "$MODULE" "$@" || status=$?
  if [[ $status == "$PREEMPTED" ]]; then
    exec scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$status"
fi

DRY=""
if [[ ${1:-} == --dry-run ]]; then
  DRY=1
  shift
fi
if [[ ${1:-} != -- || $# -lt 2 ]]; then
  echo "launch/slurm.sh: takes -- and the flags of entropy_rl.train" >&2
  exit 2
fi
shift
command=(sbatch "--job-name=${NAME:-entropy_rl}" "--nodes=${NODES:-1}" "--ntasks-per-node=${GPUS:-8}"
  "--gpus-per-node=${GPUS:-8}" "--time=${HOURS:-24}:00:00" --exclusive --requeue --open-mode=append --signal=TERM@300
  "--export=ALL,ENTROPY_RL_SUBMITTED=1")
if [[ -n ${PARTITION:-} ]]; then
  command+=("--partition=$PARTITION")
fi
if [[ -n ${ACCOUNT:-} ]]; then
  command+=("--account=$ACCOUNT")
fi
command+=("$0" "$@")
if [[ -n $DRY ]]; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
