"""Batches of one text, filled up for a recorded graph."""

from dataclasses import replace

import pytest
import torch
from support.models import TINY, spread_weights, tiny_encoder

from e5core import Encoder, pack
from e5core.kernels.cuda.graphs import GraphedEncoder, filled


@pytest.mark.parametrize("own", [1, 2, 15, 16])
@pytest.mark.parametrize("size", [16, 32])
def test_a_filled_batch_has_the_same_text_in_front(dialect, own, size):
    encoder = tiny_encoder(dialect).prepare_for_inference(kernels="plain")
    batch = pack([[0, *range(5, 5 + own - 1)][:own]], encoder.config)
    more = filled(batch, size)
    assert len(more.input_ids) == len(more.position_ids) == more.max_seqlen == size
    assert more.cu_seqlens.tolist() == [0, own, size]
    assert more.cu_seqlens.dtype == torch.int32
    positions = more.position_ids[own:].tolist()
    first = encoder.config.first_position
    assert positions == list(range(first, first + size - own))
    if own < size:  # the plain kernels have no empty texts
        with torch.inference_mode():
            assert torch.allclose(encoder(more)[:own], encoder(batch), rtol=0, atol=1e-5)


def test_what_is_no_single_short_text_goes_the_usual_way(dialect):
    encoder = spread_weights(Encoder(replace(TINY[dialect], max_position_embeddings=63))).eval()
    graphed = GraphedEncoder(encoder)
    two = pack([[0, 5, 2], [0, 6, 2]], encoder.config)
    # Longer than every size that the position table has rows for.
    long = pack([[0, *[7] * (60 - 2), 2]], encoder.config)
    with torch.no_grad():
        assert torch.equal(graphed(two), encoder(two))
        assert torch.equal(graphed(long), encoder(long))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_graph_gives_what_the_encoder_gives(dialect):
    encoder = tiny_encoder(dialect).to("cuda").prepare_for_inference(torch.bfloat16, "cuda")
    graphed = GraphedEncoder(encoder)
    with torch.inference_mode():
        for ids in ([0, 5, 2], [0, *range(5, 30), 2], [0, 9, 9, 2]):
            batch = pack([ids], encoder.config).to("cuda")
            assert torch.allclose(graphed(batch), encoder(batch), atol=2e-2)
    assert sorted(graphed._recorded) == [16, 32]
