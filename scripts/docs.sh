#!/usr/bin/env bash
# The documentation as a site, in site/: pages of docs/ and a reference made from the docstrings. Arguments go to mkdocs
# (--site-dir DIR for another place).
set -euo pipefail
EXTRAS=docs
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export NO_MKDOCS_2_WARNING=1  # an advertisement of the theme's, not a warning about this site
exec "$PYTHON" -m mkdocs build --strict "$@"
