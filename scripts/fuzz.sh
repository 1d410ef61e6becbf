#!/usr/bin/env bash
# Fuzzes one way in which bytes reach a manager, guided by coverage, until it finds something, the time is over, or Ctrl-C:
#   scripts/fuzz.sh                      the names of the targets
#   scripts/fuzz.sh member 3600          an hour of one
# What it learns and what it finds is in .fuzz/TARGET; run the same command again to go on from there. To see what an
# input does:  scripts/fuzz.sh member 0 .fuzz/member/found-crash-…  One that found a bug belongs in tests/fuzz/corpus/TARGET.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

if (($# == 0)); then
    cd -- "$project_root/tests/fuzz/corpus" && printf '%s\n' *
    exit
fi
ensure_venv test,fuzz
cd -- "$project_root"
target=$1 seconds=${2:-0}
shift $(($# < 2 ? $# : 2))
if (($#)); then # inputs to run once
    exec "$venv/bin/python" -m tests.fuzz.replay "$target" "$@"
fi
exec "$venv/bin/python" -m tests.fuzz "$target" --seconds "$seconds"
