#!/usr/bin/env bash
# Trains on several machines without a scheduler. Run it on every machine with the same options and the same --run_dir on a
# shared disk; the machines wait for each other.
#
#   NODES=2 NODE_RANK=0 MAIN_ADDR=10.0.0.1 launch/multi_node.sh [OPTIONS]        on the machine with that address
#   NODES=2 NODE_RANK=1 MAIN_ADDR=10.0.0.1 launch/multi_node.sh [OPTIONS]        on the other one
#
#   MAIN_PORT        a free port of the first machine that the others can reach (29500)
#   RANKS_PER_NODE   the same number everywhere (the GPUs of this machine; without one, 1)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

for name in NODES NODE_RANK MAIN_ADDR; do
  [[ ${!name:-} ]] || fail "$name is not set; usage: NODES=2 NODE_RANK=0 MAIN_ADDR=10.0.0.1 launch/multi_node.sh [OPTIONS]"
done
for name in NODES NODE_RANK MAIN_PORT RANKS_PER_NODE; do number "$name"; done
start --num_machines "$NODES" --machine_rank "$NODE_RANK" --main_process_ip "$MAIN_ADDR" \
  ${MAIN_PORT:+--main_process_port "$MAIN_PORT"} ${RANKS_PER_NODE:+--num_processes "$((NODES * RANKS_PER_NODE))"} "$@"
