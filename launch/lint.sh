#!/usr/bin/env bash
# lint.sh: all checks that do not run the program. Runs all of them, then fails if any of them failed.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

failed=()
check() { # check COMMAND...: prints nothing unless the command finds something
  local found
  if ! found=$("$@" 2>&1); then
    printf '%s\n' "--- $*" "$found" >&2
    failed+=("$1")
  fi
}

mapfile -t scripts < <(find . \( -name .venv -o -name .git -o -name runs \) -prune -o -name '*.sh' -print)
check ruff check .
check ruff format --check .
check lint-imports --no-logo
check pyright --pythonpath "$(command -v python)"
check codespell .
check shellcheck .ci/run "${scripts[@]}"

if ((${#failed[@]})); then
  echo "error: ${failed[*]} found something; ruff check --fix . and ruff format . fix a part of it" >&2
  exit 1
fi
echo "linted: ruff, import-linter, pyright, codespell and shellcheck found nothing"
