# shellcheck shell=bash
# Shared by the launch scripts: which Python, the check of the options, the start. To be sourced; does nothing by itself.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} # use the code beside this file, whatever the current folder is
if [[ -z ${VIRTUAL_ENV:-} && ${CONDA_DEFAULT_ENV:-base} == base && -x $root/.venv/bin/python ]]; then
  PATH=$root/.venv/bin:$PATH
fi

fail() { # fail MESSAGE: the command is wrong
  echo "error: $1" >&2
  exit 2
}

number() { # number NAME: if that variable is set, it must be a number
  [[ ${!1:-0} =~ ^(0|[1-9][0-9]{0,8})$ ]] || fail "$1=${!1}: must be an integer"
}

# preflight RANKS OPTION...: reports a wrong option here, in one line, before the launcher and every rank do so at length
preflight() {
  local ranks=$1 plan wanted
  shift
  # as the first file, so that a world size among the options wins and is noticed
  plan=$(python -m dcgan_dist.train --dry_run --config <(echo "world_size: $ranks") "$@") || exit
  wanted=$(sed -n 's/^world_size: //p' <<<"$plan")
  if [[ -z $wanted ]]; then # the output is the text of --help
    echo "$plan"
    exit
  elif [[ $wanted != "$ranks" ]]; then
    fail "--world_size $wanted, but $ranks ranks are to be launched; change one of them, or leave --world_size out"
  fi
}

start() { # start OPTION...: replaces this script by dcgan-dist launch
  exec python -m dcgan_dist launch "$@"
}
