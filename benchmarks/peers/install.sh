#!/usr/bin/env bash
# install.sh: the loaders that benchmarks/loaders.py compares ours with, in an environment of their own, .venv/peers.
#
# It sees the packages of .venv (PyTorch is large), but its own ones first, for peers ask for older versions of some. pip
# complains of gcsfs, which no peer uses.
set -euo pipefail
cd "$(dirname "$0")/../.."
launch/install.sh test
peers=.venv/peers
[[ -x $peers/bin/python ]] || .venv/bin/python -m venv "$peers"
site='import sysconfig; print(sysconfig.get_path("purelib"))'
seen=$(.venv/bin/python -c "$site")
echo "$seen" >"$("$peers/bin/python" -c "$site")/seen-from-.venv.pth"
while read -r peer; do
  "$peers/bin/python" -m pip install --quiet --disable-pip-version-check "$peer" ||
    echo "$peer does not install here; benchmarks/loaders.py leaves it out" >&2
done <benchmarks/peers/requirements.txt
