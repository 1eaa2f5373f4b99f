"""From texts to vectors on a GPU: models, threads, streams, processes, memory, a server."""

import multiprocessing
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from support.gpu import load, put_vectors
from support.models import ROOT, write_tiny_reranker, write_tiny_tokenizer

from e5core import Encoder, EncoderConfig, Reranker, save_checkpoint
from e5core.parity.samples import SENTENCES, spread_weights
from e5core.parity.tolerances import COPY_BOUNDS, UNIT_VECTOR_FLOAT32

# Heads of a size that flash attention takes, and the tokenizer of the tiny models.
CONFIG = EncoderConfig("xlm-roberta", 120, 128, 3, 4, 256, 130, 2, 1, 1e-5)
WORDS = [f"the query a passage {a}{b} ing" for a in "abcdefgh" for b in "xyzXYZß日я"]
TEXTS = [" ".join(WORDS[i : i + 1 + i % 5]) for i in range(60)] + ["x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu") / "model"
    save_checkpoint(spread_weights(Encoder(CONFIG)), folder)
    write_tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


@pytest.fixture(scope="module")
def exact(folder):
    return load(folder, "cpu", "float64", kernels="plain")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_public_path(folder, exact, dtype):
    model = load(folder, dtype=dtype)
    for options in (
        {},
        {"truncate": "window"},
        {"max_tokens_per_batch": 100},
        {"normalize": False},
    ):
        long = [*TEXTS, " ".join(WORDS)]
        expected = exact.embed(long, input_type="query", **options)
        found = model.embed(long, input_type="query", **options)
        assert (found.token_counts == expected.token_counts).all()
        both = found.vectors.astype(float), expected.vectors.astype(float)
        a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in both)
        cosines = (a * b).sum(axis=1)
        assert cosines.min() >= COPY_BOUNDS[dtype].worst_cosine
        if dtype == "float32":
            assert np.abs(a - b).max() <= UNIT_VECTOR_FLOAT32


def test_many_texts_tokenized_ahead(model, exact):
    texts = [f"{text} {number}" for number in range(200) for text in TEXTS[:40]]
    found = model.encode_passage(iter(texts))
    assert ((found * exact.encode_passage(texts)).sum(axis=1) > 0.999).all()
    with pytest.raises(ValueError, match="text 5000: the text holds the lone surrogate"):
        model.encode_passage([*texts[:5000], "a\ud800", *texts[:300]])


def test_a_reranker(tmp_path, dialect):
    folder = write_tiny_reranker(tmp_path / "ranker", dialect)
    exact = Reranker.from_pretrained(folder, device="cpu").score("the query", TEXTS)
    for dtype, least in (("float32", 0.9999999), ("bfloat16", 0.98)):
        found = Reranker.from_pretrained(folder, device="cuda", dtype=dtype)
        assert np.corrcoef(found.score("the query", TEXTS), exact)[0, 1] >= least


def test_threads_and_streams_share_models(folder, model):
    """Two models, eight threads with a stream each, single texts by graphs and batches."""
    other = load(folder, dtype="float16")
    models = {"one": model, "two": other}
    wanted = {
        (name, i): m.encode_query(TEXTS[i]) for name, m in models.items() for i in range(len(TEXTS))
    }
    batches = {name: m.encode_query(TEXTS) for name, m in models.items()}

    def work(seed):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            order = np.random.default_rng(seed).permutation(len(TEXTS))
            for i in order:
                for name, m in models.items():
                    if not np.array_equal(m.encode_query(TEXTS[i]), wanted[name, i]):
                        return f"{name} {i}"
                    if i % 10 == 0 and not np.array_equal(m.encode_query(TEXTS), batches[name]):
                        return f"{name} batch"
        return None

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [None] * 8


def test_graphs_are_recorded_while_others_compute(folder, model):
    stop, faults = threading.Event(), []
    expected = model.encode_query(TEXTS)

    def compute():
        with torch.cuda.stream(torch.cuda.Stream()):
            while not stop.is_set():
                if not np.array_equal(model.encode_query(TEXTS), expected):
                    faults.append("another vector")

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        for _ in range(5):
            fresh = load(folder)
            for text in (TEXTS[0], TEXTS[4], " ".join(WORDS)):
                assert fresh.encode_query(text) @ model.encode_query(text) > 0.9999
    finally:
        stop.set()
        thread.join()
    assert not faults


def test_two_processes_share_a_gpu(folder, model):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=put_vectors, args=(queue, folder, TEXTS)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert all(np.array_equal(vectors, model.encode_query(TEXTS)) for vectors in found)


def test_memory_stays_flat(model):
    calls = [lambda i=i: model.encode_query(TEXTS[i % len(TEXTS)]) for i in range(50)]
    calls += [lambda n=n: model.encode_query(TEXTS[:n]) for n in (2, 7, 60)]
    for call in calls:
        call()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for number in range(10_000):
        calls[number % len(calls)]()
    assert torch.cuda.memory_allocated() == allocated
    assert torch.cuda.memory_reserved() <= reserved + 2**21  # the allocator's smallest block


def test_out_of_memory_halves_the_batch(folder, model, monkeypatch):
    texts = TEXTS * 400
    wanted = model.encode_passage(texts)
    torch.cuda.empty_cache()
    seen = []
    forward = model.encoder.forward
    monkeypatch.setattr(
        model.encoder,
        "forward",
        lambda batch, *a: (seen.append(len(batch.input_ids)), forward(batch, *a))[1],
    )
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 60e6) / total)
    try:
        found = model.encode_passage(texts, max_tokens_per_batch=10**6)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert max(seen) > 2 * seen[-2]  # the last may be a rest
    assert ((found * wanted).sum(axis=1) > 0.9999).all()


def test_a_server(model):
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    pytest.importorskip("orjson", reason="the extra serve is not installed")
    from support.serving import serving

    from e5core.serve.app import App
    from e5core.serve.models import Models, serve_embedder
    from e5core.serve.service import Service

    with serving(App(Service(Models([serve_embedder(model, "m")], [])))) as running:
        body = {"model": "m", "input": TEXTS, "input_type": "passage", "encoding_format": "float"}
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: running.post("/v1/embeddings", body), range(16)))
    for answer in answers:
        assert answer.status == 200, answer.body
        found = np.array([row["embedding"] for row in answer.json["data"]])
        assert ((found * model.encode_passage(TEXTS)).sum(axis=1) > 0.9999).all()


def test_a_bulk_job(tmp_path, folder, model):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(SENTENCES), encoding="utf-8")
    command = [sys.executable, "-m", "e5core", "embed", texts, "--model", folder, "--prompts", "e5"]
    command += ["--input-type", "passage", "--output", tmp_path / "out.npy", "--device", "cuda"]
    subprocess.run([*map(str, command), "--dtype", "bfloat16"], check=True, cwd=ROOT)
    found = np.load(tmp_path / "out.npy")
    assert ((found * model.encode_passage(SENTENCES)).sum(axis=1) > 0.9999).all()
