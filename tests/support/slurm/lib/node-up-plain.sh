# shellcheck shell=bash
# node-up-plain.sh NODE: starts the daemon of one node as an ordinary process
set -eu
node=$1
S=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=pids.sh
source "$S/lib/pids.sh"
setsid slurmd -D -f "$S/etc/slurm.conf" -N "$node" </dev/null >>"$S/log/$node.out" 2>&1 &
remember $! "$S/run/$node"
