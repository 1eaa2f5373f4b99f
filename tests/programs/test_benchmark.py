"""scripts/benchmark on tiny models, with e5core and transformers."""

import json
import math
import statistics

import benchmark
import numpy as np
import pytest
import workloads
from contestants import Contestant, disagreement, ratio
from report import bars
from support.models import ROOT, TINY
from workloads import flop, workload

from e5core import SentencePieceTokenizer


@pytest.fixture(scope="module")
def tokenizer(real_folder):
    return SentencePieceTokenizer(real_folder / "sentencepiece.bpe.model")


def test_workloads_have_the_lengths_they_say(tokenizer):
    lengths = {
        name: [tokenizer.count(text) for text in workload(name, tokenizer, 24)]
        for name in ("short", "mixed", "long", "one")
    }
    assert statistics.median(lengths["short"]) == pytest.approx(14, abs=1)
    assert (lengths["mixed"][0], lengths["mixed"][-1]) == (20, 512)
    steps = np.diff(np.log(lengths["mixed"]))
    assert steps.std() < 0.05  # evenly spread in the logarithm
    assert set(lengths["long"]) == {512}
    assert workload("mixed", tokenizer, 24) == workload("mixed", tokenizer, 24)
    assert all(text.startswith("query: ") for text in workload("one", tokenizer, 5))


def test_flop_are_those_of_the_products():
    """Counted product by product for a text of 5 tokens."""
    config = TINY["bert"]
    h, f, n = config.hidden_size, config.intermediate_size, 5
    products = 3 * [(n, h, h)] + [(n, h, h), (n, h, f), (n, f, h)]  # q k v, output, up, down
    attention = 2 * [(n, h, n)]  # of all heads together: scores, and weights times values
    once = sum(2 * a * b * c for a, b, c in products + attention)
    assert flop(config, [n]) == config.num_hidden_layers * once
    assert flop(config, [n, n]) == 2 * flop(config, [n])


def contestant(engine, precision="float32", **seconds):
    return Contestant(engine, precision, None, None, seconds=seconds)


def test_a_ratio_is_the_median_of_the_rounds():
    ours = contestant("e5core", mixed=[1.0, 1.0, 2.0])
    other = contestant("onnxruntime", mixed=[2.0, 3.0, 4.0])
    assert ratio(ours, other, "mixed") == 2.0


def test_bars_name_the_best_peer_and_what_was_missed():
    contestants = [
        contestant("e5core", mixed=[1.0], short=[1.0], one=[1.0]),
        contestant("onnxruntime", mixed=[3.0], short=[3.0], one=[0.5]),
        contestant("openvino", mixed=[1.5], short=[1.0], one=[2.0]),
        contestant("sentence-transformers", mixed=[1.9], short=[9.0], one=[9.0]),
    ]
    assert bars(contestants, {}, "small") == [
        "held    e5core float32 : openvino float32 on mixed: 1.50, wanted 1.40",
        "missed  e5core float32 : openvino float32 on short: 1.00, wanted 1.10",
        "missed  e5core float32 : onnxruntime float32 on one: 0.50, wanted 1.00",
        "missed  e5core float32 : sentence-transformers float32 on mixed: 1.90, wanted 2.00",
    ]
    ours = contestant("e5core", mixed=[1.0])
    assert bars([ours], {"e5core float32": 0.9}, "large") == [
        "held    e5core float32, share of the ceiling on mixed: 0.90, wanted 0.85"
    ]


def test_a_run_of_two_libraries(make_tiny, tmp_path, capsys, monkeypatch, oracle):
    """Real processes, two rounds; every figure of the table comes from the run."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "scripts" / "benchmark"))
    monkeypatch.setattr(workloads, "LIMIT", 64)
    monkeypatch.setattr(workloads, "LONGEST", 60)
    monkeypatch.setattr("exports.EXPORTS", tmp_path / "exports")
    folder = make_tiny("xlm-roberta")
    file = tmp_path / "figures.json"
    code = benchmark.main(
        [
            *("--model", str(folder), "--engines", "e5core", "transformers"),
            *("--precisions", "float32", "--batch-size", "3", "--json", str(file)),
            *("--workloads", "short", "one", "--texts", "4", "--rounds", "2", "--threads", "1"),
        ]
    )
    out, _ = capsys.readouterr()
    assert code == 0
    assert "short: 4 texts" in out
    figures = json.loads(file.read_text())
    assert [(c["engine"], c["batch_size"]) for c in figures["contestants"]] == [
        ("e5core", 0),
        ("transformers", 3),
    ]
    for row in figures["contestants"]:
        assert {name: len(s) for name, s in row["seconds"].items()} == {"short": 2, "one": 2}
        assert all(0 < s < 60 for seconds in row["seconds"].values() for s in seconds)
        assert row["load_seconds"] > 0
        assert row["peak_mb"] > 100 or math.isnan(row["peak_mb"])
    assert set(figures["ceilings_gflops"]) == {"float32"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds is 0, expected 1 or more"),
        (["--batch-size", "0"], "--batch-size is 0, expected 1 or more"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--device", "cuda"], "device 'cuda' cannot be used: torch finds no CUDA here"),
        (["--engines", "transformers", "--precisions", "int8"], "e5core is not among"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert benchmark.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err


def test_wrong_vectors_are_not_compared():
    right, wrong = contestant("e5core"), contestant("onnxruntime")
    right.vectors["mixed"] = np.eye(2, dtype=np.float32)
    wrong.vectors["mixed"] = np.array([[1, 0], [0.6, 0.8]], dtype=np.float32)
    assert disagreement([right]) is None
    found = disagreement([right, wrong])
    assert found == "onnxruntime float32 has a cosine of 0.80000 to e5core float32 on mixed"
