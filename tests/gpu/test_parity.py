"""Parity with transformers on a GPU: every geometry, precision, length and size of batch."""

import numpy as np
import pytest
import torch
from support.gpu import GEOMETRIES, KERNELS, LENGTHS, prepared, texts, weights
from support.models import tiny_cross_encoder

from e5core import l2_normalize, mean_pool, pack
from e5core.parity.cases import error_case, worst
from e5core.parity.tolerances import UNIT_VECTOR_FLOAT32

BATCH_SIZES = (1, 7, 64)

# The mean error against float64 in multiples of transformers'. In two bytes ours is smaller: the
# mean over a text's tokens, bias, residual and LayerNorm are computed in float32.
ERROR_FACTORS = {"sdpa": 1.1, "cuda": 1.0}


def vectors(encoder, ids, batch_size):
    found = []
    with torch.inference_mode():
        for start in range(0, len(ids), batch_size):
            batch = pack(ids[start : start + batch_size], encoder.config).to("cuda")
            pooled = mean_pool(encoder(batch).double(), batch.cu_seqlens)
            found.append(l2_normalize(pooled).cpu().numpy())
    return np.concatenate(found)


def reference(oracle, geometry, dtype, ids, attention, batch_size):
    """transformers' vectors, averaged over the tokens in float64."""
    model = oracle.reference_model(weights(geometry), attention)
    model = model.to("cuda", getattr(torch, dtype))
    found = []
    for start in range(0, len(ids), batch_size):
        states = oracle.reference_hidden_states(model, ids[start : start + batch_size])
        means = torch.stack([one.double().mean(dim=0) for one in states])
        found.append(l2_normalize(means).cpu().numpy())
    return np.concatenate(found)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_vectors_in_float32(oracle, geometry, attention, measured):
    ids = texts(LENGTHS)
    encoder = prepared(geometry, "float32", "auto")
    expected = reference(oracle, geometry, "float32", ids, attention, 8)
    for batch_size in BATCH_SIZES:
        difference = worst(vectors(encoder, ids, batch_size), expected)
        measured(f"{geometry} float32 on a GPU, {attention}, {batch_size}: {difference:.1e}")
        assert difference <= UNIT_VECTOR_FLOAT32


@pytest.mark.parametrize("dtype", KERNELS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_error_is_no_larger_than_that_of_transformers(oracle, geometry, dtype, measured):
    ids = texts(LENGTHS)
    truth = vectors(prepared(geometry, "float64", "plain"), ids, 8)
    theirs = reference(oracle, geometry, dtype, ids, "sdpa", 8)
    encoder = prepared(geometry, dtype, "auto")
    assert encoder.kernels.name == KERNELS[dtype]
    for batch_size in BATCH_SIZES:
        ours = vectors(encoder, ids, batch_size)
        case = error_case(encoder.kernels.name, ours, theirs, truth, ERROR_FACTORS)
        measured(f"{geometry} {dtype} on a GPU, {batch_size}: {case.measured}, {case.bound}")
        assert case.ok


def test_logits_of_a_cross_encoder(oracle, dialect):
    ids = [[0, 5, 2, 2, 7, 2], [0, *range(5, 40), 2, 2, 9, 2], [0, 8, 2, 2, 7, 7, 2]]
    encoder, head = tiny_cross_encoder(dialect)
    expected = oracle.reference_logits(
        oracle.reference_model(encoder, "sdpa", head).to("cuda"), ids
    )
    encoder, head = tiny_cross_encoder(dialect)
    encoder.to("cuda").prepare_for_inference(torch.float32)
    head.to("cuda").prepare(encoder.kernels)
    with torch.inference_mode():
        found = head(encoder(pack(ids, encoder.config).to("cuda"), first_only=True))
    assert worst(found.cpu().numpy(), expected) <= 1e-4 * np.abs(expected).max()
