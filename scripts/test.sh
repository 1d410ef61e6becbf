#!/usr/bin/env bash
# Runs all tests, after installing what they need into .venv. Arguments go to pytest:
#   scripts/test.sh                      everything
#   scripts/test.sh tests/unit -x        some of it
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

ensure_venv test
cd -- "$project_root"
exec "$venv/bin/python" -m pytest "$@"
