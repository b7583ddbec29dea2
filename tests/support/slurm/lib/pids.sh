# shellcheck shell=bash
# A process is remembered as "<pid> <start time>" in a file, so that a recycled pid never passes for ours. To be sourced.

started() { # started PID: its start time, in clock ticks since boot
  sed 's/.*) //' "/proc/$1/stat" | cut -d' ' -f20
}
remember() { # remember PID FILE
  echo "$1 $(started "$1")" >"$2"
}
alive() { # alive FILE
  local pid start
  [[ -s $1 ]] && read -r pid start <"$1" && [[ -r /proc/$pid/stat && $(started "$pid") == "$start" ]]
}
