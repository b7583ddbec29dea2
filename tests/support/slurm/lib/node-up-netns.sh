# shellcheck shell=bash
# node-up-netns.sh NODE: run on the login node, boots one compute node in nested namespaces
set -eu
node=$1
S=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=pids.sh
source "$S/lib/pids.sh"
conf=$S/etc/slurm.conf
if alive "$S/run/$node"; then
  read -r pid _ <"$S/run/$node"
  in_node() { nsenter --target "$pid" --mount --uts --net --pid -- "$@"; }
  if in_node kill -0 "$(<"$S/run/slurmd-$node.pid")" 2>/dev/null; then
    echo "$node is already up" >&2
  else # the node is up, only its daemon was killed
    in_node slurmd -f "$conf" -N "$node"
  fi
  exit 0
fi
rm -f "$S/run/$node" "$S/run/$node.ready" "$S/run/slurmd-$node.pid"
ip link del "v-$node" 2>/dev/null || true
setsid unshare --net --uts --mount --pid --fork --kill-child=SIGKILL \
  bash "$S/lib/node-init.sh" "$S" "$node" </dev/null >>"$S/log/$node.out" 2>&1 &
outer=$! pid=
for _ in $(seq 100); do
  pid=$(tr -d ' ' <"/proc/$outer/task/$outer/children" 2>/dev/null) || true
  [[ $pid ]] && break
  sleep 0.05
done
[[ $pid ]] || { echo "$node did not start" >&2; exit 1; }
remember "$pid" "$S/run/$node"
address=$(sed -n "s/^NodeName=$node .*NodeAddr=\([^ ]*\).*/\1/p" "$conf")
ip link add "v-$node" type veth peer name eth0 netns "$pid"
ip link set "v-$node" master dcs0 up
nsenter --target "$pid" --net ip addr add "$address/24" dev eth0
nsenter --target "$pid" --net ip link set eth0 up
: >"$S/run/$node.ready"
