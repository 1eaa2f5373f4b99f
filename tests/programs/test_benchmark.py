"""scripts/benchmark on tiny models, with e5core and transformers."""

import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys

import benchmark
import ceiling
import gpu
import numpy as np
import pytest
import workloads
from contestants import Contestant, disagreement, ratio, start
from engines import ENGINES, OURS
from gguf_export import export_gguf
from instructions import SWITCHES, held_to
from report import bars
from safetensors.numpy import load_file
from support.models import INSTRUCTION_SETS, ROOT, TINY
from workloads import flop, workload

from e5core import E5, SentencePieceTokenizer
from e5core.kernels.native import BY_INSTRUCTIONS, build

needs_avx2 = pytest.mark.skipif(
    "native/avx2" not in INSTRUCTION_SETS, reason="there is no AVX2, or nothing was compiled"
)


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


def test_each_workload_takes_its_fastest_batch_size():
    """Here short texts are fastest in batches of 32, and mixed ones in batches of 8."""
    asked = []

    one = Contestant("ctranslate2", "int8", None, None, sizes=(8, 32))
    one.ask = lambda verb, batch, size: (asked.append(size), (abs(size - batch[0]), size))[1]
    assert [one.encode("short", [32])[1] for _ in range(2)] == [32, 32]
    assert one.encode("mixed", [8])[1] == 8
    assert asked == [8, 32, 8, 32, 32, 32, 8, 32, 8, 32, 8]
    assert one.batch == "short 32, mixed 8"
    packed = Contestant("e5core", "int8", None, None)
    packed.ask = lambda verb, batch, size: (1.0, size)
    assert packed.encode("short", [1])[1] == 0
    assert packed.batch == "packed"


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
    assert [(c["engine"], c["batch_sizes"]) for c in figures["contestants"]] == [
        ("e5core", {"short": 0}),
        ("transformers", {"short": 3}),
    ]
    for row in figures["contestants"]:
        assert {name: len(s) for name, s in row["seconds"].items()} == {"short": 2, "one": 2}
        assert all(0 < s < 60 for seconds in row["seconds"].values() for s in seconds)
        assert row["load_seconds"] > 0
        assert row["peak_mb"] > 100 or math.isnan(row["peak_mb"])
    assert set(figures["ceilings_gflops"]) == {"float32"}


def test_instruction_sets_are_engines_and_others_are_held_to_theirs():
    of_x86 = {f"native/{name}" for name in BY_INSTRUCTIONS if not name.startswith("neon")}
    assert {"e5core", *of_x86} == OURS
    assert benchmark.default_engines(None) == ["e5core", *(n for n in ENGINES if n not in OURS)]
    for name in SWITCHES:
        assert benchmark.default_engines(name)[0] == f"native/{name}"
        assert ENGINES[f"native/{name}"].kernels == f"native/{name}"
        peers = benchmark.default_engines(name)[1:]
        assert peers == ["sentence-transformers", "transformers", "ctranslate2"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the switches are those of x86")
def test_the_switches_work_and_end_with_the_block():
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    before = dict(os.environ)
    with held_to("avx2"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "AVX2\n", done.stderr
    assert os.environ == before
    with held_to(None):
        assert os.environ == before


@needs_avx2
def test_a_run_held_to_avx2(make_tiny, tmp_path, capsys, monkeypatch):
    """The ceiling in float32 is that of multiply-add."""
    seen = []

    def watched(*arguments):
        seen.append(os.environ.get("CT2_FORCE_CPU_ISA"))
        return start(*arguments)

    monkeypatch.setattr(benchmark, "start", watched)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "scripts" / "benchmark"))
    file = tmp_path / "figures.json"
    code = benchmark.main(
        [
            *("--model", str(make_tiny("bert")), "--instructions", "avx2"),
            *("--engines", "native/avx2", "--precisions", "float32"),
            *("--workloads", "short", "--texts", "4"),
            *("--rounds", "1", "--threads", "1", "--json", str(file)),
        ]
    )
    err = capsys.readouterr().err
    assert code == 0, err
    assert seen == ["AVX2"]
    figures = json.loads(file.read_text())
    assert [c["engine"] for c in figures["contestants"]] == ["native/avx2"]
    assert figures["ceilings_gflops"]["float32"][0] > 1


@needs_avx2
def test_the_peak_is_that_of_a_core():
    peak = ceiling.avx2_peak()
    seconds = min(ceiling.seconds_of(peak) for _ in range(3))
    assert 5 < ceiling.PEAK_COST / seconds / 1e9 < 1000  # of one thread
    # Sums that lie in memory would halve it.
    command = [*build.compiler_command(), *ceiling.PEAK_OPTIONS, "-S", "-x", "c++", "-", "-o", "-"]
    assembly = subprocess.run(command, input=ceiling.PEAK, capture_output=True, text=True).stdout
    loop = assembly[assembly.index("vfmadd231ps") : assembly.rindex("vfmadd231ps")]
    assert loop.count("vfmadd231ps") == 11
    assert "(%rsp)" not in loop


