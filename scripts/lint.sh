#!/usr/bin/env bash
# Lint, format and types, with the pinned tools. `--fix` lets ruff mend what it can first.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

ensure_venv test,lint
cd -- "$project_root"
if [[ ${1-} == --fix ]]; then
    "$venv/bin/ruff" check --fix .
    "$venv/bin/ruff" format .
fi
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/mypy"
