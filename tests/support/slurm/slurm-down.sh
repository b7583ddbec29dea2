#!/usr/bin/env bash
# slurm-down.sh: stops the cluster that slurm-up.sh started and deletes its state.
#   DCS_STATE  state directory (${TMPDIR:-/tmp}/dcs-slurm)
#   DCS_KEEP   1: keep the state directory with its logs (0)
# Ends only processes that slurm-up.sh recorded, each checked by pid and start time.
set -euo pipefail
S=${DCS_STATE:-${TMPDIR:-/tmp}/dcs-slurm}
source "$(dirname "${BASH_SOURCE[0]}")/lib/pids.sh"
[[ -d $S ]] || { echo "slurm-down: nothing in $S" >&2; exit 0; }
[[ -f $S/.dcs-slurm ]] || { echo "slurm-down: $S was not made by slurm-up.sh; leaving it" >&2; exit 1; }

end() { # end SIGNAL FILE
  local pid
  if alive "$2"; then
    read -r pid _ <"$2"
    kill "-$1" "$pid" 2>/dev/null || true
  fi
}
gone() { # gone SECONDS FILE: waits until the process has ended
  for _ in $(seq $(($1 * 10))); do
    alive "$2" || return 0
    sleep 0.1
  done
  return 1
}

mode=$(cat "$S/run/mode" 2>/dev/null || echo plain)
if [[ $mode == netns ]]; then
  end KILL "$S/run/init" # pid 1 of the namespaces: the kernel ends everything below it
  end KILL "$S/run/outer"
else
  export SLURM_CONF=$S/etc/slurm.conf
  if alive "$S/run/init"; then # the nodes' daemons end their steps first
    timeout 5 scancel --state=RUNNING >/dev/null 2>&1 || true
    timeout 5 scancel --state=PENDING >/dev/null 2>&1 || true
    for _ in $(seq 40); do
      [[ -z $(timeout 5 squeue -h 2>/dev/null) ]] && break
      sleep 0.25
    done
  fi
  daemons=("$S"/run/node* "$S/run/init" "$S/run/munged")
  for file in "${daemons[@]}"; do end TERM "$file"; done
  for file in "${daemons[@]}"; do gone 4 "$file" || end KILL "$file"; done
fi
gone 5 "$S/run/init" || { echo "slurm-down: the cluster would not die" >&2; exit 1; }
[[ ${DCS_KEEP:-0} == 1 ]] || rm -rf --one-file-system -- "$S"
echo "slurm-down: stopped" >&2
