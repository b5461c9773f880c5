#!/usr/bin/env bash
# The atlas: every recipe of the repository on bed A. An interrupted one continues; methods that are done take seconds.
#
#   results/atlas/run.sh                  # all: about 680 runs of one core, more than half of them short: a day and a half on two
#   results/atlas/run.sh grpo kl_cov      # these
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
METHODS=("$@")
if [[ ${#METHODS[@]} == 0 ]]; then
  mapfile -t METHODS < <("$PYTHON" -c 'from entropy_rl.config.recipes import RECIPES; print(*RECIPES, sep="\n")')
fi
for method in "${METHODS[@]}"; do
  "$PYTHON" results/atlas/enter.py "$method" --out="${OUT:-runs/atlas}" --jobs="${JOBS:-2}"
done
make results
