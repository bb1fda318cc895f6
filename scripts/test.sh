#!/usr/bin/env bash
# Runs all tests with two processes. Works on a fresh machine: it creates the environment if needed. Arguments are
# passed to pytest (-n 0 for one process).
set -euo pipefail
EXTRAS=test
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$PYTHON" -m pytest -n 2 --dist loadfile "$@"
