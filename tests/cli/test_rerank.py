"""e5core rerank, and search with --reranker: ranked lines, what was cut, and what is refused."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from support.cli import LONG, PLACES, SEEN, fails
from support.models import write_tiny_reranker

from e5core import E5, Reranker, search
from e5core.cli import main

QUERIES = ["日本", "zz the"]


@pytest.fixture
def reranker(tmp_path: Path, dialect: str) -> Path:
    return write_tiny_reranker(tmp_path / "reranker", dialect)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[list[str], str]:
    """The lines that a command prints, and what it says on standard error."""
    assert main([str(argument) for argument in arguments]) == 0
    printed = capsys.readouterr()
    return printed.out.splitlines(), printed.err


def lines_of(query: str, indices: Sequence[int], scores: Sequence[float]) -> list[str]:
    hits = enumerate(zip(indices, scores, strict=True), 1)
    return [query, *(f"{n:5}. {s:.4f}  line {PLACES[i]}: {SEEN[i]}" for n, (i, s) in hits)]


@pytest.mark.parametrize("normalize", [False, True])
def test_rerank_prints_ranked_lines(
    reranker: Path, texts: Path, capsys: pytest.CaptureFixture[str], normalize: bool
) -> None:
    flags = ["--normalize"] if normalize else []
    rest = ("--model", reranker, "--passages", texts, "--top-k", 3, *flags)
    out, err = run(capsys, "rerank", *QUERIES, *rest)
    library, expected = Reranker.from_pretrained(reranker), []
    for query in QUERIES:
        best = library.rank(query, SEEN, top_k=3, normalize=normalize)
        expected += lines_of(query, best.indices, best.scores)
    assert (out, err) == (expected, "e5core rerank: 2 of 10 pairs were cut to 64 tokens\n")
    assert len(out) == 2 * (1 + 3)


@pytest.mark.parametrize("truncate", ["passage", "longest"])
def test_cut_pairs_are_counted(
    reranker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], truncate: str
) -> None:
    file = tmp_path / "long.txt"
    file.write_text(f"a\n{LONG}\nb\n")
    rest = ("--model", reranker, "--passages", file, "--truncate", truncate, "--top-k", 1)
    out, err = run(capsys, "rerank", "the", "query", *rest)
    assert err == "e5core rerank: 2 of 6 pairs were cut to 64 tokens\n"
    assert len(out) == 2 * (1 + 1)


def test_a_folder_of_passages_names_files(
    reranker: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "passages"
    folder.mkdir()
    (folder / "a.txt").write_text("one\ntwo\n")
    (folder / "b.txt").write_text(f"three\n{LONG}\n")
    for command in (["rerank", "q", "--model", reranker], ["search", "q", "--model", model]):
        out, _ = run(capsys, *command, "--passages", folder)
        places = [f"a.txt, line {n}: " for n in (1, 2)] + [f"b.txt, line {n}: " for n in (1, 2)]
        assert all(sum(f"  {folder / place}" in line for line in out) == 1 for place in places)
    rest = ("--model", reranker, "--passages", folder, "--truncate", "none")
    error = fails(capsys, "rerank", "q", *rest)
    assert f"query 1 with {folder / 'b.txt'}, line 2 has " in error


def test_search_reranks_its_hits(
    reranker: Path, model: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best of five by cosine, in the order of the cross-encoder."""
    rest = ("--model", model, "--passages", texts, "--reranker", reranker)
    out, _ = run(capsys, "search", *QUERIES, *rest, "--rerank-top", 5, "--top-k", 3)
    embedder, library = E5.from_pretrained(model), Reranker.from_pretrained(reranker)
    vectors = embedder.encode_passage(SEEN)
    found = search(embedder.encode_query(QUERIES), vectors, top_k=5)
    expected = []
    for query, hits in zip(QUERIES, found.indices, strict=True):
        best = library.rank(query, [SEEN[i] for i in hits], top_k=3)
        expected += lines_of(query, hits[best.indices], best.scores)
    assert out == expected
    # Of all passages, which are fewer than the default hundred, the order is the reranker's alone.
    out, _ = run(capsys, "search", *QUERIES, *rest, "--top-k", len(SEEN))
    alone, _ = run(
        capsys, "rerank", *QUERIES, "--model", reranker, "--passages", texts, "--top-k", len(SEEN)
    )
    assert sorted(out) == sorted(alone)  # ties apart


