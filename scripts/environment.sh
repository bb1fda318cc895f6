# Sourced by quickstart.sh, test.sh and docs.sh: sets PYTHON to an interpreter that satisfies pyproject.toml with the
# extras in EXTRAS. Uses the active environment if it satisfies it, otherwise .venv in this repository.
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
EXTRAS="${EXTRAS:-}"

satisfied() { "$1" scripts/check_environment.py --extras "$EXTRAS" "${@:2}" 2>/dev/null; }

PYTHON="$(command -v python3 || command -v python || true)"
if [ -z "$PYTHON" ]; then
    echo "error: no python3 on the PATH; install Python 3.10 or newer" >&2
    exit 2
fi
if satisfied "$PYTHON" --quiet; then
    echo "environment: $("$PYTHON" -c 'import sys; print(sys.prefix)') satisfies pyproject.toml"
else
    .venv/bin/python -m pip --version >/dev/null 2>&1 || "$PYTHON" -m venv .venv
    PYTHON="$ROOT/.venv/bin/python"
    if ! satisfied "$PYTHON" --quiet; then
        echo "environment: installing into .venv (once; a few GB, some minutes)"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -e ".${EXTRAS:+[$EXTRAS]}"
        satisfied "$PYTHON" || { echo "error: .venv still does not satisfy pyproject.toml" >&2; exit 2; }
    fi
fi
