# shellcheck shell=bash
# munged.sh STATE: the cluster's own authentication daemon, in the foreground
set -eu
M=$1/munge
exec munged --foreground --force --key-file="$M/key" --socket="$M/sock/munge.socket.2" --pid-file="$M/munged.pid" \
  --seed-file="$M/seed" --log-file="$M/munged.log" --num-threads=4 </dev/null >"$1/log/munged.out" 2>&1
