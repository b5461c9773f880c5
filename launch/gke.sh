#!/usr/bin/env bash
# A run on TPUs in a GKE cluster, through XPK (pip install xpk).
#
#   launch/gke.sh [--dry-run] cluster CLUSTER            # creates a cluster with SLICES slices of TYPE
#   launch/gke.sh [--dry-run] image   IMAGE              # builds an image of this repository and pushes it
#   launch/gke.sh [--dry-run] run     CLUSTER IMAGE NAME -- --config=… --workdir=gs://BUCKET/NAME
#   launch/gke.sh [--dry-run] stop    CLUSTER NAME       # SIGTERM: the run saves; the same `run` resumes it
#   launch/gke.sh [--dry-run] delete  CLUSTER            # deletes the cluster, which ends its cost
#
# The job restarts if it is preempted or a node fails (exit codes 75, 42 and 127 to 255), at most RESTARTS times.
# From the environment: ZONE, PROJECT, TYPE (v5p-128, v5litepod-256, v6e-256, …), SLICES (1), SPOT=1, RESTARTS,
# MODULE (default: entropy_rl.train).
set -euo pipefail

MODULE=${MODULE:-entropy_rl.train}
DRY=""
if [[ ${1:-} == --dry-run ]]; then
  DRY=1
  shift
fi

die() {
  echo "launch/gke.sh: $*" >&2
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
  [[ -n ${ZONE:-} && -n ${PROJECT:-} ]] || die "set ZONE and PROJECT"
  PLACE=("--zone=$ZONE" "--project=$PROJECT")
}

step=${1:-}
shift || true
case $step in
  cluster)
    [[ $# == 1 && -n ${TYPE:-} ]] || die "cluster takes a name; set TYPE, for example TYPE=v5p-128"
    set_place
    capacity=(--on-demand)
    if [[ -n ${SPOT:-} ]]; then
      capacity=(--spot)
    fi
    do_it xpk cluster create "--cluster=$1" "${PLACE[@]}" "--tpu-type=$TYPE" \
      "--num-slices=${SLICES:-1}" "${capacity[@]}"
    ;;
  image)
    [[ $# == 1 ]] || die "image takes a name, for example us-docker.pkg.dev/PROJECT/REPOSITORY/entropy_rl:1"
    do_it docker build --file=launch/Dockerfile "--tag=$1" .
    do_it docker push "$1"
    ;;
  run)
    [[ $# -ge 5 && $4 == -- && -n ${TYPE:-} ]] || die "run takes a cluster, an image, a name, -- and flags; set TYPE"
    set_place
    cluster=$1 image=$2 name=$3
    shift 4
    # xpk refuses a name that exists: first delete what an earlier attempt left behind.
    do_it xpk workload delete "--cluster=$cluster" "--workload=$name" "${PLACE[@]}" --force || true
    do_it xpk workload create "--cluster=$cluster" "--workload=$name" "${PLACE[@]}" "--tpu-type=$TYPE" \
      "--num-slices=${SLICES:-1}" "--docker-image=$image" "--max-restarts=${RESTARTS:-20}" \
      --restart-on-exit-codes=75 --termination-grace-period-seconds=300 \
      "--command=exec python -m $MODULE $(printf '%q ' "$@")"
    ;;
  stop)
    [[ $# == 2 ]] || die "stop takes a cluster and a name"
    set_place
    do_it xpk workload delete "--cluster=$1" "--workload=$2" "${PLACE[@]}"
    ;;
  delete)
    [[ $# == 1 ]] || die "delete takes a cluster"
    set_place
    do_it xpk cluster delete "--cluster=$1" "${PLACE[@]}"
    ;;
  *) die "the first argument must be cluster, image, run, stop or delete, got '$step'" ;;
esac
