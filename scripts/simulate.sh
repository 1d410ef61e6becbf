#!/usr/bin/env bash
# Runs the deterministic simulation of whole clusters with faults, one run a seed:
#   scripts/simulate.sh --seeds 0:10000 --jobs 2    all of them; ends with how often each fault was drawn
#   scripts/simulate.sh --seed 479                  one of them again, with its trace
# Installs what it needs into .venv by itself. Ends with 1 and the failing seeds if a promise did not hold.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

ensure_venv test
cd -- "$project_root"
exec "$venv/bin/python" -m tests.simulation "$@"
