#!/usr/bin/env bash
# This sets up an environment and the real model, then runs the test suite. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

install test,lint
build_model
"$venv/bin/python" -m pytest "$@"
