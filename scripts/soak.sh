#!/usr/bin/env bash
# Load with compaction on for as long as one likes, and whether anything grows: files, memory, descriptors, reader slots.
#   scripts/soak.sh --minutes 60 --csv soak.csv --svg soak.svg
#   scripts/soak.sh --render soak.csv --svg soak.svg          draws and judges a run again
# Installs what it needs into .venv by itself. A line a minute; ends with PASS and 0, or FAIL, what grew, and 1.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

ensure_venv test
exec env PYTHONPATH="$project_root" "$venv/bin/python" -m tests.cluster.soak "$@"
