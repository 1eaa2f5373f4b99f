#!/usr/bin/env bash
# This sets up an environment and the real model, then runs the test suite in two processes of a
# thread each. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

install test,lint
build_model
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
"$venv/bin/python" -m pytest --numprocesses 2 --dist loadfile "$@"
