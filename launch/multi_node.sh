#!/usr/bin/env bash
# Trains on several machines without a scheduler. Run it on every machine with the same options, and the same RUN folder on a
# disk that all of them see; the machines wait for each other.
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
here=${RANKS_PER_NODE:-$(gpus)}
ranks=$((NODES * (here ? here : 1)))
preflight "$ranks" "$@"
((ranks > 1)) || start 1 "$@"
((NODES == 1)) || echo "waiting for all $NODES machines (the launcher hears no Ctrl-C before they are here, but Ctrl-\\)"
exec accelerate launch --quiet --config_file "$root/accelerate_config.yaml" --multi_gpu --num_processes "$ranks" \
  --num_machines "$NODES" --machine_rank "$NODE_RANK" --main_process_ip "$MAIN_ADDR" --main_process_port "${MAIN_PORT:-29500}" \
  -m dcgan_dist.train "$@" --world_size "$ranks"
