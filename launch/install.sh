#!/usr/bin/env bash
# install.sh [EXTRA]: creates .venv in the project and installs the project there, once; a second call returns at once.
# EXTRA: all or test (see pyproject.toml).
set -euo pipefail
cd "$(dirname "$0")/.."
extra=${1:-all}
stamp=.venv/installed-$extra
wanted=$(cksum <pyproject.toml)
[[ -f $stamp && $(<"$stamp") == "$wanted" ]] && exit 0

python=
for name in python3 python3.14 python3.13 python3.12 python3.11; do
  if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then python=$name; break; fi
done
[[ $python ]] || { echo "error: no Python >= 3.11 found; install one and run this again" >&2; exit 1; }
if [[ ! -x .venv/bin/python ]]; then
  "$python" -m venv .venv || { rm -rf .venv; echo "error: '$python -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
fi
echo "installing into .venv (PyTorch is large: this takes some minutes and 6 GB) ..."
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
setting() { # setting NAME: the user's setting of pip, from a variable or pip's configuration; pip prints lines as \n
  pip config list | sed -n "s/^\(:env:\|install\|global\)\.${1//_/-}='\(.*\)'\$/\2/p" | head -n 1 | sed 's/\\n/ /g'
}
# uv resolves the versions in seconds, pip in minutes. uv does not read pip's settings, so they are passed on.
# Bytecode as pip makes it: where Python may not write any, every start would compile PyTorch, for 40 s instead of 2
fast() {
  local uv
  uv=$(command -v uv) || { pip install --quiet uv 2>/dev/null && uv=.venv/bin/uv; } || return
  local -a words settings=(UV_INDEX_STRATEGY=unsafe-best-match) # the newest version of all indexes, as pip does it
  local pair value
  for pair in index_url:UV_DEFAULT_INDEX extra_index_url:UV_INDEX find_links:UV_FIND_LINKS constraint:UV_CONSTRAINT cert:SSL_CERT_FILE; do
    read -ra words <<<"$(setting "${pair%%:*}")"
    value=${words[*]}
    [[ $pair == find_links:* ]] && value=${value// /,} # the one list that uv separates by commas
    [[ $value ]] && settings+=("${pair##*:}=$value")
  done
  [[ ! $(setting no_index) ]] && env "${settings[@]}" "$uv" pip install --quiet --compile-bytecode --python .venv/bin/python --editable ".[$extra]"
}
fast 2>/dev/null || { # what uv said is of no use if pip succeeds, and pip says it otherwise
  echo "uv is not there or did not succeed; pip installs, which takes longer ..."
  pip install --quiet --editable ".[$extra]"
}
echo "$wanted" >"$stamp"
