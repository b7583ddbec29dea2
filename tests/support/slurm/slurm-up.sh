#!/usr/bin/env bash
# slurm-up.sh: starts a throw-away, REAL multi-node SLURM cluster on one Linux machine: no systemd, no Docker, nothing that
# listens on the machine's network. Needs root. Installs SLURM by apt-get where it is missing.
#
#   slurm-up.sh                   start (idempotent: a healthy cluster is left alone)
#   eval "$(slurm-up.sh --env)"   put its sbatch, squeue, dcs-node ... on PATH
#   slurm-down.sh                 stop it and delete its state
#
# How: one "login" process tree in its own mount, UTS, network and PID namespaces runs munged and slurmctld; inside it every
# compute node is another set of nested namespaces with its own host name, its own address on a private bridge, its own
# process table, /dev/shm and scratch. Killing one pid therefore removes a whole node (a power cut), and killing the login
# pid removes the whole cluster. The machine's /etc, interfaces and host name are never changed.
#
# Where the kernel or the container forbids namespaces, plain mode runs the same daemons as ordinary processes on 127.0.0.1
# with one port per node.
#
# Settings (environment):
#   DCS_STATE  state directory                  (${TMPDIR:-/tmp}/dcs-slurm)
#   DCS_NODES  number of compute nodes          (2)
#   DCS_CPUS   CPUs each node claims            (4; may exceed the real number)
#   DCS_MEM    MB of memory each node claims    (4000)
#   DCS_GPUS   fake GPUs each node claims       (2)
#   DCS_MODE   netns | plain | auto             (auto)
#   DCS_NET    first three octets, private net  (10.77.0)
#   DCS_PORT   first TCP port, plain mode       (26817)
set -euo pipefail

S=${DCS_STATE:-${TMPDIR:-/tmp}/dcs-slurm}
nodes=${DCS_NODES:-2} cpus=${DCS_CPUS:-4} memory=${DCS_MEM:-4000} gpus=${DCS_GPUS:-2}
mode=${DCS_MODE:-auto} net=${DCS_NET:-10.77.0} port=${DCS_PORT:-26817}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/lib/pids.sh"

say() { echo "slurm-up: $*" >&2; }
die() {
  say "ERROR: $*"
  exit 1
}

if [[ ${1:-} == --env ]]; then
  [[ -d $S/bin ]] || die "no cluster in $S (run slurm-up.sh first)"
  echo "export DCS_STATE=$S SLURM_CONF=$S/etc/slurm.conf PATH=$S/bin:\$PATH"
  exit 0
