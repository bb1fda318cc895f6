#!/usr/bin/env bash
# Builds the documentation site in site/: the pages of docs/ and a reference from the docstrings. Arguments are passed
# to mkdocs (--site-dir DIR for another folder).
set -euo pipefail
EXTRAS=docs
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export NO_MKDOCS_2_WARNING=1  # an advertisement by the theme, not a warning about this site
exec "$PYTHON" -m mkdocs build --strict "$@"
