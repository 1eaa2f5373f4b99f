"""Files as people have them: dialects of tables, compressions, arrays, ids, and other kinds."""

import bz2
import datetime
import decimal
import gzip
import io
import json
import lzma
import sys
import tarfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bulk import embed, interrupt, read_jsonl, read_rows

from e5core.bulk.rows import BadRow, Row
from e5core.bulk.sources import Source

ROWS = [("a", "1"), ('he said "hi"', "2"), ("two\nlines", "3"), ("with\ttab", "4"), ("x, y", "5")]


def texts_of(file: Path, content: bytes, **options: Any) -> list[object]:
    return [row[1] for row in read_rows(file, content, **options)]


# --- tab-separated values --------------------------------------------------------------------


def test_tsv_of_pandas(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(ROWS, columns=["text", "id"])
    for options in ({}, {"quoting": 1}, {"lineterminator": "\r\n"}):
        content = frame.to_csv(sep="\t", index=False, **options).encode()
        found = read_rows(tmp_path / "a.tsv", content, id_column="id")
        assert [row[1].replace("\r\n", "\n") for row in found] == [text for text, _ in ROWS]
        assert [row[2] for row in found] == [name for _, name in ROWS]


def test_tsv_of_r_and_excel(tmp_path: Path) -> None:
    of_r = b'"text"\t"id"\n"a b"\t1\n"it\'s"\t2\n'
    assert texts_of(tmp_path / "a.tsv", of_r) == ["a b", "it's"]
    of_excel = b'text\tid\r\n"a, b"\t1\r\nplain\t2\r\n"the ""x"""\t3\r\n'
    assert texts_of(tmp_path / "a.tsv", of_excel) == ["a, b", "plain", 'the "x"']


@pytest.mark.parametrize(
    "lines",
    [
        ['"Thank you."\t1', '"Yes," he said.\t2'],
        ['say "hi"\t1', '"a, b"\t2'],
        ['"open\t1', 'closed"\t2'],
        ['"\t1', "a\t2"],
        ['"open\t1'],
        ['15" monitor\t1', '"\t2'],
    ],
)
def test_marks_that_are_text(tmp_path: Path, lines: list[str]) -> None:
    content = "\n".join(["text\tid", "plain\t0", *lines])
    expected = ["plain", *(line.split("\t")[0] for line in lines)]
    assert texts_of(tmp_path / "a.tsv", content.encode()) == expected


def test_marks_are_judged_by_many_lines(tmp_path: Path) -> None:
    quoted = ['"x ""y"""\t1'] * 300
    long = "\n".join(["text\tid", *quoted, *['"a\nb"\t2'] * 300])
    found = texts_of(tmp_path / "a.tsv", long.encode())
    assert found == ['x "y"'] * 300 + ["a\nb"] * 300
    assert len(texts_of(tmp_path / "a.tsv", long.encode(), delimiter="tab")) == 600


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=6)


@settings(max_examples=60)
@given(st.lists(TEXTS.filter(lambda text: not {"\t", "\n"} & {*text}), max_size=5))
def test_any_text_without_marks_comes_through_tsv(tmp_path_factory, texts: list[str]) -> None:
    file = tmp_path_factory.mktemp("any") / "a.tsv"
    texts = [text.replace('"', "'") for text in texts]
    lines = "\n".join(["text\tid", *(f"{text}\t{i}" for i, text in enumerate(texts)), ""])
    assert texts_of(file, lines.encode()) == texts


# --- delimiters and line ends ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "separator", "name"),
    [("csv", ";", "semicolon"), ("csv", "\t", "tab"), ("csv", "|", "bar"), ("tsv", ",", "comma")],
)
def test_another_delimiter_is_named_and_can_be_given(
    tmp_path: Path, suffix: str, separator: str, name: str
) -> None:
    content = separator.join(["id", "text"]) + "\n" + separator.join(["1", "a b"]) + "\n"
    file = tmp_path / f"a.{suffix}"
    with pytest.raises(ValueError, match=rf"has it between {name}s; pass delimiter=.*--delimiter"):
        read_rows(file, content.encode())
    given = "tab" if separator == "\t" else separator
    assert read_rows(file, content.encode(), delimiter=given, id_column="id") == [(2, "a b", "1")]


@pytest.mark.parametrize("delimiter", ["", ";;", '"', "\n", "é", "word"])
def test_delimiters_that_are_none(tmp_path: Path, delimiter: str) -> None:
    with pytest.raises(ValueError, match=r"delimiter is .* expected one ASCII character"):
        read_rows(tmp_path / "a.csv", b"text\n", delimiter=delimiter)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_a_delimiter_without_fields(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"delimiter is given, but .* which has none"):
        read_rows(tmp_path / name, b"", delimiter=";")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"a\rb\r"),
        ("a.csv", b"text\ra\rb\r"),
        ("a.csv", b"id,text\r1,a\r2,b"),
        ("a.tsv", b"text\tid\ra\t1\rb\t2\r"),
        ("a.jsonl", b'{"text": "a"}\r{"text": "b"}\r'),
    ],
)
def test_line_ends_of_old_macs(tmp_path: Path, name: str, content: bytes) -> None:
    assert texts_of(tmp_path / name, content) == ["a", "b"]


