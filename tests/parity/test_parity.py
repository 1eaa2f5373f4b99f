"""Live parity with transformers, through the public path: prefixes and positions included."""

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from support.models import CHARSMAP, spread_weights

from e5core import E5, Encoder, EncoderConfig
from e5core.parity.against_transformers import RUNNING
from e5core.parity.samples import QUERIES, SENTENCES, text_of_length
from e5core.parity.tolerances import (
    BATCH_INVARIANCE_FLOAT32,
    FLOAT64_ERROR_FACTOR,
    UNIT_VECTOR_FLOAT32,
)

transformers = pytest.importorskip("transformers", reason="transformers is the oracle of parity")
from e5core.parity.oracle import (  # noqa: E402
    fast_tokenizer,
    load_reference,
    reference_model,
    reference_vectors,
)

LENGTHS = (1, 2, 3, 4, 17, 100, 255, 256, 257, 509, 510, 511, 512)
BATCH_SIZES = (1, 2, 7, 64)

GEOMETRIES = {
    "base": EncoderConfig("xlm-roberta", 250002, 768, 12, 12, 3072, 514, 2, 1, 1e-5),
    "large": EncoderConfig("xlm-roberta", 250002, 1024, 24, 16, 4096, 514, 2, 1, 1e-5),
}


@pytest.fixture(scope="module")
def tokenizer(real_folder):
    return fast_tokenizer(real_folder, CHARSMAP)


