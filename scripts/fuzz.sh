#!/usr/bin/env bash
# Fuzzes one target, which is one way in which bytes reach a manager, guided by coverage. It ends when it finds a bug, when
# the time is over, or after Ctrl-C:
#   scripts/fuzz.sh                      lists the names of the targets
#   scripts/fuzz.sh member 3600          fuzzes the target "member" for an hour
# Its corpus and the inputs that found bugs are in .fuzz/TARGET; run the same command again to go on from there. To run one
# input:  scripts/fuzz.sh member 0 .fuzz/member/found-crash-…  Add an input that found a bug to tests/fuzz/corpus/TARGET.
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
if (($#)); then # run these inputs once
    exec "$venv/bin/python" -m tests.fuzz.replay "$target" "$@"
fi
exec "$venv/bin/python" -m tests.fuzz "$target" --seconds "$seconds"