# --- other kinds of files ----------------------------------------------------------------------


def tar(content: bytes) -> bytes:
    """An archive of one file, all of it text and zeros."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo("a.txt")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


KINDS = {
    "a tar archive": tar(b"a text\nand another\n"),
    "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "gzip": gzip.compress(b"a\n"),
    "bzip2": bz2.compress(b"a\n"),
    "xz": lzma.compress(b"a\n"),
    "zstandard": b"\x28\xb5\x2f\xfd\x24\x02",
    "Parquet": b"PAR1\x15\x04\xff",
    "a PDF": b"%PDF-1.7\nall of it letters\n",
    "a ZIP archive": b"PK\x03\x04\x14\x00",
    "a PNG image": b"\x89PNG\r\n\x1a\n\0",
    "a JPEG image": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "a GIF image": b"GIF89a\x01\0\xff",
    "an SQLite database": b"SQLite format 3\0",
    "a NumPy array": b"\x93NUMPY\x01\0",
    "an old Office file": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    "rich text": b"{\\rtf1\\ansi text}",
    "a program": b"\x7fELF\x02",
    "Arrow": b"ARROW1\0\0",
    "no text": b"\xde\xad\0\xbe\xef\n" * 9,
}


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv", ""])
@pytest.mark.parametrize("kind", KINDS)
def test_files_of_another_kind_are_told(tmp_path: Path, kind: str, suffix: str) -> None:
    with pytest.raises(ValueError, match=rf"file{suffix} is {kind}.*; |is no text: it holds"):
        read_rows(tmp_path / f"file{suffix}", KINDS[kind])


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
@pytest.mark.parametrize(
    "text", ["text\n", "hello world\nand more\n", "日本語 の 文\nもう一つ\n", "é\n" * 9]
)
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_utf_16_is_told_by_its_zeros(tmp_path: Path, codec: str, text: str, suffix: str) -> None:
    with pytest.raises(ValueError, match=r"the file is UTF-(16|32); convert it, .* iconv -f UTF"):
        read_rows(tmp_path / f"a{suffix}", text.encode(codec))


@pytest.mark.parametrize(
    "content",
    [b"\0\n\0\n", b"\0", b"a\0b\n", b"GIF89a is a kind of file\n", b"PAR1 and more", b"ORC\n"],
)
def test_texts_that_only_look_like_other_kinds(tmp_path: Path, content: bytes) -> None:
    expected = [line.decode() for line in content.removesuffix(b"\n").split(b"\n")]
    assert texts_of(tmp_path / "a.txt", content) == expected


def test_a_kind_is_told_under_skip_too(model: Path, tmp_path: Path, npy: Path) -> None:
    (tmp_path / "a.txt").write_bytes(gzip.compress(b"a\n" * 99))
    with pytest.raises(ValueError, match=r"a\.txt is gzip by its first bytes; name it by"):
        embed(model, tmp_path / "a.txt", npy, on_error="skip")
    assert not list(npy.parent.iterdir())


# --- compressed files --------------------------------------------------------------------------


def zstd(content: bytes) -> bytes:
    module = pytest.importorskip("zstandard", reason="zstandard is not installed")
    packed: bytes = module.ZstdCompressor().compress(content)
    return packed


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "plain"])
def test_compressed_files(tmp_path: Path, suffix: str, name: str) -> None:
    pack = PACKERS[suffix]
    texts = [f"row {i}" for i in range(40_000)]
    head = "text\n" if name == "a.csv" else ""
    lines = [json.dumps({"text": t}) for t in texts] if name == "a.jsonl" else texts
    content = (head + "".join(f"{line}\n" for line in lines)).encode()
    file = tmp_path / f"{name}{suffix}"
    half = len(content) // 2  # as `cat a.gz b.gz` leaves it
    file.write_bytes(pack(content[:half]) + pack(content[half:]))
    source = Source([file])
    assert [row[2] for row in source.rows()] == texts
    assert source.position == source.total_bytes == file.stat().st_size


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "flipped"])
def test_damaged_compressed_files(tmp_path: Path, suffix: str, damage: str) -> None:
    packed = PACKERS[suffix](bytes(range(256)) * 50 + np.random.default_rng(0).bytes(9000))
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    content = {"cut": packed[:-9], "empty": b"", "garbage": b"no such data", "flipped": flipped}
    file = tmp_path / f"a.txt{suffix}"
    if suffix == ".zst" and damage == "flipped":
        pytest.skip("zstandard checks no sum unless it was written")
    message = "cannot be unpacked|in the middle of its compressed data|is no text"
    with pytest.raises(ValueError, match=message):
        read_rows(file, bytes(content[damage]))


def test_zst_without_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ImportError, match=r"pip install 'e5core\[bulk\]'"):
        read_rows(tmp_path / "a.txt.zst", b"\x28\xb5\x2f\xfd")


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_job_over_a_compressed_file_goes_on(
    model: Path, tmp_path: Path, npy: Path, suffix: str
) -> None:
    lines = "".join(f"the query {i}\n" for i in range(60)).encode()
    (tmp_path / "plain.txt").write_bytes(lines)
    embed(model, tmp_path / "plain.txt", tmp_path / "expected.npy")
    file = tmp_path / f"a.txt{suffix}"
    file.write_bytes(PACKERS[suffix](lines))
    interrupt(model, file, npy)
    assert embed(model, file, npy).rows == 60
    np.testing.assert_array_equal(np.load(npy), np.load(tmp_path / "expected.npy"))
    interrupt(model, file, npy.with_name("b.npy"))
    file.write_bytes(PACKERS[suffix](lines.replace(b"query 3\n", b"query 4\n")))
    with pytest.raises(ValueError, match=r"changed: .*a\.txt"):
        embed(model, file, npy.with_name("b.npy"))


# --- JSON --------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 2])
def test_arrays_of_objects(tmp_path: Path, indent: int | None) -> None:
    rows = [{"text": f'é{i} [}}" ', "id": i, "more": [{"a": [1.5e3, None]}]} for i in range(3000)]
    content = json.dumps(rows, indent=indent, ensure_ascii=False).encode()
    found = read_rows(tmp_path / "a.json", b"\xef\xbb\xbf \n" + content, id_column="id")
    assert [row[1:] for row in found] == [(row["text"], row["id"]) for row in rows]
    assert found[0][0] == (3 if indent else 2)
    assert read_rows(tmp_path / "a.jsonl", content)[7][1] == rows[7]["text"]
    assert read_rows(tmp_path / "a.json", b" [ ] ") == []


def test_bad_elements_of_an_array(tmp_path: Path) -> None:
    content = b'[\n{"text": "a"},\n7,\n{"body": 1},\n{"text": "\xff"},\n{"text": "b"}]\n'
    found = read_rows(tmp_path / "a.json", content)
    assert [row[0] for row in found] == [2, 3, 4, 5, 6]
    assert found[1][1] == "the element is a JSON int, expected an object"
    assert found[2][1] == "there is no field 'text'; the element has 'body'"
    assert "0xFF is not UTF-8" in str(found[3][1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[", r"a\.json, line 1: the element"),
        (b'[{"text": "a"}', "line 1: found the end of the file, expected ',' or ']'"),
        (b'[{"text": "a"},\n]', "line 2: the element of the array"),
        (b'[{"text": "a"}\n{"text": "b"}]', "line 2: found '{', expected ',' or ']'"),
        (b'[{"text": "a"}]\nmore', "line 2: there is more behind the array"),
        (b'[{"text": "a\n', "line 1: the element of the array that begins there is not JSON"),
        (b"[" * 100_000, "line 1: the element"),
    ],
)
def test_arrays_that_are_no_json(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / "a.json", content)


def test_nested_fields(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"data": {"text": "a", "meta": {"id": 1}}},
        {"data.text": "b", "data": {"text": "not this", "meta": {"id": 2}}},
        {"data": {"meta": {"id": 3}}},
        {"data": "text"},
    ]
    content = "\n".join(map(json.dumps, rows)).encode()
    options = {"column": "data.text", "id_column": "data.meta.id"}
    found = read_rows(tmp_path / "a.jsonl", content, **options)
    assert found[:2] == [(1, "a", 1), (2, "b", 2)]
    assert found[2][1] == "there is no field 'data.text'; the line has 'data'"
    assert found[3][1] == "there is no field 'data.text'; the line has 'data'"


def test_nested_columns_of_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    rows = [{"text": "a", "meta": {"id": 1}}, None, {"text": "b", "meta": {"id": 2}}]
    parquet.write_table(pa.table({"data": rows, "n": [1, 2, 3]}), tmp_path / "a.parquet")
    source = Source([tmp_path / "a.parquet"], column="data.text", id_column="data.meta.id")
    found = list(source.rows())
    assert found[0] == Row(str(tmp_path / "a.parquet"), 1, "a", 1)
    assert found[1][2] == "data.text is null, expected text"
    assert found[2][2:4] == ("b", 2)
    with pytest.raises(ValueError, match=r"no column 'data\.body'; it has 'data', 'data\.text', "):
        list(Source([tmp_path / "a.parquet"], column="data.body").rows())


IDS = [
    (lambda pa: pa.array([datetime.date(2024, 2, 29)]), "2024-02-29"),
    (lambda pa: pa.array([datetime.datetime(2024, 2, 29, 1, 2, 3)]), "2024-02-29T01:02:03.000000"),
    (lambda pa: pa.array([1], pa.timestamp("ns")), "1970-01-01T00:00:00.000000001"),
    (lambda pa: pa.array([decimal.Decimal("12.50")]), "12.50"),
    (lambda pa: pa.array([7.0]), 7),
    (lambda pa: pa.array([uuid.UUID(int=7).bytes], pa.binary(16)), str(uuid.UUID(int=7))),
    (lambda pa: pa.array([2**63], pa.uint64()), 2**63),
    (lambda pa: pa.array(["x"]).dictionary_encode(), "x"),
    (lambda pa: pa.array([7.5]), None),
    (lambda pa: pa.array([float("nan")]), None),
    (lambda pa: pa.array([1e300]), None),
    (lambda pa: pa.array([True]), None),
    (lambda pa: pa.array([[1]]), None),
]


@pytest.mark.parametrize(("make", "expected"), IDS)
def test_ids_of_parquet(tmp_path: Path, make: Callable[[Any], Any], expected: object) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": ["a"], "id": make(pa)}), file)
    (row,) = Source([file], id_column="id").rows()
    if expected is None:
        assert isinstance(row, BadRow)
        assert "expected text or a whole number" in row.reason
    else:
        assert (row[3], type(row[3])) == (expected, type(expected))


@pytest.mark.parametrize(("name", "expected"), [("7.0", 7), ("1e3", 1000), ("-0.0", 0)])
def test_ids_that_are_whole_floats(tmp_path: Path, name: str, expected: int) -> None:
    line = f'{{"text": "a", "id": {name}}}'.encode()
    assert read_rows(tmp_path / "a.jsonl", line, id_column="id") == [(1, "a", expected)]


# --- names ---------------------------------------------------------------------------------------


def test_patterns_that_no_shell_expanded(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt", "d.csv", "[x].txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a\n")
    assert Source([tmp_path / "*.txt"]).files == [
        str(tmp_path / name) for name in ("[x].txt", "a.txt", "b.txt")
    ]
    assert str(tmp_path / "sub/c.txt") in Source([tmp_path / "**/*.txt"]).files
    assert Source([tmp_path / "[x].txt"]).files == [str(tmp_path / "[x].txt")]
    with pytest.raises(FileNotFoundError, match=r"no file matches .*\*\.xml"):
        Source([tmp_path / "*.xml"])


def test_standard_input_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(b"a\n"))))
    with pytest.raises(ValueError, match="- is gzip by its first bytes"):
        list(Source(["-"]).rows())


def test_a_compressed_tar_archive_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a tar archive by its first bytes; unpack it first"):
        read_rows(tmp_path / "a.tar.gz", gzip.compress(tar(b"a text\n")))


def test_compressed_files_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n'))
    (tmp_path / "in" / "b.csv.xz").write_bytes(lzma.compress(b"text\nb\n"))
    assert [row[2] for row in Source([tmp_path / "in"], column="text").rows()] == ["a", "b"]
    (tmp_path / "in" / "c.pdf.gz").touch()
    with pytest.raises(ValueError, match=r"c\.pdf\.gz is none of \.txt, "):
        Source([tmp_path / "in"])


# --- blank rows, and rows that are all bad -------------------------------------------------------


def test_blank_rows(model: Path, tmp_path: Path, npy: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("a\n\n \u200b\nb\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 2: the text is blank; .*--keep-blank.*--on-error"):
        embed(model, file, npy)
    summary = embed(model, file, npy, on_error="skip")
    assert (summary.rows, summary.rejected) == (2, 2)
    lines = [row["line"] for row in read_jsonl(npy.with_name("vectors.npy.rejects.jsonl"))]
    assert lines == [2, 3]
    with pytest.raises(FileExistsError, match="keep_blank was False, is True"):
        embed(model, file, npy, keep_blank=True)
    assert embed(model, file, npy, keep_blank=True, force=True).rows == 4


def test_a_column_that_no_row_has(model: Path, texts: Path, output: Path) -> None:
    with pytest.raises(
        ValueError, match=r"all 60 rows were rejected, .* no field 'body'; the line"
    ):
        embed(model, texts, output, column="body", on_error="skip")
    with pytest.raises(ValueError, match=r"all 60 rows were rejected, .* no field 'name'"):
        embed(model, texts, output, id_column="name", on_error="skip")
    assert not list(output.parent.iterdir())  # so that the right column can be named at once
    assert embed(model, texts, output).rows == 60
