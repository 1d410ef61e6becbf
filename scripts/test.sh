#!/usr/bin/env bash
# Runs all tests, after installing what they need into .venv. Arguments go to pytest:
#   scripts/test.sh                      everything
#   scripts/test.sh tests/unit -x        some of it
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

ensure_venv test
cd -- "$project_root"
# A directory of its own: pytest's default is shared by all runs of a user, and each tidies up behind the others.
scratch=$(mktemp -d --tmpdir warren-raft-tests-XXXXXX)
trap 'rm -rf -- "$scratch"' EXIT
"$venv/bin/python" -m pytest --basetemp="$scratch/pytest" "$@"
