# shellcheck shell=bash
# node-init.sh STATE NODE: pid 1 of one compute node
set -eu
S=$1 node=$2
export SLURM_CONF=$S/etc/slurm.conf
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o size=1g,mode=1777 tmpfs /dev/shm
mount --bind "$S/nodes/$node/local" "$S/local" # scratch that only this node sees
hostname "$node"
ip link set lo up
for _ in $(seq 200); do [[ -e $S/run/$node.ready ]] && break; sleep 0.05; done
slurmd -D -f "$S/etc/slurm.conf" -N "$node" &
while :; do wait -n 2>/dev/null || { sleep 0.5 & wait $! 2>/dev/null; } || true; done
