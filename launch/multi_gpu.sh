#!/usr/bin/env bash
# Trains on all GPUs of this machine, one rank on each. --batch_size is the total over all ranks.
#
#   launch/multi_gpu.sh [OPTIONS]
#   GPUS=4 launch/multi_gpu.sh [OPTIONS]        only the first four
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

number GPUS
start --multi_gpu ${GPUS:+--num_processes "$GPUS"} "$@"
