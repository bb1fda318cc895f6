#!/usr/bin/env bash
# All tests, from a fresh machine: makes the environment if needed, then runs pytest. Arguments go to pytest.
set -euo pipefail
EXTRAS=test
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$PYTHON" -m pytest "$@"