def test_bars_of_one_instruction_set():
    contestants = [
        contestant("native/avx2", mixed=[1.0], short=[1.0], one=[1.0]),
        contestant("native/avx2", "int8", mixed=[0.7], short=[0.8], one=[0.1]),
        contestant("ctranslate2", mixed=[1.5], short=[1.2], one=[1.1]),
        contestant("ctranslate2", "int8", mixed=[1.4], short=[1.2], one=[0.5]),
        contestant("openvino", mixed=[1.3], short=[0.9], one=[1.0]),  # held by no switch
    ]
    assert bars(contestants, {}, "small", "avx2") == [
        "held    native/avx2 float32 : ctranslate2 float32 on mixed: 1.50, wanted 1.40",
        "missed  native/avx2 float32 : ctranslate2 float32 on one: 1.10, wanted 1.15",
        "held    native/avx2 float32 : ctranslate2 float32 on short: 1.20, wanted 1.10",
        "held    native/avx2 int8 : ctranslate2 int8 on mixed: 2.00, wanted 2.00",
        "held    native/avx2 int8 : ctranslate2 int8 on one: 5.00, wanted 3.00",
        "missed  native/avx2 int8 : ctranslate2 int8 on short: 1.50, wanted 2.00",
        "held    native/avx2 int8 : native/avx2 float32 on mixed: 1.43, wanted 1.40",
        "missed  native/avx2 int8 : native/avx2 float32 on short: 1.25, wanted 1.40",
    ]
    shares = {"native/avx2 float32": 0.9}
    assert bars(contestants[:1], shares, "large", "avx2") == [
        "held    native/avx2 float32, share of the peak: 0.90, wanted 0.85"
    ]


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_a_gguf_file_has_the_weights_and_the_vocabulary(
    make_tiny, tmp_path, monkeypatch, dialect, precision
):
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    # The package writes and reads the real table byte by byte, which takes six seconds.
    monkeypatch.setattr("gguf_export.read_charsmap", lambda content: content[:99])
    folder, file = make_tiny(dialect), tmp_path / "model.gguf"
    export_gguf(folder, file, precision)
    reader = gguf.GGUFReader(file)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    stored, config = load_file(folder / "model.safetensors"), TINY[dialect]
    assert len(tensors) == 5 + 16 * config.num_hidden_layers
    for theirs, ours in {
        "token_embd.weight": "embeddings.word_embeddings.weight",
        "position_embd.weight": "embeddings.position_embeddings.weight",
        "blk.1.attn_k.weight": "encoder.layer.1.attention.self.key.weight",
        "blk.2.ffn_down.weight": "encoder.layer.2.output.dense.weight",
        "blk.0.layer_output_norm.bias": "encoder.layer.0.output.LayerNorm.bias",
    }.items():
        found, expected = tensors[theirs].data.astype(np.float32), stored[ours]
        expected = expected[config.first_position :] if "position" in theirs else expected
        # These matrices are too narrow for Q8_0, and are in float16 then.
        assert np.abs(found - expected).max() <= (0 if precision == "float32" else 2e-3)
    pieces = reader.get_field("tokenizer.ggml.tokens").contents()
    assert len(pieces) == config.vocab_size
    tokenizer = SentencePieceTokenizer(folder / "sentencepiece.bpe.model")
    assert [pieces[i] for i in tokenizer.encode("the é")] == ["<s>", "▁the", "▁", "é", "</s>"]
    assert reader.get_field("tokenizer.ggml.model").contents() == "t5"
    charsmap = reader.get_field("tokenizer.ggml.precompiled_charsmap").contents()
    assert bytes(charsmap) == (folder / "sentencepiece.bpe.model").read_bytes()[:99]


def test_llama_cpp_computes_the_same(make_tiny, monkeypatch, tmp_path, oracle, dialect):
    """Where it is installed: continuous integration does not compile it."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    monkeypatch.setattr("exports.EXPORTS", tmp_path / "exports")
    folder, engine = make_tiny(dialect), ENGINES["llama.cpp"]
    texts = ["query: the café", "passage: a", "query:日本 я ß"]
    engine.export(folder, "float32")
    found = engine(folder, "float32", 1, "cpu").encode(texts, 2)
    expected = E5.from_pretrained(folder).encode(texts, input_type=None)
    assert (found * expected).sum(axis=1).min() > 0.999


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


def test_the_gpu_program_says_that_there_is_none(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main(["--models", "small"]) == 2
    assert "torch finds no CUDA here" in capsys.readouterr().err


def test_bars_of_a_gpu():
    rows = [
        {"name": "e5core", "share": 0.65, "one_ms": 2.5, "ratio": 1.0},
        {"name": "transformers", "ratio": 3.1},
        {"name": "ST unpadded", "ratio": 1.2},
    ]
    found = [line.split()[0] for line in gpu.bars("large", {"rows": rows, "busy": 0.9})]
    assert found == ["held", "missed", "held", "missed"]
    assert gpu.bars("small", {"rows": rows, "busy": 0.4})[0].startswith(
        "missed  small share of the"
    )


@pytest.mark.skipif(importlib.util.find_spec("flash_attn"), reason="flash_attn is installed")
def test_transformers_takes_the_stand_in_for_flash_attn(tmp_path):
    """In a process of its own: transformers looks for packages when it is imported."""
    program = (
        "import sys; from pathlib import Path; from flash_stand_in import provide_flash_attn; "
        "assert provide_flash_attn(Path(sys.argv[1])); "
        "import transformers.utils.import_utils as utils; "
        "utils.is_torch_cuda_available = lambda: True; "
        "assert utils.is_flash_attn_2_available(); "
        "from transformers.modeling_flash_attention_utils import lazy_import_flash_attention; "
        "(_, varlen, *_), _ = lazy_import_flash_attention('flash_attention_2'); "
        "print(varlen.__module__, varlen.__name__)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    found = subprocess.run(command, cwd=ROOT / "scripts/benchmark", capture_output=True, text=True)
    assert found.stdout.strip() == "flash_attn flash_attn_varlen_func", found.stderr