fi
[[ $# -eq 0 ]] || die "unknown argument: $1"
[[ $(id -u) -eq 0 ]] || die "must run as root"
[[ $nodes =~ ^[1-9][0-9]?$ && $nodes -le 20 ]] || die "DCS_NODES must be 1..20"
[[ $S == /* && $S != / ]] || die "DCS_STATE must be an absolute path"

# ---------------------------------------------------------------- packages
install() {
  local log policy=/usr/sbin/policy-rc.d made=
  say "installing: $*"
  if [[ ! -e $policy ]]; then # keeps the packages from starting their services
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
    made=yes
  fi
  log=$(mktemp)
  export DEBIAN_FRONTEND=noninteractive
  apt_get() { apt-get -o DPkg::Lock::Timeout=120 -y "$@" </dev/null >>"$log" 2>&1; }
  if ! apt_get install --no-install-recommends "$@" && ! { apt_get update && apt_get install --no-install-recommends "$@"; }; then
    tail -n 20 "$log" >&2
    [[ -z $made ]] || rm -f $policy
    die "apt-get failed (log: $log)"
  fi
  rm -f "$log"
  [[ -z $made ]] || rm -f $policy
}
missing=()
while read -r command package; do
  command -v "$command" >/dev/null || missing+=("$package")
done <<'PACKAGES'
munged munge
slurmctld slurmctld
slurmd slurmd
sbatch slurm-client
unshare util-linux
ip iproute2
PACKAGES
((${#missing[@]} == 0)) || install "${missing[@]}"

# -------------------------------------------------------------------- mode
if [[ $mode == auto ]]; then
  mode=plain
  if unshare --net --uts --mount --pid --fork --mount-proc \
    bash -c 'ip link add dcsx0 type veth peer name dcsx1 && ip link add dcsx2 type bridge' >/dev/null 2>&1; then
    mode=netns
  fi
fi

# -------------------------------------------------------- already running?
healthy() { # every node answers and can be given jobs
  local idle
  idle=$("$S/bin/dcs-run" timeout 10 /usr/bin/sinfo -h -N -r -t idle,alloc,mix,comp -o %N 2>/dev/null | sort -u | wc -l) || return 1
  [[ $idle -eq $nodes ]]
}
settings="$nodes/$cpus/$memory/$gpus/$mode/$net/$port/$(cat "$here"/*.sh "$here"/*/* | cksum)"
if alive "$S/run/init"; then
  if [[ $(cat "$S/run/settings" 2>/dev/null) == "$settings" ]] && healthy; then
    say "already up in $S ($nodes nodes)"
    exit 0
  fi
  say "a broken or differently configured cluster is there: restarting it"
fi
DCS_STATE=$S "$here/slurm-down.sh" >/dev/null 2>&1 || true

# ------------------------------------------------------------------- state
umask 022
mkdir -p "$S"/{etc,bin,lib,run,log,munge/sock,ctld,dev,inside,local}
: >"$S/.dcs-slurm" # slurm-down.sh deletes only a directory with this mark
echo "$settings" >"$S/run/settings"
echo "$mode" >"$S/run/mode"
cp "$here"/lib/* "$S/lib/"
cp "$here"/bin/* "$S/bin/"
for client in sbatch srun salloc scancel scontrol sinfo squeue sattach sprio sdiag; do
  printf '#!/usr/bin/env bash\nexec "%s/bin/dcs-run" %s "$@"\n' "$S" "/usr/bin/$client" >"$S/bin/$client"
done
chmod 755 "$S" "$S"/bin/* "$S/munge/sock"
chmod 711 "$S/munge"
dd if=/dev/urandom of="$S/munge/key" bs=128 count=1 status=none
chmod 400 "$S/munge/key"
gpu_files=yes # SLURM wants real device nodes behind File=: clones of /dev/null
for g in $(seq 0 $((gpus - 1))); do mknod "$S/dev/fakegpu$g" c 1 3 2>/dev/null || gpu_files=; done

if [[ $mode == netns ]]; then
  controller=dcs-login address=$net.1 controller_port=6817
else
  controller=$(hostname -s) address=127.0.0.1 controller_port=$port
fi
node_line() { # node_line I: the configuration of a node
  if [[ $mode == netns ]]; then
    echo "NodeName=node$1 NodeHostname=node$1 NodeAddr=$net.$((10 + $1)) Port=6818"
  else
    echo "NodeName=node$1 NodeHostname=$controller NodeAddr=127.0.0.1 Port=$((port + $1))"
  fi
}
{
  echo "127.0.0.1 localhost"
  echo "$address $controller"
} >"$S/etc/hosts"
: >"$S/etc/resolv.conf" # no DNS inside: compute nodes are offline

cat >"$S/etc/slurm.conf" <<CONF
ClusterName=dcs
SlurmctldHost=$controller($address)
SlurmctldPort=$controller_port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it starts again (default 120 s); it must be enough for a step to
# begin on a machine that is busy
AuthInfo=socket=$S/munge/sock/munge.socket.2,cred_expire=45
StateSaveLocation=$S/ctld
SlurmdSpoolDir=$S/nodes/%n/spool
SlurmctldPidFile=$S/run/slurmctld.pid
SlurmdPidFile=$S/run/slurmd-%n.pid
SlurmctldLogFile=$S/log/slurmctld.log
SlurmdLogFile=$S/log/slurmd-%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$S/log/jobcomp.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=200
GresTypes=gpu
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
# short clocks, so that tests see faults within seconds
SlurmctldTimeout=30
SlurmdTimeout=40
TCPTimeout=3
MessageTimeout=10
KillWait=60
UnkillableStepTimeout=60
CompleteWait=0
InactiveLimit=0
WaitTime=0
# finished jobs stay visible to scontrol show job, for there is no accounting
MinJobAge=3600
JobRequeue=1
RequeueExit=75
RequeueExitHold=76
BatchStartTimeout=120
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PriorityType=priority/basic
PartitionName=low  Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1  PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL Default=NO  MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
for i in $(seq 1 "$nodes"); do
  mkdir -p "$S/nodes/node$i"/{spool,local}
  echo "$net.$((10 + i)) node$i" >>"$S/etc/hosts"
  echo "$(node_line "$i") CPUs=$cpus RealMemory=$memory Gres=gpu:fake:$gpus State=UNKNOWN" >>"$S/etc/slurm.conf"
done
{
  echo "AutoDetect=off"
  if ((gpus == 0)); then :
  elif [[ $gpu_files ]]; then echo "Name=gpu Type=fake File=$S/dev/fakegpu[0-$((gpus - 1))]"
  else echo "Name=gpu Type=fake Count=$gpus"; fi # counted, but no CUDA_VISIBLE_DEVICES
} >"$S/etc/gres.conf"

# ------------------------------------------------------------------- start
export SLURM_CONF=$S/etc/slurm.conf
if [[ $mode == netns ]]; then
  setsid unshare --net --uts --mount --pid --fork --kill-child=SIGKILL \
    bash "$S/lib/login-init.sh" "$S" "$nodes" "$net" </dev/null >"$S/log/login.out" 2>&1 &
  outer=$! pid=
  disown "$outer"
  remember "$outer" "$S/run/outer"
  for _ in $(seq 2000); do
    pid=$(tr -d ' ' <"/proc/$outer/task/$outer/children" 2>/dev/null) || true
    [[ $pid ]] && break
    sleep 0.05
  done
  [[ $pid ]] || die "the login namespace did not start: $(<"$S/log/login.out")"
  remember "$pid" "$S/run/init"
else
  setsid bash "$S/lib/munged.sh" "$S" &
  remember $! "$S/run/munged"
  for _ in $(seq 2000); do [[ -S $S/munge/sock/munge.socket.2 ]] && break; sleep 0.05; done
  setsid slurmctld -D -f "$SLURM_CONF" </dev/null >"$S/log/slurmctld.out" 2>&1 &
  remember $! "$S/run/init"
  for i in $(seq 1 "$nodes"); do bash "$S/lib/node-up-plain.sh" "node$i"; done
  : >"$S/run/booted"
fi

for _ in $(seq 3000); do
  alive "$S/run/init" || { tail -n 5 "$S"/log/* >&2; die "the controller died"; }
  if [[ -e $S/run/booted ]] && healthy; then
    say "up: $nodes nodes x $cpus CPUs x $gpus fake GPUs, mode $mode, $(slurmctld -V)"
    say "use: eval \"\$($here/slurm-up.sh --env)\"; srun -N$nodes hostname"
    exit 0
  fi
  sleep 0.2
done
tail -n 5 "$S"/log/* >&2
die "nodes did not become idle within 600 s (logs in $S/log)"