def test_search_counts_cut_pairs(
    reranker: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "long.txt"
    file.write_text(f"{LONG}\nb\n")
    rest = ("--model", model, "--passages", file, "--reranker", reranker)
    _, err = run(capsys, "search", "the", *rest)
    assert err == "e5core search: 1 of 2 pairs were cut to 64 tokens\n"
    assert "line 1 has " in fails(capsys, "search", "the", *rest, "--truncate", "none")


def test_the_query_is_named_with_the_line(
    reranker: Path, model: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (
        ("rerank", "--model", reranker),
        ("search", "--model", model, "--reranker", reranker),
    ):
        error = fails(capsys, command[0], "good", LONG, *command[1:], "--passages", texts)
        assert f"e5core {command[0]}: query 2 with {texts}, line " in error
        assert 'pass truncate="longest" (--truncate longest)' in error
        assert "leaves 48 to the query" in error


def test_a_query_that_is_not_text(
    reranker: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ("--model", reranker, "--passages", texts)
    error = fails(capsys, "rerank", "good", "bad \udcff", *rest)
    assert f"e5core rerank: query 2 with {texts}, line 1: the text holds the lone surr" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-k", "0"], "--top-k is 0, expected 1 or more"),
        (["--rerank-top", "3"], "--rerank-top says nothing without --reranker; leave it out"),
        (["--truncate", "none"], "--truncate says nothing without --reranker; leave it out"),
        (["--reranker", "./no"], "'./no' is neither a folder nor a hub id"),
        (
            ["--reranker", "./no", "--top-k", "120"],
            "--rerank-top is 100, expected --top-k, which is 120, or more",
        ),
        (["--reranker", "./no", "--rerank-top", "0"], "--rerank-top is 0, expected --top-k"),
    ],
)
def test_options_of_search_that_cannot_be(
    model: Path,
    texts: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    rest = ("--model", model, "--passages", texts)
    assert message in fails(capsys, "search", "q", *rest, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-k", "-1"], "--top-k is -1, expected 1 or more"),
        (["--truncate", "end"], "--truncate: invalid choice: 'end'"),
        (["--max-length", "5"], "max_length is 5, this model takes 6 to 64"),
        (["--max-length", "65"], "max_length is 65, this model takes 6 to 64"),
        (["--max-tokens-per-batch", "0"], "max_tokens_per_batch is 0, expected 1 or more"),
        (["--prompts", "e5"], "unrecognized arguments: --prompts e5"),
        (["--dtype", "int4"], "--dtype: invalid choice: 'int4'"),
    ],
)
def test_options_of_rerank_that_cannot_be(
    reranker: Path,
    texts: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    rest = ("--model", reranker, "--passages", texts)
    assert message in fails(capsys, "rerank", "q", *rest, *options)


def test_models_of_the_other_kind_say_which_command_takes_them(
    reranker: Path, model: Path, texts: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end = ("--passages", texts)
    error = fails(capsys, "rerank", "q", "--model", model, *end)
    assert "has no classification head, a reranker has one" in error
    assert "E5.from_pretrained (e5core embed, e5core search)" in error
    error = fails(capsys, "search", "q", "--model", model, "--reranker", model, *end)
    assert "has no classification head" in error
    to_file = ("--output", output, "--input-type", "query")
    for command in (
        ("search", "q", "--model", reranker, *end),
        ("embed", texts, "--model", reranker, *to_file),
    ):
        error = fails(capsys, *command)
        assert "is a cross-encoder" in error
        assert "Reranker.from_pretrained (e5core rerank)" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--passages", "f", "q"], "arguments are required: --model; see e5core rerank"),
        (["--model", "m", "q"], "arguments are required: --passages; see e5core rerank"),
        (["--model", "m", "--passages", "f"], "arguments are required: QUERY; see e5core rerank"),
        (["--model", "m", "--passages", os.devnull, "q"], f"{os.devnull} has no lines to search"),
    ],
)
def test_what_is_missing(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in fails(capsys, "rerank", *arguments)


def test_scores_that_are_no_numbers(
    reranker: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.numpy import load_file, save_file

    file = reranker / "model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if name.endswith(".output.LayerNorm.weight"):
            tensors[name] = np.full_like(tensors[name], 3e38)
    save_file(tensors, file)
    error = fails(capsys, "rerank", "q", "--model", reranker, "--passages", texts)
    assert f"of them query 1 with {texts}, line 1, are not finite in torch.float32" in error
    assert "load them with" in error
