"""What comes out: the vectors of the library, ids beside them, whatever the form of the file."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bulk import LONG, TEXTS, embed, read_jsonl, read_vectors

from e5core import E5
from e5core.bulk import embed_files, partial_folder


def test_vectors_are_those_of_the_library(model: Path, texts: Path, output: Path) -> None:
    summary = embed(model, texts, output, id_column="id")
    expected = E5.from_pretrained(model).embed(TEXTS, input_type="query")
    vectors = read_vectors(output)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, expected.vectors)
    assert (summary.output, summary.rows, summary.hidden_size) == (output, 60, 24)
    assert summary.tokens == expected.token_counts.sum()
    assert summary.cut == expected.truncated.sum() > 0
    assert summary.rejected == 0
    assert not partial_folder(output).exists()


def test_ids_stand_beside_the_vectors(model: Path, texts: Path, output: Path) -> None:
    other = texts.with_name("zebra.txt")
    other.write_text("a\nb\n")
    for options in ({}, {"id_column": "id"}):
        inputs = [texts] if options else [texts, other]
        embed_files(model, inputs, output, input_type="query", shard_rows=20, force=True, **options)
        expected = [{"file": str(texts), "line": i + 1} for i in range(60)]
        if options:
            expected = [{"id": f"t{i}", **line} for i, line in enumerate(expected)]
        else:
            expected += [{"file": str(other), "line": i + 1} for i in range(2)]
        if output.suffix == ".parquet":
            from pyarrow import parquet

            table = parquet.read_table(output)
            assert table.column_names[-1] == "vector"
            assert table.drop_columns("vector").to_pylist() == expected
            for file in sorted(output.iterdir()):
                file.unlink()
            output.rmdir()
        else:
            assert read_jsonl(output.with_name(output.name + ".ids.jsonl")) == expected


def test_no_rows(model: Path, tmp_path: Path, output: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    assert embed(model, tmp_path / "empty.jsonl", output).rows == 0
    assert read_vectors(output).shape == (0, 24)


def test_shards_hold_whole_chunks(model: Path, texts: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    embed(model, texts, tmp_path / "vectors.parquet")
    files = sorted((tmp_path / "vectors.parquet").iterdir())
    assert [file.name for file in files] == [f"part-0000{i}.parquet" for i in range(3)]
    assert [parquet.read_metadata(file).num_rows for file in files] == [21, 21, 18]


@pytest.mark.parametrize("truncate", ["end", "window"])
@pytest.mark.parametrize("normalize", [True, False])
def test_options_of_embed(
    model: Path, tmp_path: Path, npy: Path, truncate: Any, normalize: bool
) -> None:
    (tmp_path / "a.txt").write_text(f"{LONG}\na\n")
    options = {"truncate": truncate, "normalize": normalize, "input_type": None}
    summary = embed(model, tmp_path / "a.txt", npy, **options)
    expected = E5.from_pretrained(model).embed([LONG, "a"], **options)
    np.testing.assert_array_equal(np.load(npy), expected.vectors)
    assert summary.cut == (truncate == "end")


def test_a_file_that_is_not_ours_does_not_spoil_the_end(
    model: Path, texts: Path, output: Path
) -> None:
    partial_folder(output).mkdir()
    (partial_folder(output) / ".DS_Store").touch()
    assert embed(model, texts, output).rows == 60
    assert read_vectors(output).shape == (60, 24)
    assert [file.name for file in partial_folder(output).iterdir()] == [".DS_Store"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not tell")
def test_no_file_is_open_when_it_is_moved_or_removed(
    model: Path, texts: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from e5core.bulk import job

    publish, opened = job.publish, []

    def spy(*arguments: Any) -> None:
        with os.scandir("/proc/self/fd") as entries:
            links = [os.path.realpath(entry.path) for entry in entries]
        opened.append([link for link in links if Path(link).parent == partial_folder(output)])
        publish(*arguments)

    monkeypatch.setattr(job, "publish", spy)
    embed(model, texts, output)
    assert opened == [[]]
