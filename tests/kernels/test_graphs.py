"""Batches of one text, filled up for a recorded graph."""

import pytest
import torch
from support.models import tiny_encoder

from e5core import pack
from e5core.kernels.cuda.graphs import SIZES, Filled, RecordedStack


def states_of(encoder, ids):
    """What the layers get for texts, with the bounds of the texts."""
    batch = pack(ids, encoder.config).to(encoder.device)
    x = encoder.embeddings(batch.input_ids, batch.position_ids, encoder.kernels)
    return x, batch.cu_seqlens, batch.max_seqlen


@pytest.mark.parametrize("own", [1, 2, 15, 16])
@pytest.mark.parametrize("size", [16, 32])
def test_a_filled_batch_has_the_same_text_in_front(dialect, own, size):
    encoder = tiny_encoder(dialect).prepare_for_inference(kernels="plain")
    run = RecordedStack(encoder.layers, encoder.kernels)._run
    with torch.inference_mode():
        longer, *_ = states_of(encoder, [[0, *range(20, 20 + size - 2), 2]])
        x, cu_seqlens, longest = states_of(encoder, [[0, *range(5, 5 + own - 1)][:own]])
        filled = Filled(size, x)
        filled.put(longer)
        assert filled.cu_seqlens.tolist() == [0, size, size]
        filled.put(x)
        assert filled.cu_seqlens.tolist() == [0, own, size]
        assert filled.cu_seqlens.dtype == torch.int32
        assert torch.equal(filled.x, torch.cat([x, longer[own:]]))
        if own < size:  # the plain kernels have no empty texts
            expected = run(x, cu_seqlens, longest)
            found = run(filled.x, filled.cu_seqlens, size)[:own]
            assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        filled.put(x.clone())  # in another mode than the one in which it was made


def test_what_is_no_single_short_text_goes_the_usual_way(dialect):
    encoder = tiny_encoder(dialect).prepare_for_inference(kernels="plain")
    stack = RecordedStack(encoder.layers, encoder.kernels)
    with torch.inference_mode():
        two = states_of(encoder, [[0, 5, 2], [0, 6, 2]])
        assert torch.equal(stack(*two), stack._run(*two))
        # Longer than every size that is recorded.
        tokens = SIZES[-1] + 1
        long = torch.randn(tokens, encoder.config.hidden_size), torch.tensor([0, tokens]).int()
        assert torch.equal(stack(*long, tokens), stack._run(*long, tokens))
    assert not stack._recorded
