#!/usr/bin/env bash
# Kills, pauses, parts and slows down the managers of real clusters under load, and checks what is left:
#   scripts/torture.sh --minutes 10             for so long
#   scripts/torture.sh --kills 1000 --seed 7    until so many kill -9, with the faults of that seed
# Installs what it needs into .venv by itself. Ends with a summary and 0, or with what was not as promised.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

ensure_venv test
cd -- "$project_root"
exec "$venv/bin/python" -m tests.cluster.torture "$@"
