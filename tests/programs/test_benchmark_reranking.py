"""`scripts/benchmark rerank` on tiny models, with every library that it compares."""

import json

import numpy as np
import pytest
import reranking
import workloads
from contestants import Contestant
from rerankers import RERANKERS
from support.models import ROOT, write_tiny_reranker

from e5core import Reranker, SentencePieceTokenizer
from e5core.parity.samples import QUERIES


@pytest.fixture(scope="module")
def tokenizer(real_folder):
    return SentencePieceTokenizer(real_folder / "sentencepiece.bpe.model")


def test_pairs_have_the_lengths_they_say_in_no_order(tokenizer):
    pairs = workloads.pairs_of_mixed_length(tokenizer, 24, QUERIES[:3])
    lengths = workloads.count_pair_tokens(tokenizer, pairs)
    assert (min(lengths), max(lengths)) == (20, 512)
    assert sorted(lengths) == workloads.log_uniform(24)
    assert lengths != sorted(lengths)
    assert {query for query, _ in pairs} == set(QUERIES[:3])
    assert pairs == workloads.pairs_of_mixed_length(tokenizer, 24, QUERIES[:3])


def test_pairs_are_counted_as_the_reranker_counts_them(tokenizer, tmp_path):
    model = Reranker.from_pretrained(write_tiny_reranker(tmp_path / "model", "bert"))
    pairs = [("the query", "a b c"), ("", "é ß"), ("x", "")]
    found = workloads.count_pair_tokens(model.tokenizer, pairs)
    assert found == model.compute(pairs).token_counts.tolist()


def test_a_run(tmp_path, capsys, monkeypatch, oracle, exhaustive):
    """Real processes, one round; the float32 logits of all are compared."""
    engines = list(RERANKERS) if exhaustive else ["e5core", "transformers-single"]
    precisions = ["float32", "bfloat16", "int8"] if exhaustive else ["float32"]
    for engine in engines:
        pytest.importorskip(RERANKERS[engine].package)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "scripts" / "benchmark"))
    for name, value in (("LIMIT", 64), ("LONGEST", 60)):
        monkeypatch.setattr(workloads, name, value)
    monkeypatch.setattr("exports.EXPORTS", tmp_path / "exports")
    folder = write_tiny_reranker(tmp_path / "reranker", "xlm-roberta")
    file = tmp_path / "figures.json"
    options = ("--pairs", "5", "--passages", "3", "--rounds", "1", "--threads", "1")
    options += ("--engines", *engines, "--precisions", *precisions)
    code = reranking.main(["--model", str(folder), "--json", str(file), *options])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "pairs: 5 pairs" in out
    assert "query: 3 pairs" in out
    figures = json.loads(file.read_text())["contestants"]
    assert list(figures) == [
        f"{engine} {precision}"
        for engine in engines
        for precision in precisions
        if precision in RERANKERS[engine].precisions
    ]
    for row in figures.values():
        rounds = {name: len(seconds) for name, seconds in row["seconds"].items()}
        assert rounds == {"pairs": 1, "query": 1}


@pytest.mark.parametrize("engine", list(RERANKERS)[1:])
def test_every_library_scores_the_same_pairs(tmp_path, monkeypatch, oracle, dialect, engine):
    """In this process: exports that another change has broken show here."""
    kind = RERANKERS[engine]
    for package in {kind.package, "onnx"} if engine == "onnxruntime" else {kind.package}:
        pytest.importorskip(package)
    monkeypatch.setattr("exports.EXPORTS", tmp_path / "exports")
    monkeypatch.setattr("rerankers.LIMIT", 64)
    folder = write_tiny_reranker(tmp_path / "reranker", dialect)
    pairs = [("the query", "a b c"), ("é", "the " * 90), ("x y", ""), ("a" * 20, "日本")]
    kind.export(folder, "float32")
    found = kind(folder, "float32", 1, "cpu").encode(pairs, 3)
    expected = Reranker.from_pretrained(folder).score_pairs(pairs, truncate="longest")
    assert found.dtype == np.float32
    assert reranking.worst_difference(found, expected) < reranking.AGREES


def contestant(engine, seconds, logits=()):
    found = Contestant(engine, "float32", None, None, seconds={"pairs": seconds})
    found.vectors["pairs"] = np.array(logits, np.float32)
    return found


def test_bars_are_ratios_of_the_rounds():
    contestants = [
        contestant("e5core", [1.0, 1.0]),
        contestant("transformers", [9.0, 7.5]),
        contestant("transformers-single", [2.0, 2.2]),
    ]
    assert reranking.bars(contestants) == [
        "held    e5core float32 : transformers float32 on pairs: 8.25, wanted 8.00",
        "missed  e5core float32 : transformers-single float32 on pairs: 2.10, wanted 2.50",
    ]


def test_wrong_logits_are_not_compared():
    ours = contestant("e5core", [1.0], [1.0, 2.0, 3.0])
    near = contestant("transformers", [1.0], [1.0, 2.0, 3.0001])
    wrong = contestant("onnxruntime", [1.0], [1.0, 3.0, 2.0])
    assert reranking.disagreement([ours, near]) is None
    found = reranking.disagreement([ours, near, wrong])
    assert found == "onnxruntime float32 is 1.2e+00 of the spread from e5core float32 on pairs"
    assert reranking.rank_correlation(near.vectors["pairs"], ours.vectors["pairs"]) == 1
    assert reranking.rank_correlation(wrong.vectors["pairs"], ours.vectors["pairs"]) == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "0"], "--pairs is 0, expected 1 or more"),
        (["--rounds", "0"], "--rounds is 0, expected 1 or more"),
        (["--engines", "transformers"], "e5core is not among the contestants"),
        (["--model", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert reranking.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err
