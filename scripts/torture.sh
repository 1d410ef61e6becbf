#!/usr/bin/env bash
# Kills, suspends, partitions and slows down the managers of real clusters under load, and checks the promises afterwards:
#   scripts/torture.sh --minutes 10             for 10 minutes
#   scripts/torture.sh --kills 1000 --seed 7    until 1000 kill -9, with the faults of seed 7
# Installs the dependencies into .venv first. Ends with a summary and exit code 0, or with the promise that was broken.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

ensure_venv test
cd -- "$project_root"
exec "$venv/bin/python" -m tests.cluster.torture "$@"
