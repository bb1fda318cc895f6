#!/usr/bin/env bash
# Runs all tests with two processes. Works on a fresh machine: it creates the environment if needed. Arguments are
# passed to pytest (-n 0 for one process).
set -euo pipefail
EXTRAS=test
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # the processes take the cores; threads besides would wait for them
exec "$PYTHON" -m pytest -n 2 --dist loadfile "$@"
