#!/usr/bin/env bash
# Builds the sdist, and from it the wheel, and installs that into an empty environment, as a user does. There the command has to
# run and every module to be importable. Arguments:
#   scripts/package.sh          keeps nothing
#   scripts/package.sh dist     leaves both files in dist/
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

ensure_venv test
scratch=$(mktemp -d --tmpdir warren-raft-package-XXXXXX)
trap 'rm -rf -- "$scratch"' EXIT
pip=("$venv/bin/python" -m pip --disable-pip-version-check --quiet)

# A copy of the sources: setuptools would leave files beside them.
cp -r -- "$project_root"/{pyproject.toml,README.md,LICENSE,warren_raft,cli} "$scratch/"
mkdir "$scratch/dist"
(cd -- "$scratch" && "$venv/bin/python" -W ignore -c '
from setuptools import build_meta
build_meta.build_sdist("dist")' >build.log 2>&1) || { cat "$scratch/build.log" >&2; fail "the sdist was not built"; }
"${pip[@]}" wheel --no-deps --no-build-isolation --wheel-dir "$scratch/dist" "$scratch"/dist/*.tar.gz

"$venv/bin/python" -m venv --without-pip "$scratch/empty"
python="$scratch/empty/bin/python"
"${pip[@]}" --python "$python" install --require-hashes --requirement "$project_root/requirements/base.txt"
"${pip[@]}" --python "$python" install --no-deps "$scratch"/dist/*.whl
"${pip[@]}" --python "$python" check

cd -- "$scratch/empty" # where no source is
"$python" -W error - "$project_root" <<'PROGRAM'
import importlib, pkgutil, sys
from pathlib import Path

sources = Path(sys.argv[1])
for name, folder in (("warren_raft", "warren_raft"), ("warren_raft_cli", "cli")):
    package = importlib.import_module(name)
    assert package.__file__ is not None
    installed = Path(package.__file__).parent
    assert installed.is_relative_to(sys.prefix), installed
    wanted, found = ({str(file.relative_to(top)) for pattern in ("*.py", "py.typed") for file in top.rglob(pattern)}
                     for top in (sources / folder, installed))
    assert wanted == found, f"{name} lacks {sorted(wanted - found)}, and has {sorted(found - wanted)}"
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        if not module.name.endswith(("__main__", "pytest_plugin")):  # pytest is no dependency
            importlib.import_module(module.name)

import warren_raft as wr

with wr.LocalStore("state") as store:
    store.create_node(wr.Node(id="n-1", hostname="alpha"))
PROGRAM
[[ $("$scratch/empty/bin/warren-raft" get node n-1 --data-dir state -o json) == *'"hostname": "alpha"'* ]] ||
    fail "the installed command does not work"

if (($#)); then
    mkdir -p -- "$project_root/$1"
    cp -- "$scratch"/dist/* "$project_root/$1/"
fi
echo "packaged: $(cd -- "$scratch/dist" && echo *)"
