"""Long texts in files become passages: a row of each, with its place, resumable as ever."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bulk import LONG, TEXTS, embed, interrupt, read_vectors
from support.conversions import content

from e5core import E5, Index
from e5core.bulk import PartialOutputError

SPLIT = {"split": 40, "overlap": 10}
DOCUMENTS = [LONG + f"{i} " + " ".join(TEXTS[i : i + 4]) if i % 3 else TEXTS[i] for i in range(30)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "documents.jsonl"
    rows = [{"text": text, "id": f"d{i}"} for i, text in enumerate(DOCUMENTS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def expected(model: E5) -> tuple[list[dict[str, Any]], list[str]]:
    rows, passages = [], []
    for number, text in enumerate(DOCUMENTS):
        for place, part in enumerate(model.split(text, 40, 10, input_type="query")):
            rows.append({"id": f"d{number}", "line": number + 1, "passage": place})
            rows[-1] |= {"start": part.start, "end": part.end}
            passages.append(part.text)
    return rows, passages


def test_every_passage_has_a_row(model: Path, texts: Path, output: Path) -> None:
    summary = embed(model, texts, output, id_column="id", **SPLIT)
    loaded = E5.from_pretrained(model)
    rows, passages = expected(loaded)
    result = loaded.embed(passages, input_type="query")
    assert not result.truncated.any()
    assert (summary.rows, summary.cut, summary.rejected) == (len(rows), 0, 0)
    assert summary.tokens == result.token_counts.sum()
    np.testing.assert_array_equal(read_vectors(output), result.vectors)
    index = Index.open(output)
    assert index.rows is not None
    assert [dict(row) for row in index.rows] == [row | {"file": str(texts)} for row in rows]
    found = index.search(result.vectors[5], top_k=30, by_document=True)
    assert len({index.ids[i] for i in found.indices}) == len(DOCUMENTS)  # type: ignore[index]
    assert found.indices[0] == 5


def test_a_stopped_job_goes_on_and_two_processes_do_the_same(
    model: Path, texts: Path, output: Path, tmp_path: Path
) -> None:
    embed(model, texts, output, **SPLIT)
    whole = content(output.parent)
    for name, options in (("again", {}), ("workers", {"workers": 2})):
        other = tmp_path / name / output.name
        other.parent.mkdir()
        if name == "again":
            interrupt(model, texts, other, after=2, **SPLIT)
        embed(model, texts, other, **SPLIT, **options)
        assert content(other.parent) == whole


def test_another_split_does_not_go_on(model: Path, texts: Path, npy: Path) -> None:
    interrupt(model, texts, npy, **SPLIT)
    with pytest.raises(PartialOutputError, match="split was 40, is None"):
        embed(model, texts, npy)
    with pytest.raises(PartialOutputError, match="overlap was 10, is 20"):
        embed(model, texts, npy, split=40, overlap=20)


def test_a_grapheme_that_is_too_long_is_a_rejected_row(
    model: Path, tmp_path: Path, npy: Path
) -> None:
    file = tmp_path / "marks.txt"
    file.write_text("one\n" + "\u200d".join("xyz" * 40) + "\nthree\n", "utf-8")
    with pytest.raises(ValueError, match="line 2: the characters from 0 on are one grapheme"):
        embed(model, file, npy, **SPLIT)
    assert embed(model, file, npy, on_error="skip", restart=True, **SPLIT).rejected == 1
    lines = npy.with_name("vectors.npy.ids.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == [1, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": 65}, "passages of 65 tokens are asked for .* the model takes 64"),
        ({"split": 20}, r"overlap is 32 \(--overlap\), expected 0 to"),
        ({"overlap": 8}, r"overlap is 8, but texts are not split; pass split=256 \(--split 256\)"),
        ({"split": 60, "truncate": "window"}, "pass one of the two"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    model: Path, texts: Path, npy: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        embed(model, texts, npy, **options)
    assert not any(npy.parent.iterdir())
