#!/usr/bin/env bash
# test.sh [PYTEST OPTIONS]: installs what the tests need, once, and runs the linters and all tests that this machine can run.
# With a CUDA device these include the gpu tests. The SLURM tests need root: they start a cluster of their own on this machine.
set -euo pipefail
cd "$(dirname "$0")/.."
launch/install.sh test
export PATH="$PWD/.venv/bin:$PATH"
export PYTHONDONTWRITEBYTECODE= # the tests start a thousand processes; none but the first is to compile the package
export OMP_WAIT_POLICY=passive # several processes share the cores: waiting threads must leave them to others
launch/lint.sh
(($#)) || set -- --numprocesses 4 # also on two cores, because half of the time is waiting
exec python -m pytest "$@"
