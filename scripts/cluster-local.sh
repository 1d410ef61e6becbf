#!/usr/bin/env bash
# A cluster of managers on this machine; scripts/cluster-local.sh --help says what it can do.
# Installs what it needs into .venv by itself. The work is done by local_cluster.py and demo.py beside it.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

ensure_venv
exec "$venv/bin/python" "$project_root/scripts/local_cluster.py" "$@"
