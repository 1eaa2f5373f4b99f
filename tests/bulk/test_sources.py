"""Rows from files of every kind, good ones and bad ones."""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e5core.bulk.rows import BadRow, Row
from e5core.bulk.sources import Source
from e5core.bulk.text import CSV_FIELD_LIMIT


def rows(file: Path, content: bytes, **options: str) -> list[tuple[object, ...]]:
    """(line, text, id) of good rows, (line, reason) of bad ones."""
    file.write_bytes(content)
    found: list[tuple[object, ...]] = []
    for row in Source([file], **options).rows():
        assert row.file == str(file)
        found.append((row.line, row.text, row.id) if isinstance(row, Row) else (row.line, row[2]))
    return found


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\r\n\r\nb", ["a", "", "b"]),
        (b"", []),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", ["a", "\ufeffb"]),
        ("é\u2028x\n日本\n".encode(), ["é\u2028x", "日本"]),
    ],
)
def test_lines(tmp_path: Path, content: bytes, texts: list[str]) -> None:
    expected = [(i + 1, text, None) for i, text in enumerate(texts)]
    assert rows(tmp_path / "a.txt", content) == expected
    assert rows(tmp_path / "no_suffix", content) == expected
    assert rows(tmp_path / "a.csv", content, format="txt") == expected


def test_jsonl(tmp_path: Path) -> None:
    content = b'{"text": "a", "id": 7}\n\n  \n{"id": "x", "text": "\\u00e9\\n", "more": [1]}\r\n'
    assert rows(tmp_path / "a.jsonl", content) == [(1, "a", None), (4, "é\n", None)]
    assert rows(tmp_path / "a.ndjson", content, id_column="id") == [(1, "a", 7), (4, "é\n", "x")]
    assert rows(tmp_path / "a.json", content, column="id", id_column="text")[1] == (4, "x", "é\n")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "the line is not JSON: "),
        (b"[" * 100_000, "the line is not JSON: "),
        (b'"a"', "the line is a JSON str, expected an object"),
        (b"null", "the line is a JSON NoneType, expected an object"),
        (b"{}", "there is no field 'text'; the line has none"),
        (b'{"body": "a"}', "there is no field 'text'; the line has 'body'"),
        (b'{"text": null}', "text is null, expected text"),
        (b'{"text": 7}', "text is 7 of type int, expected text"),
        (b'{"text": "\\ud800"}', "it holds the lone surrogate U+D800 at character 0"),
        (b'{"text": "\xff"}', "byte 10 is not UTF-8; convert the file, for example with iconv"),
    ],
)
def test_bad_lines_of_jsonl(tmp_path: Path, line: bytes, reason: str) -> None:
    good = b'{"text": "a"}'
    found = rows(tmp_path / "a.jsonl", b"\n".join([good, line, good]))
    assert [found[0], found[2]] == [(1, "a", None), (3, "a", None)]
    assert found[1][0] == 2
    assert str(found[1][1]).startswith(reason)


@pytest.mark.parametrize("name", ["null", "1.5", "true", "[]"])
def test_ids_that_are_none(tmp_path: Path, name: str) -> None:
    found = rows(tmp_path / "a.jsonl", f'{{"text": "a", "id": {name}}}'.encode(), id_column="id")
    assert len(found[0]) == 2
    assert "expected text or a whole number" in str(found[0][1])


