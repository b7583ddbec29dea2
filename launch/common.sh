# shellcheck shell=bash
# What the launchers share: whose Python, the check of the options, the start. To be sourced; does nothing by itself.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} # the code beside this file, from whichever folder it is called
if [[ -z ${VIRTUAL_ENV:-} && ${CONDA_DEFAULT_ENV:-base} == base && -x $root/.venv/bin/python ]]; then
  PATH=$root/.venv/bin:$PATH
fi

fail() { # fail MESSAGE: the command is wrong
  echo "error: $1" >&2
  exit 2
}

gpus() { # how many this process may use
  python -c 'import torch; print(torch.cuda.device_count())'
}

# preflight RANKS OPTION...: a wrong option ends here, in one line, before every rank and the launcher report it at length
preflight() {
  local ranks=$1 plan wanted
  shift
  # as the first file, so that a world size among the options wins and is seen
  plan=$(python -m dcgan_dist.train --dry_run --config <(echo "world_size: $ranks") "$@") || exit
  wanted=$(sed -n 's/^world_size: //p' <<<"$plan")
  if [[ -z $wanted ]]; then # it is the text of --help
    echo "$plan"
    exit
  elif [[ $wanted != "$ranks" ]]; then
    fail "--world_size $wanted, but $ranks ranks are to be launched; change one of them, or leave --world_size out"
  fi
}

# start RANKS OPTION...: trains with so many ranks on this machine
start() {
  local ranks=$1 several=()
  shift
  if ((ranks > 1)); then several=(--multi_gpu --main_process_port 0); fi # 0: any free port
  exec accelerate launch --quiet --config_file "$root/accelerate_config.yaml" "${several[@]}" --num_processes "$ranks" \
    -m dcgan_dist.train "$@" --world_size "$ranks"
}
