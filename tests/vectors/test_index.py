"""An index against `search`, and the output of `e5core embed` opened as one."""

import importlib
import json
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from e5core import Index, quantize_vectors, search

SEARCH = importlib.import_module("e5core.vectors.search")


def vectors(count: int, size: int = 16, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, size), dtype=np.float32)


def same(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("block", [7, 16_384])
def test_every_search_is_that_of_the_function(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(SEARCH, "BLOCK_PASSAGES", block)
    passages = vectors(100) * np.geomspace(0.01, 100, 100, dtype=np.float32)[:, None]
    index = Index(passages)
    for seed, k in ((1, 1), (2, 10), (3, 200)):  # the lengths are kept from the first on
        queries = vectors(5, seed=seed)
        same(index.search(queries, k), search(queries, passages, k))
        same(index.search(queries[0], k), search(queries[0], passages, k))
    assert len(index) == 100


def test_no_copy_of_the_vectors_and_one_number_for_each() -> None:
    passages, queries = vectors(50_000, 384), vectors(1, 384, seed=1)
    tracemalloc.start()
    index = Index(passages)
    index.search(queries, 10)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert index.vectors is passages
    assert kept < 0.01 * passages.nbytes
    assert peak < 0.05 * passages.nbytes


def test_a_vector_without_a_direction_is_named_at_every_search() -> None:
    passages = vectors(20)
    passages[17] = np.nan
    index = Index(passages)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^vector 17 of passages is zero or not finite$"):
            index.search(vectors(1))


@pytest.mark.parametrize("form", ["int8", "binary"])
def test_a_quantised_index_rescores_by_the_vectors(form: Any) -> None:
    passages, queries = vectors(40_000, 24) + 2, vectors(5, 24, seed=1) + 2
    center = None if form == "int8" else passages.mean(axis=0, dtype=np.float64)
    small = quantize_vectors(passages, form, center=center)
    index = Index(passages, quantize=form)
    for oversample in (1, 4):
        expected = search(
            queries, passages, 7, quantized=small, center=center, oversample=oversample
        )
        same(index.search(queries, 7, oversample=oversample), expected)
    assert index.search(queries[0], 3).indices.shape == (3,)


def test_vectors_that_are_quantised_already() -> None:
    passages, queries = vectors(50, 24) + 2, vectors(5, 24, seed=1) + 2
    center = passages.mean(axis=0)
    numbers = quantize_vectors(passages, "int8")
    same(Index(numbers).search(queries), search(queries, numbers))
    bits = quantize_vectors(passages, "binary", center=center)
    same(Index(bits, center=center).search(queries), search(queries, bits, center=center))


def test_threads_share_an_index() -> None:
    passages, queries = vectors(3000, 24), vectors(40, 24, seed=1)
    index, expected = Index(passages), search(queries, passages)
    faults: list[object] = []

    def work() -> None:
        try:
            same(index.search(queries), expected)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": ["a"]}, "there are 3 vectors and 1 ids"),
        ({"texts": ["a"] * 4}, "there are 3 vectors and 4 texts"),
        ({"quantize": "int4"}, "form is 'int4', expected 'int8' or 'binary'"),
        ({"quantize": "int8", "center": np.ones(16)}, "leave quantize out"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Index(vectors(3), **arguments)


# --- documents --------------------------------------------------------------------------------


@given(
    documents=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    k=st.integers(1, 12),
    seed=st.integers(0, 3),
)
def test_a_document_is_found_by_its_best_passage(documents: list[int], k: int, seed: int) -> None:
    passages, queries = vectors(len(documents), 4, seed), vectors(3, 4, seed=9)
    found = Index(passages, ids=documents).search(queries, k, by_document=True)
    everything = search(queries, passages, len(documents))
    assert found.indices.shape == (3, min(k, len(set(documents))))
    for query in range(3):
        best: dict[int, int] = {}
        for place in everything.indices[query].tolist():
            best.setdefault(documents[place], place)
        assert found.indices[query].tolist() == list(best.values())[:k]


def test_documents_need_ids() -> None:
    with pytest.raises(ValueError, match="by_document needs ids"):
        Index(vectors(3)).search(vectors(1), by_document=True)


# --- files ------------------------------------------------------------------------------------


def write(folder: Path, suffix: str, passages: npt.NDArray[np.float32], rows: list[Any]) -> Path:
    """Vectors as `e5core embed` lays them down."""
    path = folder / f"articles{suffix}"
    if suffix == ".npy":
        np.save(path, passages)
    elif suffix == ".safetensors":
        save_file({"vectors": passages}, path)
    else:
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        path.mkdir()
        size = passages.shape[1]
        for number, part in enumerate(np.array_split(np.arange(len(passages)), 3)):
            lists = arrow.FixedSizeListArray.from_arrays(passages[part].ravel(), size)
            names = {name: [rows[i][name] for i in part] for name in rows[0]}
            table = arrow.table({**names, "vector": lists})
            parquet.write_table(table, path / f"part-{number:05}.parquet")
        return path
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.with_name(path.name + ".ids.jsonl").write_text(lines, "utf-8")
    return path


ROWS = [
    {"id": f"é{n // 2}", "file": "a.jsonl", "line": 1 + n // 2, "passage": n % 2} for n in range(40)
]


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet"])
def test_an_output_is_opened(tmp_path: Path, suffix: str) -> None:
    passages, queries = vectors(40), vectors(2, seed=1)
    path = write(tmp_path, suffix, passages, ROWS)
    path.with_name(path.name + ".json").write_text('{"counts": {"rows": 40}}')
    index = Index.open(path)
    same(index.search(queries, 4), search(queries, passages, 4))
    assert index.ids is not None
    assert index.rows is not None
    assert index.made_from == {"counts": {"rows": 40}}
    assert index.ids[39] == index.ids[-1] == "é19"
    assert index.ids[2:5] == ["é1", "é1", "é2"]
    assert dict(index.rows[7]) == ROWS[7]
    assert [dict(row) for row in index.rows] == ROWS
    with pytest.raises(IndexError):
        index.ids[40]
    by_ids = Index(passages, ids=[row["id"] for row in ROWS])
    same(
        index.search(queries, 9, by_document=True),
        by_ids.search(queries, 9, by_document=True),
    )


def test_opening_reads_neither_vectors_nor_ids_into_memory(tmp_path: Path) -> None:
    rows = [{"id": f"article {n}", "file": "a.jsonl", "line": n + 1} for n in range(20_000)]
    path = write(tmp_path, ".npy", vectors(20_000, 384), rows)
    tracemalloc.start()
    index = Index.open(path)
    index.search(vectors(1, 384, seed=1), 5, by_document=True)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 0.05 * index.vectors.nbytes  # lengths, documents, and where each line starts


def test_rows_without_ids_are_known_by_their_place(tmp_path: Path) -> None:
    rows = [{"file": "a.txt", "line": n + 1} for n in range(3)]
    index = Index.open(write(tmp_path, ".npy", vectors(3), rows), texts=["a", "b", "c"])
    assert index.ids is not None
    assert list(index.ids) == ["a.txt, line 1", "a.txt, line 2", "a.txt, line 3"]
    assert index.texts == ["a", "b", "c"]


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_vectors_alone_and_none_at_all(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix, vectors(0), [])
    assert Index.open(path).search(vectors(2, seed=1)).indices.shape == (2, 0)
    assert Index.open(path).search(vectors(2, seed=1), by_document=True).scores.shape == (2, 0)
    path = write(tmp_path, suffix, vectors(3), [])
    path.with_name(path.name + ".ids.jsonl").unlink()
    index = Index.open(path)
    assert (index.ids, index.rows, index.texts, index.made_from) == (None, None, None, None)


def test_files_that_are_no_index(tmp_path: Path) -> None:
    def refused(name: str, message: str, error: type[Exception] = ValueError) -> None:
        with pytest.raises(error, match=message):
            Index.open(tmp_path / name)

    refused("nowhere.npy", "nowhere.npy is not there", FileNotFoundError)
    (tmp_path / "a.txt").write_text("text")
    refused("a.txt", "is none of .npy, .safetensors, .parquet")
    (tmp_path / "a.npy").write_bytes(b"")
    refused("a.npy", "is not a whole .npy file")
    np.save(tmp_path / "b.npy", vectors(30))
    (tmp_path / "b.npy").write_bytes((tmp_path / "b.npy").read_bytes()[:-9])
    refused("b.npy", "is not a whole .npy file")
    np.save(tmp_path / "c.npy", np.ones(3))
    refused("c.npy", r"has the shape \(3,\), expected \[rows, hidden_size\]")
    (tmp_path / "d.safetensors").write_bytes(b"1234")
    refused("d.safetensors", "is not a whole safetensors file")
    save_file({"other": vectors(2)}, tmp_path / "e.safetensors")
    refused("e.safetensors", r"has the tensors \['other'\], expected one named 'vectors'")
    write(tmp_path, ".npy", vectors(3), ROWS[:2])
    refused("articles.npy", "has 2 lines, .* 3 vectors: they are not of one run")
    write(tmp_path, ".npy", vectors(2), [{"name": 1}, {"name": 2}])
    refused("articles.npy", "have no file and line")
    for line in (b"no", b"5", b"[1]", b"\xff"):
        write(tmp_path, ".npy", vectors(2), ROWS[:2])
        (tmp_path / "articles.npy.ids.jsonl").write_bytes(line + b"\n" + line + b"\n")
        refused("articles.npy", "ids.jsonl, line 1: .* is no JSON object; name the output")
    pytest.importorskip("pyarrow")
    (tmp_path / "f.parquet").mkdir()
    refused("f.parquet", "holds no .parquet files")
    (tmp_path / "f.parquet" / "part-0.parquet").write_bytes(b"no")
    refused("f.parquet", "is not the output of e5core embed")


@pytest.mark.parametrize("values", [{"a", "b", "c"}, {"a": 1, "b": 2, "c": 3}, "abc", b"abc"])
@pytest.mark.parametrize("name", ["ids", "texts"])
def test_names_that_stand_in_no_order(name: str, values: Any) -> None:
    with pytest.raises(TypeError, match=f"^{name} is a "):
        Index(vectors(3), **{name: values})


def test_names_are_known_by_their_place() -> None:
    """Also those of a table's column that was sorted or filtered, whose labels are others."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    column = pandas.Series(["c", "a", "b"], index=[2, 0, 1])
    for ids in (column, column.array, column.tolist(), np.array(column), iter(column)):
        index = Index(vectors(3), ids=ids)
        assert index.ids is not None
        assert [str(index.ids[place]) for place in range(3)] == ["c", "a", "b"]


@pytest.mark.parametrize("wrong", ["a query", ["a", "b"], [None, 1.0], np.array([1j, 2])])
def test_what_holds_no_numbers_is_no_vectors(wrong: Any) -> None:
    for call in (lambda: Index(wrong), lambda: Index(vectors(3, 2)).search(wrong)):
        with pytest.raises(TypeError, match="expected numbers; texts become vectors by encode"):
            call()
