#!/usr/bin/env bash
# A cluster of managers on this machine; scripts/cluster-local.sh --help lists the commands.
# Installs the dependencies into .venv first. cluster_commands.py beside it does the work.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

ensure_venv
exec "$venv/bin/python" "$project_root/scripts/cluster_commands.py" "$@"
