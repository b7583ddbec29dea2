#!/usr/bin/env bash
#SBATCH --job-name=dcgan --nodes=1 --ntasks-per-node=1
#SBATCH --output=slurm/logs/%x-%j.log --open-mode=append
#SBATCH --requeue --signal=B:USR1@90
#
# Trains on a SLURM cluster: one launcher per node, one rank per GPU. A job that reaches its time limit or is preempted saves,
# requeues itself and continues. Submit it from the project's folder, with a --run_dir on a disk that all nodes share:
#
#   sbatch --nodes=2 --gpus-per-node=8 --cpus-per-task=64 --time=24:00:00 slurm/train.sh --config launch/configs/notes96.yaml
#   RANKS_PER_NODE=4 sbatch --nodes=2 --cpus-per-task=16 slurm/train.sh [OPTIONS]        4 ranks on the CPU cores of each node
#
# RANKS_PER_NODE   default: the number of GPUs that the job has on a node; without GPUs, 1
#
# `touch RUN/STOP` and `scancel` end the job with a checkpoint and without a requeue; sbatch with the same options resumes.
set -euo pipefail

warned=
trap 'warned=yes' USR1 # SLURM's warning may come at any time; without a trap it would end this script

# SLURM runs a copy of this file in another folder
[[ -f $SLURM_SUBMIT_DIR/launch/common.sh ]] || { echo "error: run sbatch in the project's folder: sbatch slurm/train.sh" >&2; exit 2; }
# shellcheck source=../launch/common.sh
source "$SLURM_SUBMIT_DIR/launch/common.sh"

number RANKS_PER_NODE
ranks=$((SLURM_NNODES * ${RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}))
preflight "$ranks" "$@"
run_dir=$(python -c 'import sys; from dcgan_dist import cli; print(cli.load(sys.argv[1:], quiet=True).run_dir)' "$@")
restarts=${SLURM_RESTART_COUNT:-0}

say() { echo "$(date '+%F %T') job $SLURM_JOB_ID, restart $restarts: $*"; }
newest() { cat "$run_dir/checkpoints/latest" 2>/dev/null || true; }
requeue() {
  say "$1; requeueing"
  scontrol requeue "$SLURM_JOB_ID" || exit 75 # not allowed (sbatch --no-requeue): submit the job again
  exit 0                                      # at once: SLURM waits for this script before it restarts the job
}

# asks the ranks by a file to save and stop: unlike a signal, a file also works while their launchers start
asked=
ask_to_stop() {
  say "SLURM will end this job soon"
  if by_hand; then return 0; fi
  asked=yes
  echo "SLURM job $SLURM_JOB_ID, restart $restarts" >"$run_dir/STOP" || true # other attempts will ignore it
}
by_hand() { # whether a person has asked to stop for good
  [[ -e $run_dir/STOP && -z $asked ]] && ! grep -qs "^SLURM job " "$run_dir/STOP"
}

mkdir -p "$run_dir"
before=$(newest)
stamp() { stat --format='%i %y' "$run_dir/$1" 2>/dev/null || true; }
done_before=$(stamp DONE) preempted_before=$(stamp PREEMPTED) # of earlier attempts
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# its address, because on some clusters nodes cannot resolve each other's names
address=$(scontrol show node -o "$first_node" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')

options=(--quiet --config_file "$root/accelerate_config.yaml" --num_machines "$SLURM_NNODES" --num_processes "$ranks")
if ((ranks > 1)); then
  options+=(--multi_gpu --main_process_ip "$address" --main_process_port $((20000 + SLURM_JOB_ID % 10000)))
fi
say "$ranks ranks on $SLURM_NNODES nodes, run folder $run_dir, newest checkpoint: ${before:-none}"

# shellcheck disable=SC2016 # SLURM_NODEID must be expanded on its node
# trap "": a USR1 to all processes of the job (scancel --signal=USR1) must reach the ranks and not end their launcher
# --cpus-per-task: all that the job has on a node; since SLURM 22.05 a step does not inherit them
# --mpi=none: the launcher starts the ranks itself
srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" \
  --mpi=none --kill-on-bad-exit=1 \
  bash -c 'trap "" USR1; exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"' launcher \
  "${options[@]}" -m dcgan_dist.train "$@" --world_size "$ranks" &
step=$!
trap ask_to_stop USR1
[[ -z $warned ]] || ask_to_stop # the warning came earlier
while kill -0 "$step" 2>/dev/null; do wait "$step" || true; done # a trap ends the waiting early
code=0
wait "$step" || code=$?

# Launchers do not pass on the exit code of a rank, so the trainer writes a file when it ends.
ended() { ((code == 0)) && [[ -e $run_dir/$1 && $(stamp "$1") != "$2" ]]; } # ended MARKER STAMP_BEFORE
if ended DONE "$done_before"; then
  say "the training is complete"
  exit 0
fi
if [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) == C* ]]; then # CANCELLED, COMPLETING
  say "cancelled"
  exit 1
fi
if by_hand; then
  say "not requeued (exit code $code), because $run_dir/STOP exists"
  exit "$code"
fi
# Anything else may repeat endlessly: a crash at the same image, or a time limit shorter than the start. A job that made
# progress is always requeued. One that made none is requeued only if it was asked to stop and did so in order, at most ten times.
# A checkpoint is no progress of this attempt if another one owns the run: a job that kept this one out, or a restart of this
# job, which SLURM began on another node when it took this one for dead.
owner=$(cat "$run_dir/owner.json" 2>/dev/null || true)
restart=${SLURM_RESTART_COUNT:+\"$SLURM_RESTART_COUNT\"}
if [[ $(newest) != "$before" && $owner == *"\"slurm_job\": \"$SLURM_JOB_ID\""*"\"slurm_restart\": ${restart:-null}"* ]]; then
  requeue "ended at checkpoint $(newest) (exit code $code)"
elif ended PREEMPTED "$preempted_before" && ((restarts < 10)); then
  requeue "ended before it made progress"
fi
say "failed without progress (exit code $code); not requeued"
exit "$((code ? code : 1))"
