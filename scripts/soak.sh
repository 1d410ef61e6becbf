#!/usr/bin/env bash
# Runs load with compaction for some minutes, and checks that nothing grows: files, memory, descriptors, reader slots.
#   scripts/soak.sh --minutes 60 --csv soak.csv --svg soak.svg
#   scripts/soak.sh --render soak.csv --svg soak.svg          draws and judges an earlier run again
# Installs the dependencies into .venv first. Prints one line a minute. At the end it prints PASS, with exit code 0, or FAIL
# and the figures that grew, with exit code 1.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

ensure_venv test
exec env PYTHONPATH="$project_root" "$venv/bin/python" -m tests.cluster.soak "$@"
