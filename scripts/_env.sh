# Shared set-up of scripts/demo, scripts/test and scripts/check: source it, then `setup run|dev`.
#
# It makes .venv beside pyproject.toml and installs the project into it, editable; done again it
# costs a few milliseconds, until pyproject.toml changes or the folder moves. It needs a
# python >= 3.10 and a package index; nothing outside the folder is touched. Kept to what macOS's
# bash 3.2 understands.

set -euo pipefail

# What the caller's shell has set up for other projects must not leak into this environment.
# Nor its wish to write no bytecode: every process that a test starts would compile all of this.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV CDPATH PYTHONDONTWRITEBYTECODE
export PYTHONNOUSERSITE=1 PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="$ROOT/.venv/bin/python"

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }

case "$(uname -s)" in
    MINGW* | MSYS* | CYGWIN*) fail "MLX does not exist for native Windows; use WSL2 or macOS" ;;
esac

# Running it is the only proof: pyenv leaves commands that exist and fail.
works() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }

find_python() {
    local name
    for name in python3.12 python3.11 python3.10 python3.13 python3 python3.14 python; do
        if command -v "$name" >/dev/null 2>&1 && works "$name"; then
            printf '%s\n' "$name"
            return
        fi
    done
    fail "no python >= 3.10 found (looked for python3.12, python3.11, python3.10, python3)"
}

make_venv() {
    local python
    python="$(find_python)"
    say "making .venv with $("$python" -c 'import sys; print(sys.executable, sys.version.split()[0])')"
    rm -rf "$ROOT/.venv"
    if ! "$python" -m venv "$ROOT/.venv" >&2 || ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
        rm -rf "$ROOT/.venv"
        fail "$python cannot make a virtual environment; install its venv module" \
            "(Debian, Ubuntu: apt install python3-venv) and run this again"
    fi
}

# install NAME EXTRAS: once for each pyproject.toml and folder.
install() {
    local stamp="$ROOT/.venv/.installed-$1" key
    key="$(cksum <"$ROOT/pyproject.toml") $ROOT"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ]; then return; fi
    say "installing mlx-spec$2 into .venv (once; takes a minute or two)"
    (cd "$ROOT" && "$PYTHON" -m pip install -qq --editable ".$2") >&2 ||
        fail "the installation failed (see above); is the package index within reach?"
    printf '%s\n' "$key" >"$stamp"
}

# MLX's CPU build brings a slow BLAS; platform.py loads a fast one if the system or .venv has it.
fast_blas() {
    local stamp="$ROOT/.venv/.fast-blas"
    if [ -f "$stamp" ] || [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then return; fi
    if [ "${MLX_SPEC_BLAS:-auto}" != auto ]; then return; fi
    if ! "$PYTHON" -c 'import sys; from mlx_spec.platform import blas_advice, ensure_blas
sys.exit(blas_advice(ensure_blas()) is not None)'; then
        say "no fast BLAS on this system: installing MKL into .venv (once, some 220 MB)"
        (cd "$ROOT" && "$PYTHON" -m pip install -qq --editable '.[fast-cpu]') >&2 ||
            say "that failed: MLX will run slowly, with its own BLAS (see: mlx-spec doctor)"
    fi
    touch "$stamp"
}

# setup run: what the product needs. setup dev: that, and what tests and checks need (not the fast
# BLAS: exactness is tested with MLX's own).
setup() {
    if ! works "$PYTHON"; then make_venv; fi
    case "$1" in
        run)
            install run ''
            fast_blas
            ;;
        dev) install dev '[dev]' ;;
    esac
}
