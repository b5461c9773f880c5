#!/usr/bin/env bash
# A run on a Cloud TPU slice, through queued resources. Every step may be repeated; what exists already is reused.
#
#   launch/tpu.sh [--dry-run] all    NAME -- FLAGS   # --config=… --workdir=gs://BUCKET/NAME
#   launch/tpu.sh [--dry-run] create NAME            # requests the slice and waits until it is active
#   launch/tpu.sh [--dry-run] setup  NAME            # installs this repository's HEAD and requirements on all workers
#   launch/tpu.sh [--dry-run] run    NAME -- FLAGS   # runs python -m entropy_rl.train FLAGS on all workers
#   launch/tpu.sh [--dry-run] fetch  gs://BUCKET/NAME FOLDER   # copies the workdir to this machine
#   launch/tpu.sh [--dry-run] delete NAME            # deletes the slice, which ends its cost
#
# `all` is create, setup, run and, at the end, delete. A run that exits with 75, or loses its slice, is started again
# (at most RESTARTS times) on the same slice or on a new one, and resumes from its last checkpoint.
#
# From the environment: ZONE, TYPE (v5p-128, v5litepod-256, v6e-256, …), RUNTIME (v2-alpha-tpuv5, v2-alpha-tpuv5-lite,
# v2-alpha-tpuv6e), PROJECT (default: gcloud's), SPOT=1 for capacity that may be withdrawn, RESTARTS, MODULE
# (default: entropy_rl.train; entropy_rl.evaluate takes different flags).
set -euo pipefail

PREEMPTED=75
MODULE=${MODULE:-entropy_rl.train}
WAIT_SECONDS=${WAIT_SECONDS:-30}
RESTARTS=${RESTARTS:-20}
DRY=""
if [[ ${1:-} == --dry-run ]]; then
  DRY=1
  shift
fi

die() {
  echo "launch/tpu.sh: $*" >&2
  exit 2
}

# Runs a command; with --dry-run, prints it.
do_it() {
  if [[ -n $DRY ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

set_place() {
  [[ -n ${ZONE:-} ]] || die "set ZONE, for example ZONE=us-east5-a"
  PLACE=("--zone=$ZONE")
  if [[ -n ${PROJECT:-} ]]; then
    PLACE+=("--project=$PROJECT")
  fi
}

state() {
  gcloud compute tpus queued-resources describe "$1" "${PLACE[@]}" --format='value(state.state)' 2>/dev/null || echo NONE
}

create() {
  set_place
  [[ -n ${TYPE:-} && -n ${RUNTIME:-} ]] || die "set TYPE and RUNTIME, for example TYPE=v5p-128 RUNTIME=v2-alpha-tpuv5"
  local command=(gcloud compute tpus queued-resources create "$1" "--node-id=$1" "${PLACE[@]}"
    "--accelerator-type=$TYPE" "--runtime-version=$RUNTIME")
  if [[ -n ${SPOT:-} ]]; then
    command+=(--spot)
  fi
  if [[ -n $DRY ]]; then
    do_it "${command[@]}"
    return
  fi
  while true; do
    case $(state "$1") in
      ACTIVE) return ;;
      NONE) "${command[@]}" ;;
      FAILED | SUSPENDED) delete "$1" ;;
      *) sleep "$WAIT_SECONDS" ;;
    esac
  done
}

# Succeeds if the slice is still active some time after a failure: the state of a withdrawn slice changes late.
still_active() {
  for _ in 1 2 3 4; do
    [[ $(state "$1") == ACTIVE ]] || return 1
    sleep "$WAIT_SECONDS"
  done
}

on_all() {
  do_it gcloud compute tpus tpu-vm ssh "$1" "${PLACE[@]}" --worker=all --command="$2"
}

setup() {
  set_place
  local archive jax
  jax=${JAX:-jax[tpu]}
  archive=${TMPDIR:-/tmp}/$1.tar.gz
  # One chain of &&: `all` calls this function in a context in which a failure does not end the script.
  do_it git archive --format=tar.gz "--output=$archive" HEAD &&
    do_it gcloud compute tpus tpu-vm scp "$archive" "$1:entropy_rl.tar.gz" "${PLACE[@]}" --worker=all &&
    do_it rm "$archive" &&
    on_all "$1" "mkdir -p entropy_rl && tar -xzf entropy_rl.tar.gz -C entropy_rl && cd entropy_rl &&
    python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --allow-existing --python 3.12 .venv &&
    python3 -m uv pip install --quiet --python .venv '$jax' datasets gcsfs -r requirements.txt"
}

run() {
  set_place
  local name=$1 flags status
  shift
  flags=$(printf '%q ' "$@")
  status=0
  on_all "$name" "cd entropy_rl && .venv/bin/python -m $MODULE $flags" || status=$?
  return "$status"
}

all() {
  local name=$1 status
  for ((left = RESTARTS; left >= 0; left--)); do
    create "$name"
    status=0
    { setup "$name" && run "$@"; } || status=$?
    if [[ $status == 0 ]]; then
      break
    fi
    # A slice that is withdrawn cuts the connection. Any other failure, with the slice still active, is the run's.
    if [[ $status != "$PREEMPTED" ]] && still_active "$name"; then
      die "the run failed with $status; $name is kept and still costs money: launch/tpu.sh delete $name"
    fi
    echo "launch/tpu.sh: exit code $status, $left restarts left" >&2
  done
  delete "$name"
  return "$status"
}

fetch() {
  do_it gcloud storage rsync --recursive "$1" "$2"
}

delete() {
  set_place
  do_it gcloud compute tpus queued-resources delete "$1" "${PLACE[@]}" --force --quiet
}

step=${1:-}
shift || true
case $step in
  create | setup | delete)
    [[ $# == 1 ]] || die "$step takes a name"
    "$step" "$1"
    ;;
  fetch)
    [[ $# == 2 ]] || die "fetch takes a workdir in a bucket and a local folder"
    fetch "$@"
    ;;
  run | all)
    [[ $# -ge 3 && $2 == -- ]] || die "$step takes a name, -- and the flags of entropy_rl.train"
    name=$1
    shift 2
    "$step" "$name" "$@"
    ;;
  *) die "the first argument must be all, create, setup, run, fetch or delete, got '$step'" ;;
esac
