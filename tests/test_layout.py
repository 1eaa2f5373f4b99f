"""The walls of the house that docs/design.md describes: who may import whom, and how large a
room may be."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from support.models import ROOT

PACKAGE = ROOT / "e5core"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
NAMES = {file: ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in FILES}
MODULES = {name.removesuffix(".__init__"): file for file, name in NAMES.items()}

# What everybody may stand on; all other folders of the package are wings above it.
GROUND = {"checkpoint", "formats", "kernels", "texts", "vectors"}


def wing(file: Path) -> str:
    """The folder of the package that a file lies in; "" for the root."""
    return file.relative_to(PACKAGE).parts[0] if file.parent != PACKAGE else ""


def imported(file: Path) -> set[str]:
    """The names of everything that a file imports, wherever in it, e5core's own as modules."""
    found = set()
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else str(node.module))
    return found


def own(file: Path) -> set[Path]:
    """The files of the package that a file imports."""
    return {MODULES[name] for name in imported(file) if name in MODULES}


def test_nothing_is_imported_in_a_circle() -> None:
    TopologicalSorter({file: own(file) - {file} for file in FILES}).prepare()


@pytest.mark.parametrize("file", FILES, ids=NAMES.get)
def test_nobody_imports_what_stands_above(file: Path) -> None:
    below = {wing(other) for other in own(file)}
    if wing(file) == "formats":
        assert below <= {"formats"}
    if wing(file) == "kernels":
        assert below <= {"kernels"}
    if wing(file) in {"", *GROUND} and file.name != "__main__.py":
        assert below <= {"", *GROUND}


# Wings that do without a library or a wing, and what that is.
WITHOUT = {
    "vectors": ("torch", "e5core.model", "e5core.encoder", "e5core.kernels"),
    "evaluate/metrics.py": ("torch",),
    "serve": ("e5core.encoder", "e5core.kernels"),
    "train": ("e5core.kernels",),
}


@pytest.mark.parametrize("file", FILES, ids=NAMES.get)
def test_wings_do_without_what_they_do_not_need(file: Path) -> None:
    place = str(file.relative_to(PACKAGE))
    for room, forbidden in WITHOUT.items():
        if place.startswith(room):
            reached = {name for name in imported(file) if name.startswith(forbidden)}
            assert not reached, f"{place} needs {reached}"


def test_the_root_is_read_in_an_hour() -> None:
    root = [file for file in PACKAGE.glob("*.py") if file.name != "__main__.py"]
    assert len(root) <= 12
    assert sum(len(file.read_text("utf-8").splitlines()) for file in root) <= 1500


@pytest.mark.parametrize("file", FILES, ids=NAMES.get)
def test_no_file_and_no_function_is_long(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 300
    for node in ast.walk(TREES[file]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= 60, f"{node.name} has {lines} lines"


def test_scripts_are_programs() -> None:
    """No program imports another one, and each begins with what it does or what it calls."""
    programs = sorted((ROOT / "scripts").glob("*.py"))
    stems = {program.stem for program in programs}
    for program in programs:
        tree = ast.parse(program.read_text(encoding="utf-8"))
        names = {
            name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in (
                [str(node.module)]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
        }
        assert not names & stems, f"{program.name} imports {names & stems}"
