#!/usr/bin/env bash
# install.sh: the loaders that benchmarks/loaders.py compares ours with, in an environment of their own, .venv/peers.
#
# It sees the packages of .venv (PyTorch is large), and its own ones first: peers ask for older versions of some. pip says
# so of a package or two; ours does not see them.
set -euo pipefail
cd "$(dirname "$0")/../.."
launch/install.sh test
peers=.venv/peers
[[ -x $peers/bin/python ]] || .venv/bin/python -m venv "$peers"
site='import sysconfig; print(sysconfig.get_path("purelib"))'
seen=$(.venv/bin/python -c "$site")
echo "$seen" >"$("$peers/bin/python" -c "$site")/seen-from-.venv.pth"
"$peers/bin/python" -m pip install --quiet --disable-pip-version-check --requirement benchmarks/peers/requirements.txt
