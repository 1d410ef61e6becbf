#!/usr/bin/env bash
# Runs a benchmark of benchmarks/ with the project's own environment:
#   scripts/bench.sh                  their names
#   scripts/bench.sh writes --json    one of them; arguments go to it
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

cd -- "$project_root/benchmarks"
if (($# == 0)); then
    for program in *.py; do
        ! grep -q "^if __name__" "$program" || printf '%s\n' "${program%.py}"
    done
    exit
fi
[[ -f $1.py ]] || fail "there is no benchmark $1; without arguments this prints their names"
ensure_venv test
cd -- "$project_root"
exec "$venv/bin/python" "benchmarks/$1.py" "${@:2}"
