#!/usr/bin/env bash
# install.sh [EXTRA]: makes .venv in the project and installs it there, once; a second call returns at once.
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
echo "installing into .venv (PyTorch is large: some minutes, 6 GB) ..."
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extra]"
echo "$wanted" >"$stamp"
