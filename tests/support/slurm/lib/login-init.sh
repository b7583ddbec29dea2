# shellcheck shell=bash
# login-init.sh STATE NODES NET: pid 1 of the login namespaces; munged, slurmctld, and the nodes below it
set -eu
S=$1 nodes=$2 net=$3
export SLURM_CONF=$S/etc/slurm.conf
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o size=64k tmpfs "$S/inside"
: >"$S/inside/marker" # tells the wrappers where they are
mount --bind "$S/etc/hosts" /etc/hosts
[[ ! -e /etc/resolv.conf ]] || mount --bind "$S/etc/resolv.conf" /etc/resolv.conf
hostname dcs-login
ip link set lo up
ip link add dcs0 type bridge
ip addr add "$net.1/24" dev dcs0
ip link set dcs0 up
bash "$S/lib/munged.sh" "$S" &
for _ in $(seq 100); do [[ -S $S/munge/sock/munge.socket.2 ]] && break; sleep 0.05; done
slurmctld -D -f "$S/etc/slurm.conf" >"$S/log/slurmctld.out" 2>&1 &
for i in $(seq 1 "$nodes"); do bash "$S/lib/node-up-netns.sh" "node$i"; done
: >"$S/run/booted"
# reap whatever is re-parented to pid 1, for ever
trap 'exit 0' TERM INT
while :; do wait -n 2>/dev/null || { sleep 0.5 & wait $! 2>/dev/null; } || true; done
