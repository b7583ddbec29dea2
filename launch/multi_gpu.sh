#!/usr/bin/env bash
# Trains on all GPUs of this machine, one rank each. --batch_size is that of all together.
#
#   launch/multi_gpu.sh [OPTIONS]
#   GPUS=4 launch/multi_gpu.sh [OPTIONS]        only the first four
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

number GPUS
start --multi_gpu ${GPUS:+--num_processes "$GPUS"} "$@"