def test_csv(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfid,text\r\n1,"a, ""b""\nc"\r\n\r\n2,\r\nx,\xc3\xa9\r\n'
    assert rows(tmp_path / "a.csv", content, id_column="id") == [
        (2, 'a, "b"\nc', "1"),
        (5, "", "2"),
        (6, "é", "x"),
    ]
    assert rows(tmp_path / "a.csv", content, column="id")[0] == (2, "1", None)
    assert rows(tmp_path / "a.csv", b"text\n") == []
    assert rows(tmp_path / "a.csv", b"") == []


def test_bad_rows_of_csv(tmp_path: Path) -> None:
    content = b'id,text\n1,a\n2\n3,b,c\n4,\xff\n5,"a"b\n6,c\n'
    found = rows(tmp_path / "a.csv", content)
    assert [row[0] for row in found] == [2, 3, 4, 5, 6, 7]
    assert found[1][1] == "the row has 1 fields, the header 2"
    assert found[2][1] == "the row has 3 fields, the header 2"
    assert str(found[3][1]).startswith("the byte 0xFF is not UTF-8")
    assert str(found[4][1]).startswith("the row is not CSV: ")
    assert found[5] == (7, "c", None)


def test_a_quotation_mark_that_never_ends(tmp_path: Path) -> None:
    lines = b"x" * 1000 + b"\n"
    content = b'text\n"' + lines * (CSV_FIELD_LIMIT // len(lines) + 2)
    found = rows(tmp_path / "a.csv", content)
    assert "field larger than field limit" in str(found[0][1])


def test_lines_that_go_with_a_bad_row_are_named(tmp_path: Path) -> None:
    content = b'id,text\n1,a\n2,"open\n3,b\n4,"c"\n5,d\n6,"never closed\n7,e\n'
    found = rows(tmp_path / "a.csv", content)
    assert [row[0] for row in found] == [2, 3, 6, 7]
    assert str(found[1][1]).startswith("the row, lines 3 to 5, is not CSV: ")
    assert str(found[3][1]).startswith("the row, lines 7 to 8, is not CSV: ")


def test_tsv(tmp_path: Path) -> None:
    content = b'text\tid\na "b\t1\r\n\n"\t2\nc\n'
    assert rows(tmp_path / "a.tsv", content, id_column="id") == [
        (2, 'a "b', "1"),
        (4, '"', "2"),
        (5, "the row has 1 fields, the header 2"),
    ]


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    texts = ["a", None, "é", ""] * 700
    columns = {"id": range(len(texts)), "text": texts, "kind": pa.array(texts).dictionary_encode()}
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table(columns), file, row_group_size=900)
    for column in ("text", "kind"):
        source = Source([file], column=column, id_column="id")
        found = list(source.rows())
        assert source.position == source.total_bytes == file.stat().st_size
        assert [row.line for row in found] == list(range(1, len(texts) + 1))
        for i, (row, text) in enumerate(zip(found, texts, strict=True)):
            if text is None:
                assert row == BadRow(str(file), i + 1, f"{column} is null, expected text")
            else:
                assert row == Row(str(file), i + 1, text, i)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.csv", b"id,body\n", {}, "a.csv has no column 'text'; it has 'id', 'body': pass col"),
        ("a.csv", b"text,text\n", {}, "a.csv has more than one column 'text'"),
        ("a.csv", b"text\na\n", {"id_column": "id"}, "a.csv has no column 'id'; it has 'text'"),
        ("a.csv", b"\xff\xfet\0", {}, r"a.csv, line 1: the byte 0xFF is not UTF-8; .* iconv"),
        ("a.tsv", b"a\tb\n", {"column": "c"}, "a.tsv has no column 'c'; it has 'a', 'b'"),
        ("a.txt", b"a\n", {"column": "c"}, "column is given, but "),
        ("a.txt", b"a\n", {"id_column": "c"}, "id_column is given, but "),
        ("a.txt", b"a\n", {"format": "xml"}, "format is 'xml', expected one of txt, jsonl,"),
    ],
)
def test_what_no_row_can_come_from(
    tmp_path: Path, name: str, content: bytes, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rows(tmp_path / name, content, **options)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 100])
def test_what_is_no_parquet(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    with pytest.raises(ValueError, match=r"a\.parquet is not a whole Parquet file"):
        rows(tmp_path / "a.parquet", content)


def test_folders(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.jsonl", "a.txt", "_SUCCESS", ".hidden.txt", "_temporary/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "x"}\n')
    found = Source([tmp_path]).files
    assert found == [str(tmp_path / name) for name in ("a/c.jsonl", "a.txt", "b.txt")]
    (tmp_path / "notes.pdf").write_text("x")
    with pytest.raises(ValueError, match=r"notes\.pdf is none of \.txt, "):
        Source([tmp_path])
    assert len(Source([tmp_path], format="txt").files) == 4
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is a folder without files"):
        Source([tmp_path / "empty"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.symlink_to("nowhere"), "is no file; take it out of the folder"),
        (lambda path: path.symlink_to(path.parent), "is a link to a folder, which is not followed"),
        (os.mkfifo, "is no file; take it out of the folder"),
    ],
)
def test_nothing_of_a_folder_is_left_out_silently(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    make(tmp_path / "b.txt")
    with pytest.raises(ValueError, match=rf"b\.txt {message}"):
        Source([tmp_path])
    (tmp_path / "b.txt").rename(tmp_path / ".b.txt")
    assert Source([tmp_path]).files == [str(tmp_path / "a.txt")]


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("a\n")
    scandir = os.scandir

    def closed(folder: Path) -> object:  # root may read any
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(PermissionError, match="closed"):
        Source([tmp_path])


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"b\nc")))
    source = Source([tmp_path / "a.txt", "-"])
    assert source.total_bytes is None
    assert [row[2] for row in source.rows()] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="-, is named twice"):
        Source(["-", "-"])
    with pytest.raises(ValueError, match="Parquet cannot be read from standard input"):
        Source(["-"], format="parquet")


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS.filter(lambda text: "\n" not in text and text[-1:] != "\r"), max_size=5))
def test_any_text_comes_through_jsonl_and_lines(tmp_path_factory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("any")
    lines = "\n".join([*(json.dumps({"text": text}) for text in texts), ""])
    assert [row[1] for row in rows(folder / "a.jsonl", lines.encode())] == texts
    if not "".join(texts[:1]).startswith("\ufeff"):  # a byte order mark
        plain = "".join(f"{text}\n" for text in texts).encode()
        assert [row[1] for row in rows(folder / "a.txt", plain)] == texts
