"""Bulk jobs as the tests run them, and what they read of the result."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from e5core.bulk import embed_files, partial_folder
from e5core.bulk.rows import Row
from e5core.bulk.sources import Source
from e5core.parity.samples import SENTENCES

TEXTS = SENTENCES[:60]
LONG = "the query passage " * 40  # more than the 64 tokens of a tiny model


def embed(model: Path, texts: Path, output: Path, **options: Any) -> Any:
    """Small chunks and shards, so that there are many."""
    settings = {"input_type": "query", "chunk_rows": 7, "shard_rows": 20, "show_progress": False}
    return embed_files(model, texts, output, **{**settings, **options})


def read_vectors(output: Path) -> np.ndarray:
    if output.suffix == ".npy":
        return np.load(output)
    if output.suffix == ".safetensors":
        return load_file(output)["vectors"]
    from pyarrow import parquet

    column = parquet.read_table(output).column("vector").combine_chunks()
    return column.values.to_numpy().reshape(len(column), column.type.list_size)


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write_bad_rows(tmp_path: Path) -> Path:
    file = tmp_path / "bad.jsonl"
    rows = ['{"text": "a"}', "{}", '{"text": "b"}', json.dumps({"text": LONG}), '{"text": "c"}']
    file.write_text("\n".join(rows))
    return file


def interrupt(model: Path, texts: Path, output: Path, after: int = 3, **options: Any) -> None:
    """Leave a partial output of some chunks."""
    with pytest.MonkeyPatch.context() as patch:
        from e5core.bulk import journal

        write, left = journal.Journal.write, [after]

        def stop(self: journal.Journal) -> None:
            write(self)
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        patch.setattr(journal.Journal, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            embed(model, texts, output, **options)
    assert partial_folder(output).is_dir()


def command(model: Path, texts: Path, output: Path, *more: object) -> list[str]:
    arguments = [sys.executable, "-m", "e5core", "embed", texts, "--model", model]
    arguments += ["--input-type", "query", "--output", output, "--chunk-rows", 7, *more]
    return list(map(str, arguments))


def read_rows(file: Path, content: bytes, **options: str) -> list[tuple[object, ...]]:
    """(line, text, id) of good rows, (line, reason) of bad ones."""
    file.write_bytes(content)
    found: list[tuple[object, ...]] = []
    for row in Source([file], **options).rows():
        assert row.file == str(file)
        found.append((row.line, row.text, row.id) if isinstance(row, Row) else (row.line, row[2]))
    return found
