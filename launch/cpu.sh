#!/usr/bin/env bash
# Trains on the CPU cores of this machine with N ranks, which communicate with gloo. The results are those of one rank, up to rounding.
#
#   launch/cpu.sh N [OPTIONS]        for example: launch/cpu.sh 2 --run_dir runs/try --batch_size 64
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ ${1:-} =~ ^[1-9][0-9]*$ ]] || fail "usage: launch/cpu.sh N [OPTIONS], with N ranks"
start --cpu --num_processes "$@"
