#!/usr/bin/env bash
#SBATCH --job-name=sweep --nodes=1 --ntasks=1
#SBATCH --output=slurm/logs/%x-%j.log --open-mode=append
#SBATCH --requeue --signal=B:USR1@120
#
# Runs trials of a W&B sweep on a SLURM cluster: each job, or task of a job array, is one agent, whose trials use all GPUs of
# its node. Submit it from the project's folder, with a --run_dir in the sweep's command that all nodes share:
#
#   wandb sweep --project PROJECT launch/sweeps/rates.yaml
#   sbatch --array=1-8 --gpus-per-node=1 --cpus-per-task=16 --time=8:00:00 slurm/sweep.sh USER/PROJECT/SWEEP
#
# TRIALS   the number of trials of each agent; default: as many as the sweep has
#
# Before its time limit a job stops its trial, which saves, and requeues itself. W&B then gives the trial to the next agent
# that asks, which resumes it.
set -euo pipefail

# SLURM runs a copy of this file in another folder
[[ -f $SLURM_SUBMIT_DIR/launch/common.sh ]] || { echo "error: run sbatch in the project's folder: sbatch slurm/sweep.sh" >&2; exit 2; }
# shellcheck source=../launch/common.sh
source "$SLURM_SUBMIT_DIR/launch/common.sh"

number TRIALS
[[ $# == 1 && $1 == */*/* ]] || fail "usage: sbatch slurm/sweep.sh USER/PROJECT/SWEEP, as wandb sweep prints it"

# the agent passes the signal on, waits for its trial, and ends
wandb agent --forward-signals ${TRIALS:+--count "$TRIALS"} "$1" &
agent=$!
warned=
trap 'warned=yes; kill -TERM "$agent" 2>/dev/null || true' USR1
while kill -0 "$agent" 2>/dev/null; do wait "$agent" || true; done # a trap ends the waiting early
code=0
wait "$agent" || code=$?
if [[ -n $warned ]]; then
  echo "$(date '+%F %T') job $SLURM_JOB_ID: SLURM will end this job soon; requeueing"
  scontrol requeue "$SLURM_JOB_ID" || exit 75 # not allowed (sbatch --no-requeue): submit the job again
fi
exit "$code"
