#!/usr/bin/env bash
# All tests, from a fresh machine: makes the environment if needed, then runs pytest on two processes. Arguments go to
# pytest (-n 0 for one process).
set -euo pipefail
EXTRAS=test
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$PYTHON" -m pytest -n 2 --dist loadfile "$@"
