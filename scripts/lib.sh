# Sets up .venv for the scripts beside it: source it, then call ensure_venv EXTRAS.
# Installs only if pyproject.toml, requirements/ or the Python changed since the last installation (a stamp in .venv shows it).
# requirements/ pins all packages, with hashes (scripts/lock.sh writes it).
# PYTHON=python3.12 chooses another Python, which has an environment of its own (.venv-python3.12).

project_root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
venv="$project_root/.venv${PYTHON:+-${PYTHON##*/}}"

fail() {
    printf '%s: %s\n' "$(basename -- "$0")" "$*" >&2
    exit 1
}

# The distribution's Python. Its build is optimized (PGO), though its own list of options does not say so.
distribution_python=/usr/bin/python3

# The Python for .venv: the first one on the PATH that is new enough, unless its build is a plain one (pyenv's default)
# and the distribution's is there. A plain build needs up to 1.4 times as much processor time (docs/performance.md).
find_python() {
    local candidate
    if [[ -n ${PYTHON-} ]]; then
        is_new_enough "$PYTHON" || fail "PYTHON=$PYTHON is no Python 3.11 or newer that can be run"
        command -v "$PYTHON"
        return
    fi
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        candidate=$(command -v "$candidate") && is_new_enough "$candidate" || continue
        if ! is_optimized "$candidate" && is_new_enough "$distribution_python" && has_venv "$distribution_python"; then
            candidate=$distribution_python
        fi
        echo "$candidate"
        return
    done
    fail "needs Python 3.11 or newer; on Debian and Ubuntu: sudo apt-get install python3 python3-venv"
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

is_optimized() {
    "$1" -c 'import sys, sysconfig
sys.exit("--enable-optimizations" not in (sysconfig.get_config_var("CONFIG_ARGS") or ""))' 2>/dev/null
}

has_venv() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null
}

# One line that changes if anything changes that an installation depends on.
venv_stamp() {
    printf '%s %s %s\n' "$1" "$("$1" -V)" "$(cat "$project_root"/pyproject.toml "$project_root"/requirements/*.txt | sha256sum)"
}

# Whether $venv holds the project and the extras of the present pyproject.toml.
venv_is_current() {
    local stamp=$1 part
    [[ -x $venv/bin/warren-raft ]] || return 1
    for part in base ${2//,/ }; do
        [[ $(cat "$venv/stamp-$part" 2>/dev/null) == "$stamp" ]] || return 1
    done
}

# ensure_venv [EXTRAS]: makes $venv hold this project (editable) with the extras, e.g. "test" or "test,lint".
# Two scripts that start at the same time wait for each other.
ensure_venv() {
    local extras=${1-} python stamp part
    python=$(find_python) || exit 1
    stamp=$(venv_stamp "$python")
    venv_is_current "$stamp" "$extras" && return
    exec 9>"$project_root/.venv.lock"
    flock 9
    if ! venv_is_current "$stamp" "$extras"; then
        install_venv "$python" "$extras"
        for part in base ${extras//,/ }; do
            printf '%s\n' "$stamp" >"$venv/stamp-$part"
        done
    fi
    exec 9>&-
}

install_venv() {
    local python=$1 extras=$2 part pins=()
    if [[ $(cat "$venv/made-with" 2>/dev/null) != "$python" ]] ||
        ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        has_venv "$python" ||
            fail "Python's venv is missing. On Debian and Ubuntu: sudo apt-get install python3-venv"
        echo "Setting up $venv (once) …" >&2
        rm -rf -- "$venv"
        "$python" -m venv "$venv"
        printf '%s\n' "$python" >"$venv/made-with"
    fi
    echo "Installing the dependencies into $venv (again only if pyproject.toml or requirements/ changes) …" >&2
    for part in base ${extras//,/ }; do
        pins+=(--requirement "$project_root/requirements/$part.txt")
    done
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes "${pins[@]}" >&2 ||
        fail "the installation failed; the lines above have the reason"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
        --editable "$project_root" >&2 || fail "the installation failed; the lines above have the reason"
    "$venv/bin/python" -m pip check --quiet --disable-pip-version-check >&2 ||
        fail "requirements/ does not fit pyproject.toml: run scripts/lock.sh"
}
