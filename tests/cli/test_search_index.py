"""e5core search --index: queries are embedded as the vectors were, or refused."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cli import fails

from e5core import E5, Index
from e5core.cli import main
from e5core.parity.samples import SENTENCES

DOCUMENTS = ["\n".join(SENTENCES[i : i + 5]) for i in range(0, 50, 5)]
SUFFIXES = (".npy", ".safetensors", ".parquet")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "documents.jsonl"
    rows = [{"text": text, "id": f"d{i}"} for i, text in enumerate(DOCUMENTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def embed(model: Path, file: Path, output: Path, *more: str, input_type: str = "passage") -> Path:
    arguments = ["embed", file, "--model", model, "--output", output, "--id-column", "id"]
    assert main([*map(str, arguments), "--input-type", input_type, *more]) == 0
    return output


def hits(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    capsys.readouterr()
    assert main(["search", *map(str, arguments)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out.splitlines()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_index_is_searched_by_the_model_that_made_it(
    model: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = embed(model, file, tmp_path / f"out{suffix}")
    found = hits(capsys, "--index", path, "日本", "zz the", "--top-k", 3)
    library = E5.from_pretrained(model)
    result = Index.open(path).search(library.encode_query(["日本", "zz the"]), 3)
    expected = []
    for query, indices, scores in zip(
        ["日本", "zz the"], result.indices, result.scores, strict=True
    ):
        expected.append(query)
        for rank, (i, score) in enumerate(zip(indices, scores, strict=True), 1):
            text = " ".join(DOCUMENTS[i].split())
            expected.append(f"    {rank}. {score:.4f}  d{i}: {text}")
    assert found == expected


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_passages_are_shown_and_taken_together(
    model: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = embed(model, file, tmp_path / f"out{suffix}", "--split", "40", "--overlap", "8")
    rows = Index.open(path).rows
    assert rows is not None
    found = hits(capsys, "--index", path, "the café", "--top-k", 1)
    vector = E5.from_pretrained(model).encode_query("the café")
    row = rows[int(Index.open(path).search(vector, 1).indices[0])]
    text = " ".join(DOCUMENTS[row["line"] - 1][row["start"] : row["end"]].split())
    place = f"passage {row['passage']} (characters {row['start']} to {row['end']})"
    assert found[1].endswith(f"  {row['id']}, {place}: {text}")
    found = hits(capsys, "--index", path, "the café", "--top-k", 99, "--by-document")
    names = [line.split()[2].rstrip(",") for line in found[1:]]
    assert sorted(names) == sorted(f"d{i}" for i in range(len(DOCUMENTS)))


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_a_text_that_is_not_there_any_more_is_not_shown(
    model: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    path = embed(model, file, tmp_path / "out.npy")
    if change == "gone":
        file.unlink()
    else:
        later = path.stat().st_mtime + 10
        os.utime(file, (later, later))
    found = hits(capsys, "--index", path, "q", "--top-k", 2)
    assert [line.split(": ")[1] for line in found[1:]] == [
        "(the text cannot be read any more where it was)"
    ] * 2


@pytest.mark.parametrize("input_type", ["query", "none"])
def test_queries_are_of_the_type_that_fits(
    model: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], input_type: str
) -> None:
    path = embed(model, file, tmp_path / "out.npy", input_type=input_type)
    kind: Any = None if input_type == "none" else input_type
    vector = E5.from_pretrained(model).encode("日本", input_type=kind)
    score = Index.open(path).search(vector, 1).scores[0]
    for more in ([], ["--input-type", input_type]):
        assert f"    1. {score:.4f}  " in hits(capsys, "--index", path, "日本", *more)[1]


@pytest.mark.parametrize(
    ("made", "arguments", "message"),
    [
        ("passage", ["--input-type", "passage"], "holds vectors of type passage, whose queries"),
        ("passage", ["--input-type", "none"], "pass --input-type query, or leave it out"),
        ("query", ["--input-type", "passage"], "holds vectors of type query, whose queries"),
        ("none", ["--input-type", "query"], "pass --input-type none, or leave it out"),
        ("passage", ["--prompts", "none"], "prompts was {'query': 'query: ', 'passage': 'passage"),
        ("passage", ["--task", "a task"], "task"),
        ("query", ["--task", "a task"], "task was None, is 'a task'. Leave it out (--task)"),
        ("passage", ["--truncate-dim", "8"], "holds vectors of 24 numbers, truncate_dim is 8"),
        ("passage", ["--top-k", "0"], "--top-k is 0, expected 1 or more"),
        ("passage", ["--passages", "f"], "not allowed with argument"),
    ],
)
def test_other_queries_are_refused_with_the_difference(
    model: Path,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    made: str,
    arguments: list[str],
    message: str,
) -> None:
    path = embed(model, file, tmp_path / "out.npy", input_type=made)
    capsys.readouterr()
    assert message in fails(capsys, "search", "q", "--index", path, *arguments)


def test_queries_are_as_short_as_the_vectors(
    model: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = embed(model, file, tmp_path / "out.npy", "--truncate-dim", "8")
    expected = hits(capsys, "--index", path, "日本")
    assert len(expected) == 6
    assert hits(capsys, "--index", path, "日本", "--truncate-dim", "8") == expected


def test_another_model_is_refused_and_the_same_elsewhere_is_taken(
    model: Path, make_tiny: Any, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = embed(model, file, tmp_path / "out.npy")
    expected = hits(capsys, "--index", path, "q")
    other = make_tiny(seed=5, name="other")
    said = fails(capsys, "search", "q", "--index", path, "--model", other)
    assert f"{path} was made by another model" in said
    assert "the model's model.safetensors is another" in said
    moved = tmp_path / "moved"
    shutil.move(model, moved)
    said = fails(capsys, "search", "q", "--index", path)
    assert "name the model's folder (--model)" in said
    assert hits(capsys, "--index", path, "q", "--model", moved) == expected


def test_vectors_of_which_nothing_says_what_made_them(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "others.npy"
    np.save(path, np.ones((3, 24), dtype=np.float32))
    said = fails(capsys, "search", "q", "--index", path)
    assert f"nothing says what made {path}: e5core embed writes it to {path}.json" in said
    assert "is not there" in fails(capsys, "search", "q", "--index", tmp_path / "none.npy")


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("options"),
        lambda record: record["options"].pop("hidden_size"),
        lambda record: record.update(input_type="document"),
        lambda record: record.update(model="small"),
        lambda record: record["model"].update(files=None),
        lambda record: record.pop("prompts"),
    ],
)
def test_a_record_that_says_too_little(
    model: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any
) -> None:
    """As another program of the same name for its files may write it."""
    path = embed(model, file, tmp_path / "out.npy")
    place = path.with_name("out.npy.json")
    record = json.loads(place.read_text())
    change(record)
    place.write_text(json.dumps(record))
    capsys.readouterr()
    said = fails(capsys, "search", "--index", path, "a query")
    assert "nothing says what made" in said
    assert "Embed the files anew" in said


@pytest.mark.parametrize("flag", [["--by-document"], ["--input-type", "query"]])
def test_options_of_an_index_say_nothing_without_one(
    model: Path, texts: Path, capsys: pytest.CaptureFixture[str], flag: list[str]
) -> None:
    rest = ("--model", model, "--passages", texts, *flag)
    assert f"{flag[0]} says nothing without --index" in fails(capsys, "search", "q", *rest)


def test_the_text_is_read_as_it_was(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "table.dat"
    file.write_text("id;body;other\n1;the café;x\n2;日本;y\n", "utf-8")
    more = ("--format", "csv", "--delimiter", ";", "--column", "body")
    path = embed(model, file, tmp_path / "out.npy", *more)
    found = hits(capsys, "--index", path, "日本")
    assert sorted(line.split("  ")[-1] for line in found[1:]) == ["1: the café", "2: 日本"]
    found = hits(capsys, "--index", path, "日本", "--column", "other")
    assert sorted(line.split("  ")[-1] for line in found[1:]) == ["1: x", "2: y"]
