#!/usr/bin/env bash
# Run the tests against a wheel, in a copy that has nothing of this checkout's e5core/.
#
#   bash scripts/test_wheel.sh WHEEL [pytest's arguments]
#
#   PYTHON        the interpreter to start from (default: python3)
#   E5CORE_VENV   the environment to install into (default: a new one, deleted afterwards)
#   VERSIONS      of what e5core needs: "pinned" as in constraints.txt (the default), "lowest" that
#                 pyproject.toml names, or "newest"
set -euo pipefail
cd "$(dirname "$0")/.."
wheel=$(realpath "$1")
shift
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
venv=$(realpath -m "${E5CORE_VENV:-$scratch/venv}")

versions=$scratch/versions.txt
case ${VERSIONS:-pinned} in
    pinned) cp scripts/constraints.txt "$versions" ;;
    lowest)
        # And of transformers, whose newest takes no such torch.
        sed -n -e '/^dependencies = \[/,/^\]/s/^ *"\(.*\)>=\(.*\)".*/\1==\2/p' \
            -e '/^test = \[/,/^\]/s/^ *"\(transformers\)>=\(.*\)".*/\1==\2/p' \
            pyproject.toml > "$versions"
        ;;
    newest) : > "$versions" ;;
    *) echo "VERSIONS is $VERSIONS, expected pinned, lowest or newest" >&2; exit 2 ;;
esac
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet)
# torch first and by its exact version: see constraints.txt.
torch=$(grep '^torch==' "$versions" || echo torch)
"${pip[@]}" --constraint "$versions" "$torch"
"${pip[@]}" --constraint "$versions" "$wheel[test]"
"${pip[@]}" --force-reinstall --no-deps "$wheel"

cp -r tests scripts docs hatch_build.py pyproject.toml README.md CHANGELOG.md LICENSE .ci "$scratch"
ln -s "$PWD/models" "$scratch/models"
# Tests that read the package's files find those of the wheel. pytest is not run as a module, so
# that its own folder is not where e5core is imported from.
installed=$(cd / && "$venv/bin/python" -c 'import e5core; print(e5core.__path__[0])')
ln -s "$installed" "$scratch/e5core"
cd "$scratch"
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$venv/bin/pytest" "$@"
