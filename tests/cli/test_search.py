"""e5core search: ranked lines, and what cannot be searched."""

from pathlib import Path

import pytest
from support.cli import PLACES, SEEN, fails

from e5core import E5, search
from e5core.cli import main


def test_search_prints_ranked_lines(
    model: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queries = ["日本", "zz the"]
    code = main(
        ["search", *queries, "--model", str(model), "--passages", str(texts), "--top-k", "3"]
    )
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    library = E5.from_pretrained(model)
    result = search(library.encode_query(queries), library.encode_passage(SEEN), top_k=3)
    expected = []
    for query, indices, scores in zip(queries, result.indices, result.scores, strict=True):
        expected.append(query)
        for rank, (index, score) in enumerate(zip(indices, scores, strict=True), 1):
            expected.append(f"    {rank}. {score:.4f}  line {PLACES[index]}: {SEEN[index]}")
    assert printed.out.split("\n") == [*expected, ""]
    assert len(expected) == 2 * (1 + 3)


def test_a_query_that_is_not_text(
    model: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # What Python makes of an argument that is not UTF-8.
    arguments = ("search", "good", "bad \udcff", "--model", model, "--passages", texts)
    assert "e5core search: query 2: the text holds the lone surrogate" in fails(capsys, *arguments)


@pytest.mark.parametrize("top_k", ["0", "-1"])
def test_top_k_is_checked_before_any_work(
    texts: Path, capsys: pytest.CaptureFixture[str], top_k: str
) -> None:
    rest = ("--model", "./missing", "--passages", texts, "--top-k", top_k)
    assert f"--top-k is {top_k}, expected 1 or more" in fails(capsys, "search", "q", *rest)


def test_nothing_to_search(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    rest = ("--model", model, "--passages", empty)
    assert f"{empty} has no lines to search" in fails(capsys, "search", "q", *rest)
