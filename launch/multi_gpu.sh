#!/usr/bin/env bash
# Trains on all GPUs of this machine, one rank each. --batch_size is that of all together.
#
#   launch/multi_gpu.sh [OPTIONS]
#   GPUS=4 launch/multi_gpu.sh [OPTIONS]        only the first four
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

found=$(gpus)
ranks=${GPUS:-$found}
[[ $ranks != 0 ]] || fail "torch finds no GPU here; launch/cpu.sh N trains without"
preflight "$ranks" "$@"
((ranks <= found)) || fail "GPUS=$ranks, but torch finds $found here"
start "$ranks" "$@"
