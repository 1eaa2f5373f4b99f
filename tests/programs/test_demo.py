"""The language-learning collection, and the demonstration on it from end to end."""

import importlib
import unicodedata
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from support.models import ROOT

DATA = ROOT / "e5core" / "parity" / "data"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("demo")


@pytest.fixture
def sentences(demo: ModuleType) -> list[dict[str, str]]:
    return list(demo.read_table(DATA / "sentences.tsv"))


@pytest.fixture
def queries(demo: ModuleType) -> list[dict[str, str]]:
    return list(demo.read_table(DATA / "queries.tsv"))


def scripts_of(text: str) -> set[str]:
    """The writing systems of a text's letters: the first words of their Unicode names."""
    return {unicodedata.name(c).split()[0] for c in text if unicodedata.category(c)[0] == "L"}


def test_the_collection_is_wide(sentences: list[dict[str, str]]) -> None:
    found = set().union(*(scripts_of(row["sentence"]) for row in sentences))
    assert len(sentences) >= 80
    assert len({row["language"] for row in sentences}) >= 8
    assert found >= {"LATIN", "CYRILLIC", "ARABIC", "DEVANAGARI", "CJK", "HIRAGANA", "HANGUL"}


def test_every_topic_is_there_once_in_every_language(sentences: list[dict[str, str]]) -> None:
    counts = Counter((row["language"], row["topic"]) for row in sentences)
    languages = {row["language"] for row in sentences}
    topics = {row["topic"] for row in sentences}
    assert counts == Counter({(language, topic): 1 for language in languages for topic in topics})


def test_queries_are_in_other_languages(
    sentences: list[dict[str, str]], queries: list[dict[str, str]]
) -> None:
    asked = {row["language"] for row in queries}
    assert asked.isdisjoint(row["language"] for row in sentences)
    assert len(asked) == len(queries) >= 10
    assert {row["topic"] for row in queries} == {row["topic"] for row in sentences}


@pytest.mark.parametrize(("table", "column"), [("sentences", "sentence"), ("queries", "query")])
def test_texts_are_clean(request: pytest.FixtureRequest, table: str, column: str) -> None:
    rows = request.getfixturevalue(table)
    texts = [row[column] for row in rows]
    assert len(set(texts)) == len(texts)
    for row in rows:
        assert set(row) == {"language", "topic", column}  # no row has a column too many
        assert row[column] == unicodedata.normalize("NFC", row[column]).strip() != ""
        assert all(value.isprintable() or "\u200c" in value for value in row.values())
        assert len(row["language"]) == 2


def test_the_demonstration_finds_every_sentence(
    demo: ModuleType,
    queries: list[dict[str, str]],
    real_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert demo.main([str(real_folder), "--top-k", "1"]) == 0
    printed = capsys.readouterr().out
    assert f"{len(queries)} of {len(queries)} queries have the right sentence first" in printed
    assert all(row["query"] in printed for row in queries)


def test_the_demonstration_notices_a_wrong_answer(
    demo: ModuleType, real_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "DATA", tmp_path)
    (tmp_path / "sentences.tsv").write_text(
        "language\ttopic\tsentence\nen\train\tIt is raining.\nen\tdog\tA dog.\n", "utf-8"
    )
    (tmp_path / "queries.tsv").write_text("language\ttopic\tquery\nnl\train\tEen hond.\n", "utf-8")
    assert demo.main([str(real_folder)]) == 1
