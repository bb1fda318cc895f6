#!/usr/bin/env bash
# From a fresh machine to a trained, sampled and scored FPDM and DiT on real digits: results/quickstart/report.md.
# Arguments go to scripts/quickstart.py.
set -euo pipefail
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$PYTHON" scripts/quickstart.py "$@"