def reference_ids(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return tokenizer(list(texts), truncation=True, max_length=512)["input_ids"]


def worst(vectors: np.ndarray, reference: np.ndarray) -> float:
    assert vectors.shape == reference.shape
    return float(np.abs(vectors - reference).max())


@pytest.fixture(scope="module")
def texts(real_model):
    """The collection in 28 languages, and texts of every length that matters, some too long."""
    return [
        *SENTENCES,
        *QUERIES,
        *(text_of_length(real_model.tokenizer, n, seed=n) for n in (*LENGTHS, 513, 600)),
    ]


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def expected_queries(request, real_folder, tokenizer, texts):
    """The way of attention, and the vectors that transformers computes in it, once for all."""
    ids = reference_ids(tokenizer, [f"query: {text}" for text in texts])
    return request.param, reference_vectors(load_reference(real_folder, request.param), ids)


@pytest.mark.parametrize("kernels", RUNNING)
def test_real_small_equals_transformers(real_folder, texts, kernels, expected_queries, measured):
    model = E5.from_pretrained(real_folder, kernels=kernels)
    assert model.encoder.kernels.name == kernels
    assert len(texts) >= 200
    attention, expected = expected_queries
    error = worst(model.encode_query(texts), expected)
    measured(f"real small, {kernels} against transformers' {attention}: {error:.1e}")
    assert error <= UNIT_VECTOR_FLOAT32


@pytest.mark.exhaustive(sample=12)
@pytest.mark.parametrize("dialect", ["bert", "xlm-roberta"])
@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("length", [1, 2, 3, 510, 511, 512])
def test_lengths_and_batches(dialect, batch_size, length):
    """Both position schemes at small width, down to a text of one token."""
    rows = 512 if dialect == "bert" else 514
    first = 0 if dialect == "bert" else 2
    config = EncoderConfig(dialect, 300, 48, 2, 4, 96, rows, first, 1, 1e-5)
    encoder = spread_weights(Encoder(config)).eval()
    generator = torch.Generator().manual_seed(length)
    lengths = [max(1, length - i % 3) for i in range(batch_size)]
    # From id 4: transformers takes the pad id in a text for padding, a tokenizer never emits it.
    ids = [torch.randint(4, 300, (n,), generator=generator).tolist() for n in lengths]
    expected = reference_vectors(reference_model(encoder), ids)
    assert worst(encode_ids(encoder, ids), expected) <= UNIT_VECTOR_FLOAT32


def encode_ids(encoder: Encoder, ids: list[list[int]]) -> np.ndarray:
    from e5core import l2_normalize, mean_pool, pack

    with torch.no_grad():
        batch = pack(ids, encoder.config)
        return l2_normalize(mean_pool(encoder(batch), batch.cu_seqlens)).numpy()


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_real_small_in_batches(real_folder, real_model, tokenizer, texts, batch_size):
    """Every seventh sentence and every length, both libraries in batches of this size."""
    sample = [*texts[:-15:7], *texts[-15:]]
    ids = reference_ids(tokenizer, [f"passage: {text}" for text in sample])
    expected = reference_vectors(load_reference(real_folder), ids, batch_size)
    starts = range(0, len(sample), batch_size)
    found = [real_model.encode_passage(sample[i : i + batch_size]) for i in starts]
    assert worst(np.concatenate(found), expected) <= UNIT_VECTOR_FLOAT32


@pytest.fixture(scope="module", params=GEOMETRIES)
def random_model(request, real_model) -> tuple[E5, Encoder]:
    """Random weights in the real geometry, under which texts really differ.

    returns  the model on the fastest kernels, which keep the weights for themselves, and an
             encoder that still has them
    """
    encoder = spread_weights(Encoder(GEOMETRIES[request.param]))
    prepared = copy.deepcopy(encoder).prepare_for_inference()
    return E5(prepared, real_model.tokenizer, prompts=real_model.prompts), encoder


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_xlm_roberta_geometry_equals_transformers(random_model, tokenizer, attention, measured):
    random_model, encoder = random_model
    lengths = (1, 2, 3, 510, 511, 512, 513)
    texts = [*SENTENCES[::8], *(text_of_length(random_model.tokenizer, n, seed=n) for n in lengths)]
    ids = reference_ids(tokenizer, [f"passage: {text}" for text in texts])
    # Batches of 64, 7, 2 and 1 text between them, so that each size stands beside each length.
    model = reference_model(encoder, attention)
    expected = np.concatenate(
        [
            reference_vectors(model, part, size)
            for part, size in zip(
                (ids[:24], ids[24:27], ids[27:29], ids[29:]), (64, 7, 2, 1), strict=True
            )
        ]
    )
    vectors = random_model.encode_passage(texts)
    cosines = (vectors @ vectors.T)[np.triu_indices(len(texts), 1)]
    error = worst(vectors, expected)
    measured(
        f"{random_model.config.num_hidden_layers} × {random_model.config.hidden_size} with random "
        f"weights, {attention}: {error:.1e}, median cosine of texts {np.median(cosines):.3f}"
    )
    assert np.median(cosines) < 0.98
    assert error <= UNIT_VECTOR_FLOAT32


@pytest.fixture(scope="module")
def exact_queries(real_folder, texts):
    """Texts, their vectors in float64, and transformers' mean error in float32."""
    exact = E5.from_pretrained(real_folder, dtype="float64", kernels="plain")
    sample = [*texts[:200:5], *texts[-10:]]
    ids = [exact.tokenizer.encode(f"query: {text}")[:512] for text in sample]
    ids = [[*text[:-1], 2] for text in ids]
    truth = encode_ids(exact.encoder, ids)
    found = reference_vectors(load_reference(real_folder), ids)
    return sample, truth, np.abs(found - truth).mean()


@pytest.mark.parametrize("kernels", RUNNING)
def test_error_against_float64_is_no_larger_than_that_of_transformers(
    real_folder, kernels, exact_queries, measured
):
    model = E5.from_pretrained(real_folder, kernels=kernels)
    sample, truth, theirs = exact_queries
    ours = np.abs(model.encode_query(sample) - truth).mean()
    measured(f"mean error against float64: {kernels} {ours:.2e}, transformers {theirs:.2e}")
    assert ours <= FLOAT64_ERROR_FACTOR[kernels] * theirs


def test_vector_alone_equals_vector_in_any_batch(real_model, texts, measured):
    together = real_model.encode_query(texts)
    alone = np.stack([real_model.encode_query(text) for text in texts])
    assert worst(together, alone) <= BATCH_INVARIANCE_FLOAT32
    # Shuffled and with another budget, every text meets other neighbours.
    order = np.random.default_rng(0).permutation(len(texts))
    mixed = real_model.encode_query([texts[i] for i in order], max_tokens_per_batch=3000)
    assert worst(mixed, alone[order]) <= BATCH_INVARIANCE_FLOAT32
    measured(f"alone against in a batch: {worst(together, alone):.1e}")


def test_transformers_reads_the_same_hidden_states_of_the_published_folder(real_folder, real_model):
    """The folder as it lies on disk, loaded by both libraries' own readers."""
    from e5core.parity.oracle import reference_hidden_states

    model = transformers.AutoModel.from_pretrained(real_folder, attn_implementation="eager")
    ids = [real_model.tokenizer.encode(text) for text in SENTENCES[:12]]
    expected = reference_vectors(model, ids)
    assert worst(real_model.encode(SENTENCES[:12], input_type=None), expected) <= (
        UNIT_VECTOR_FLOAT32
    )
    assert all(s.shape[1] == 384 for s in reference_hidden_states(model, ids))
