"""Rows from Parquet."""

from pathlib import Path

import pytest
from support.bulk import read_rows

from e5core.bulk.rows import BadRow, Row
from e5core.bulk.sources import Source


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


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 100])
def test_what_is_no_parquet(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    with pytest.raises(ValueError, match=r"a\.parquet is not a whole Parquet file"):
        read_rows(tmp_path / "a.parquet", content)
