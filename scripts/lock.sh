#!/usr/bin/env bash
# Writes requirements/, which pins the packages that the scripts install into .venv, with hashes. Run it after a change of
# the dependencies in pyproject.toml, or to take newer releases. It needs a package registry.
#   scripts/lock.sh              keeps the pins that still fit pyproject.toml
#   scripts/lock.sh --upgrade    takes the newest releases that fit
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

python=$(find_python)
scratch=$(mktemp -d --tmpdir warren-raft-lock-XXXXXX)
trap 'rm -rf -- "$scratch"' EXIT
"$python" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check uv
cd -- "$project_root"
mkdir -p requirements
"$python" - "$scratch" <<'PYTHON'
import sys, tomllib
from pathlib import Path

with open("pyproject.toml", "rb") as file:
    settings = tomllib.load(file)
project = settings["project"]
parts = {"base": [*project["dependencies"], *settings["build-system"]["requires"]], **project["optional-dependencies"]}
for name, wanted in parts.items():
    Path(sys.argv[1], f"{name}.in").write_text("".join(f"{each}\n" for each in wanted))
PYTHON
# First all parts together, so that a package which two parts need has one version.
cat "$scratch"/*.in >"$scratch/all"
cat requirements/*.txt >"$scratch/together" 2>/dev/null || true
pins=("$scratch/venv/bin/uv" pip compile --quiet --no-header --universal --python-version 3.11 --no-annotate)
"${pins[@]}" "$@" "$scratch/all" -o "$scratch/together"
for part in "$scratch"/*.in; do
    "${pins[@]}" --generate-hashes --constraint "$scratch/together" "$part" \
        -o "requirements/$(basename -- "$part" .in).txt"
done
