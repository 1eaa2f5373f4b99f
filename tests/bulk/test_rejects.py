"""Rows that hold no text: they stop the work with their place, or are set aside with a reason."""

import re
from pathlib import Path

import numpy as np
import pytest
from support.bulk import embed, read_jsonl, write_bad_rows

from e5core import E5


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_row_stops_with_its_place(
    model: Path, tmp_path: Path, npy: Path, workers: int
) -> None:
    file = write_bad_rows(tmp_path)
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2: there is no field 'text'"):
        embed(model, file, npy, workers=workers)
    file.write_text(file.read_text().replace("{}\n", ""))
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 3: the text has \d+ tokens, the model"):
        embed(model, file, npy, truncate="none", workers=workers)
    assert not npy.exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_rows_are_set_aside_with_their_reasons(
    model: Path, tmp_path: Path, npy: Path, workers: int
) -> None:
    file = write_bad_rows(tmp_path)
    options = {"on_error": "skip", "truncate": "none", "chunk_rows": 2, "workers": workers}
    summary = embed(model, file, npy, **options)
    assert (summary.rows, summary.rejected) == (3, 2)
    expected = E5.from_pretrained(model).encode_query(["a", "b", "c"])
    np.testing.assert_array_equal(np.load(npy), expected)
    assert [row["line"] for row in read_jsonl(npy.with_name("vectors.npy.ids.jsonl"))] == [1, 3, 5]
    rejects = read_jsonl(npy.with_name("vectors.npy.rejects.jsonl"))
    assert [(row["file"], row["line"]) for row in rejects] == [(str(file), 2), (str(file), 4)]
    assert rejects[0]["reason"] == "there is no field 'text'; the line has none"
    assert re.match(r"the text has \d+ tokens, the model takes 64", rejects[1]["reason"])
    # The next output of that name has none.
    file.write_text('{"text": "a"}')
    embed(model, file, npy, on_error="skip", force=True)
    assert not npy.with_name("vectors.npy.rejects.jsonl").exists()
