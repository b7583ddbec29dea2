#!/usr/bin/env bash
# lint.sh: everything that is checked without running the program. Runs all of it, then fails if anything did.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

failed=()
check() { # check COMMAND...: quiet, unless it finds something
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
  echo "error: ${failed[*]} found something; ruff check --fix . and ruff format . mend what they can" >&2
  exit 1
fi
echo "linted: ruff, import-linter, pyright, codespell and shellcheck found nothing"
