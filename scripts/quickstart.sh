#!/usr/bin/env bash
# Trains, samples and scores an FPDM and a DiT on real digits: results/quickstart/report.md. Works on a fresh machine:
# it creates the environment if needed. Arguments are passed to scripts/quickstart.py.
set -euo pipefail
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$PYTHON" scripts/quickstart.py "$@"
