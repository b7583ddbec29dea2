#!/usr/bin/env bash
#SBATCH --job-name=shard --nodes=1 --ntasks=1
#SBATCH --output=slurm/logs/%x-%j.log --open-mode=append
#SBATCH --requeue
#
# Writes the shards of a data set on many nodes: each task of a SLURM array writes a part, one more job completes the set.
# Submit it from the project's folder. SOURCE and OUT must have the same paths on all nodes:
#
#   job=$(sbatch --parsable --array=1-8 --cpus-per-task=16 --time=4:00:00 slurm/shard.sh SOURCE OUT --size 96)
#   sbatch --dependency=afterok:$job slurm/shard.sh --merge OUT
#   PARTS=8 sbatch --array=3,5 --cpus-per-task=16 slurm/shard.sh SOURCE OUT --size 96          repeats two of the tasks
#
# PARTS   default: the tasks of the array. Without an array, one job does everything.
#
# A task that was preempted, timed out or failed continues when it is submitted again: finished shards are kept.
set -euo pipefail

# SLURM runs a copy of this file in another folder
[[ -f $SLURM_SUBMIT_DIR/launch/common.sh ]] || { echo "error: run sbatch in the project's folder: sbatch slurm/shard.sh" >&2; exit 2; }
# shellcheck source=../launch/common.sh
source "$SLURM_SUBMIT_DIR/launch/common.sh"

options=()
if [[ " $* " != *" --merge "* ]]; then
  options+=(--processes "$SLURM_CPUS_ON_NODE") # first, so that the user's own option wins
  if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    if [[ -z ${PARTS:-} ]] && ((SLURM_ARRAY_TASK_MAX != SLURM_ARRAY_TASK_COUNT)); then
      fail "the tasks of the array are not 1 to N: use --array=1-N, or set PARTS=N to the total number of parts"
    fi
    options+=(--part "$SLURM_ARRAY_TASK_ID/${PARTS:-$SLURM_ARRAY_TASK_COUNT}")
  fi
fi
exec python -m dcgan_dist shard "${options[@]}" "$@"
