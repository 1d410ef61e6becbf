#!/usr/bin/env bash
# Asks an advisory database about the dependencies that requirements/ pins. Exit code 1 if one has a known vulnerability.
# Exit code 0 if none has one. If pip-audit cannot be installed, or the database is not reachable, it says so and gives 0.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

python=$(find_python)
scratch=$(mktemp -d --tmpdir warren-raft-audit-XXXXXX)
trap 'rm -rf -- "$scratch"' EXIT
"$python" -m venv "$scratch/venv"
if ! timeout 120 "$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check pip-audit 2>"$scratch/said"; then
    echo "audit: NOT CHECKED: pip-audit cannot be installed here" >&2
    exit 0
fi
cat "$project_root"/requirements/*.txt >"$scratch/pins.txt"
timeout 120 "$scratch/venv/bin/pip-audit" --disable-pip --no-deps --timeout 10 --progress-spinner off \
    --requirement "$scratch/pins.txt" --format json --output "$scratch/found.json" 2>"$scratch/said" || true
"$python" - "$scratch/found.json" <<'PYTHON'
import json, sys

try:
    with open(sys.argv[1], encoding="utf-8") as file:
        found = json.load(file)["dependencies"]
except (FileNotFoundError, ValueError):
    found = []
checked = [each for each in found if "vulns" in each]
if not checked:
    sys.exit(print("audit: NOT CHECKED: the advisory database is not reachable", file=sys.stderr))
bad = [f"{each['name']} {each['version']}: {known['id']}" for each in checked for known in each["vulns"]]
print(f"audit: {len(checked)} of {len(found)} pins checked, {len(bad)} known vulnerabilities", *bad, sep="\n", file=sys.stderr)
sys.exit(1 if bad else 0)
PYTHON
