"""docs/language_learning.ipynb runs from top to bottom and prints what it shows."""

import contextlib
import io
import json
from pathlib import Path

import pytest
from support.models import ROOT, write_tiny_reranker

from e5core.checkpoint import hub

pytest.importorskip("altair", reason="altair, of the extra map, is not installed")
pytest.importorskip("vl_convert", reason="vl-convert, of the extra map, is not installed")

NOTEBOOK = ROOT / "docs" / "language_learning.ipynb"
# The output of a reranker of 2.3 GB is not kept, and here a tiny one takes its place.
WITHOUT_OUTPUT = "Reranker.from_pretrained"


def test_cells_print_what_is_kept(
    tmp_path: Path, real_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker = write_tiny_reranker(tmp_path / "reranker", "xlm-roberta")
    folders = {"intfloat": real_folder.resolve(), "BAAI": reranker}
    monkeypatch.setattr(hub, "resolve", lambda model, **_: folders[str(model).split("/")[0]])
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    without = 0
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    for number, cell in enumerate(cell for cell in cells if cell["cell_type"] == "code"):
        source = "".join(cell["source"])
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, f"cell {number}", "exec"), names)
        kept = "".join("".join(output["text"]) for output in cell["outputs"])
        if WITHOUT_OUTPUT in source:
            without += 1
            assert kept == ""
            assert len(printed.getvalue().splitlines()) == 3
        else:
            assert printed.getvalue() == kept, source
    assert without == 1
    assert "Swahili" in (tmp_path / "language_learning.html").read_text(encoding="utf-8")
    assert NOTEBOOK.stat().st_size < 50_000
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for link in ("meanings.svg", "maps.md"):
        assert f"]({link})" in text
        assert (NOTEBOOK.parent / link).is_file()
