#!/usr/bin/env bash
# Trains on one GPU of this machine, the first unless CUDA_VISIBLE_DEVICES names another.
#
#   launch/single_gpu.sh [OPTIONS]        for example: CUDA_VISIBLE_DEVICES=2 launch/single_gpu.sh --run_dir runs/try
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

start --multi_gpu --num_processes 1 "$@"
