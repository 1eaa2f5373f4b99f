"""Ray Data: the callable by itself, and the example program on a local Ray."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.models import ROOT

from e5core import E5
from e5core.parity.samples import LANGUAGES, SENTENCES, TOPICS
from e5core.parity.tolerances import BATCH_INVARIANCE_FLOAT32

pytest.importorskip("pyarrow", reason="pyarrow is not installed")
import pyarrow as pa
from pyarrow import parquet

from e5core.integrations.ray import Embedder


def vectors_of(table) -> np.ndarray:
    column = table["vector"].combine_chunks()
    return column.values.to_numpy().reshape(len(column), -1)


def test_a_column_is_added(tiny_folder: Path) -> None:
    rows = pa.table({"text": ["one", "two", "three"], "id": [3, 1, 2]})
    found = Embedder(tiny_folder, input_type="query", kernels="plain")(rows)
    assert found.column_names == ["text", "id", "vector"]
    assert found.drop_columns("vector").equals(rows)
    assert found["vector"].type == pa.list_(pa.float32(), 24)
    model = E5.from_pretrained(tiny_folder, kernels="plain")
    np.testing.assert_array_equal(vectors_of(found), model.encode_query(["one", "two", "three"]))


def test_options_reach_the_model(tiny_folder: Path) -> None:
    rows = pa.table({"body": ["one " * 99]})
    embedder = Embedder(
        tiny_folder,
        input_type="query",
        text_column="body",
        vector_column="v",
        task="find it",
        truncate="window",
        normalize=False,
        prompts="e5-instruct",
    )
    model = E5.from_pretrained(tiny_folder, prompts="e5-instruct")
    expected = model.encode_query(["one " * 99], task="find it", truncate="window", normalize=False)
    np.testing.assert_array_equal(embedder(rows)["v"].to_pylist(), expected)


def test_no_rows(tiny_folder: Path) -> None:
    rows = pa.table({"text": pa.array([], pa.string())})
    found = Embedder(tiny_folder, input_type="passage")(rows)
    assert found["vector"].type == pa.list_(pa.float32(), 24)
    assert found.num_rows == 0


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"body": ["a"]}, ValueError, r"no column 'text', the columns are \['body'\]"),
        ({"text": ["a"], "vector": [1]}, ValueError, "a column 'vector' already"),
        ({"text": ["a", None]}, TypeError, "text 1 is None of type NoneType"),
        ({"text": [1, 2]}, TypeError, "text 0 is 1 of type int"),
    ],
)
def test_rows_that_cannot_be_embedded(make_tiny, columns, error, message: str) -> None:
    with pytest.raises(error, match=message):
        Embedder(make_tiny(), input_type="passage")(pa.table(columns))


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "ray_embed.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """The project's sentences in three Parquet files."""
    folder = tmp_path / "texts"
    folder.mkdir()
    table = pa.table({"text": SENTENCES, "language": LANGUAGES, "topic": TOPICS})
    for part in range(3):
        parquet.write_table(table.slice(part * 64, 64), folder / f"{part}.parquet")
    return folder


def test_the_program_embeds_parquet_to_parquet(
    texts: Path, tmp_path: Path, real_folder: Path, real_model: E5
) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    output = tmp_path / "vectors"
    done = run(texts, output, "--model", real_folder, "--input-type", "passage")
    assert done.returncode == 0, done.stderr[-2000:]
    table = parquet.read_table(output)
    assert set(table.column_names) == {"text", "language", "topic", "vector"}
    rows = {row["text"]: row for row in table.drop_columns("vector").to_pylist()}
    assert rows == {
        text: {"text": text, "language": language, "topic": topic}
        for text, language, topic in zip(SENTENCES, LANGUAGES, TOPICS, strict=True)
    }
    expected = dict(zip(SENTENCES, real_model.encode_passage(SENTENCES), strict=True))
    wanted = np.stack([expected[text] for text in table["text"].to_pylist()])
    assert np.abs(vectors_of(table) - wanted).max() <= BATCH_INVARIANCE_FLOAT32


def test_a_failing_worker_is_one_line(tmp_path: Path, make_tiny) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    parquet.write_table(pa.table({"text": ["a", None]}), tmp_path / "one.parquet")
    done = run(
        *(tmp_path / "one.parquet", tmp_path / "out"),
        *("--model", make_tiny(), "--input-type", "query"),
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ray_embed.py: a worker failed: text 1 is None of type NoneType, expected str"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": "none.parquet"}, "none.parquet does not exist; give a Parquet file or a folder"),
        ({"output": "texts"}, "texts is not empty, and its files would mix with the new ones"),
        ({"model": "nowhere/at/all"}, "'nowhere/at/all' is neither a folder nor a hub id"),
    ],
)
def test_what_is_refused_before_ray_starts(
    texts: Path, make_tiny, change: dict[str, str], message: str
) -> None:
    options = {"input": str(texts), "output": str(texts.parent / "out"), "model": str(make_tiny())}
    for name, value in change.items():
        options[name] = value if name == "model" else str(texts.parent / value)
    done = run(
        *(options["input"], options["output"], "--model", options["model"]),
        *("--input-type", "none"),
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
