"""What an installation holds: the files of data that the package reads, and no others."""

from pathlib import Path

import pytest
from support.models import ROOT

PACKAGE = ROOT / "e5core"
DATA = {
    "formats/data/nmt_nfkc.charsmap",
    "parity/data/queries.tsv",
    "parity/data/sentences.tsv",
    "py.typed",
    "serve/page.html",
}


def test_the_wheel_holds_the_data() -> None:
    """By hatchling's own list of the files of a wheel; nothing is built."""
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    files = {
        Path(file.distribution_path).as_posix()
        for file in wheel.WheelBuilder(str(ROOT)).recurse_included_files()
    }
    assert {f"e5core/{name}" for name in DATA} <= files
    assert {file.split("/")[0] for file in files} == {"e5core"}
    modules = {f"e5core/{path.relative_to(PACKAGE).as_posix()}" for path in PACKAGE.rglob("*.py")}
    assert modules <= files
