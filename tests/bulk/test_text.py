"""Rows from lines of text, JSON Lines, CSV and TSV, good ones and bad ones."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bulk import read_rows

from e5core.bulk.text import CSV_FIELD_LIMIT


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
    assert read_rows(tmp_path / "a.txt", content) == expected
    assert read_rows(tmp_path / "no_suffix", content) == expected
    assert read_rows(tmp_path / "a.csv", content, format="txt") == expected


def test_jsonl(tmp_path: Path) -> None:
    content = b'{"text": "a", "id": 7}\n\n  \n{"id": "x", "text": "\\u00e9\\n", "more": [1]}\r\n'
    assert read_rows(tmp_path / "a.jsonl", content) == [(1, "a", None), (4, "é\n", None)]
    assert read_rows(tmp_path / "a.ndjson", content, id_column="id") == [
        (1, "a", 7),
        (4, "é\n", "x"),
    ]
    assert read_rows(tmp_path / "a.json", content, column="id", id_column="text")[1] == (
        4,
        "x",
        "é\n",
    )


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
    found = read_rows(tmp_path / "a.jsonl", b"\n".join([good, line, good]))
    assert [found[0], found[2]] == [(1, "a", None), (3, "a", None)]
    assert found[1][0] == 2
    assert str(found[1][1]).startswith(reason)


@pytest.mark.parametrize("name", ["null", "1.5", "true", "[]"])
def test_ids_that_are_none(tmp_path: Path, name: str) -> None:
    found = read_rows(
        tmp_path / "a.jsonl", f'{{"text": "a", "id": {name}}}'.encode(), id_column="id"
    )
    assert len(found[0]) == 2
    assert "expected text or a whole number" in str(found[0][1])


def test_csv(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfid,text\r\n1,"a, ""b""\nc"\r\n\r\n2,\r\nx,\xc3\xa9\r\n'
    assert read_rows(tmp_path / "a.csv", content, id_column="id") == [
        (2, 'a, "b"\nc', "1"),
        (5, "", "2"),
        (6, "é", "x"),
    ]
    assert read_rows(tmp_path / "a.csv", content, column="id")[0] == (2, "1", None)
    assert read_rows(tmp_path / "a.csv", b"text\n") == []
    assert read_rows(tmp_path / "a.csv", b"") == []


def test_bad_rows_of_csv(tmp_path: Path) -> None:
    content = b'id,text\n1,a\n2\n3,b,c\n4,\xff\n5,"a"b\n6,c\n'
    found = read_rows(tmp_path / "a.csv", content)
    assert [row[0] for row in found] == [2, 3, 4, 5, 6, 7]
    assert found[1][1] == "the row has 1 fields, the header 2"
    assert found[2][1] == "the row has 3 fields, the header 2"
    assert str(found[3][1]).startswith("the byte 0xFF is not UTF-8")
    assert str(found[4][1]).startswith("the row is not CSV: ")
    assert found[5] == (7, "c", None)


def test_a_quotation_mark_that_never_ends(tmp_path: Path) -> None:
    lines = b"x" * 1000 + b"\n"
    content = b'text\n"' + lines * (CSV_FIELD_LIMIT // len(lines) + 2)
    found = read_rows(tmp_path / "a.csv", content)
    assert "field larger than field limit" in str(found[0][1])


def test_lines_that_go_with_a_bad_row_are_named(tmp_path: Path) -> None:
    content = b'id,text\n1,a\n2,"open\n3,b\n4,"c"\n5,d\n6,"never closed\n7,e\n'
    found = read_rows(tmp_path / "a.csv", content)
    assert [row[0] for row in found] == [2, 3, 6, 7]
    assert str(found[1][1]).startswith("the row, lines 3 to 5, is not CSV: ")
    assert str(found[3][1]).startswith("the row, lines 7 to 8, is not CSV: ")


def test_tsv(tmp_path: Path) -> None:
    content = b'text\tid\na "b\t1\r\n\n"\t2\nc\n'
    assert read_rows(tmp_path / "a.tsv", content, id_column="id") == [
        (2, 'a "b', "1"),
        (4, '"', "2"),
        (5, "the row has 1 fields, the header 2"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.csv", b"id,body\n", {}, "a.csv has no column 'text'; it has 'id', 'body': pass col"),
        ("a.csv", b"text,text\n", {}, "a.csv has more than one column 'text'"),
        ("a.csv", b"text\na\n", {"id_column": "id"}, "a.csv has no column 'id'; it has 'text'"),
        ("a.csv", b"\xff\xfet\0", {}, r"a.csv, line 1: byte 0 is not UTF-8: .* iconv"),
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
        read_rows(tmp_path / name, content, **options)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(max_examples=100)
@given(st.lists(TEXTS.filter(lambda text: "\n" not in text and text[-1:] != "\r"), max_size=5))
def test_any_text_comes_through_jsonl_and_lines(tmp_path_factory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("any")
    lines = "\n".join([*(json.dumps({"text": text}) for text in texts), ""])
    assert [row[1] for row in read_rows(folder / "a.jsonl", lines.encode())] == texts
    if not "".join(texts[:1]).startswith("\ufeff"):  # a byte order mark
        plain = "".join(f"{text}\n" for text in texts).encode()
        assert [row[1] for row in read_rows(folder / "a.txt", plain)] == texts
