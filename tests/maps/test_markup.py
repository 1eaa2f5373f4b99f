"""A map's page holds texts of anyone: none of them may become a part of the page itself."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("altair", reason="altair, of the extra map, is not installed")
pytest.importorskip("vl_convert", reason="vl-convert, of the extra map, is not installed")

from e5core.maps.chart import save
from e5core.maps.points import Map, Point

# What ends or opens a script, or a comment that goes on to the end of the page.
MARKUP = (
    "</script><script>alert(1)</script>",
    "</ScRiPt >",
    "<!-- <script>",
    "]]>",
    "&lt;/script>",
)


def page_of(text: str, folder: Path) -> str:
    """The page of a map that has a text wherever one can stand."""
    drawn = Map(text, text, [Point(0, 0, text, text, text, text, text)], (0.5, 0.5), [text])
    save(drawn, folder / "map.html")
    return (folder / "map.html").read_text(encoding="utf-8")


def test_markup_in_a_text_stays_text(tmp_path: Path) -> None:
    def marks(page: str) -> list[int]:
        return [page.lower().count(mark) for mark in ("<script", "</script", "<!--")]

    expected = marks(page_of("a text", tmp_path))
    for text in MARKUP:
        page = page_of(text, tmp_path)
        assert marks(page) == expected
        found = re.search(r"const spec = (\{.*\});", page)
        assert found is not None
        spec = json.loads(found[1])
        assert spec["title"]["text"] == text
        assert spec["data"]["values"][0]["sentence"] == text
