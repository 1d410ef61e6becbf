#!/usr/bin/env bash
# Builds the documentation as a site into site/. A warning is an error: a link that leads nowhere, a page in no family.
# Open site/index.html afterwards, or copy site/ to any web server.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

ensure_venv docs
cd -- "$project_root"
"$venv/bin/sphinx-build" --quiet --fail-on-warning --fresh-env -c docs/site --doctree-dir site/.doctrees "$@" . site
# Readers may be offline, so a page loads nothing from another host. (A link to one is no load.)
! grep -rE '<(script|img|iframe|link)\b[^>]* (src|href)="(https?:)?//' site --include='*.html' ||
    fail "the pages above load something from another host"
cp site/README.html site/index.html
echo "the documentation: $project_root/site/index.html"
