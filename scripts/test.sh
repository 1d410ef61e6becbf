#!/usr/bin/env bash
# Installs the dependencies into .venv, then runs the tests. Arguments go to pytest:
#   scripts/test.sh                      all tests, as many at a time as there are processors
#   scripts/test.sh tests/unit -x        some tests, one at a time
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

ensure_venv test
cd -- "$project_root"
# Compiled modules are kept in .venv, also for a user whose setting forbids __pycache__ beside the sources. Without them
# each process compiles the package again, and pytest rewrites the assertions of all test modules again.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX="$venv/__pycache__"
# A directory of its own: all runs of a user share pytest's default, and each run removes directories of earlier runs.
scratch=$(mktemp -d --tmpdir warren-raft-tests-XXXXXX)
trap 'rm -rf -- "$scratch"' EXIT
(($#)) || set -- --numprocesses auto --dist worksteal
"$venv/bin/python" -m pytest --basetemp="$scratch/pytest" "$@"
