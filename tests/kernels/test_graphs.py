"""Batches of one text, filled up for a recorded graph."""

import pytest
import torch
from support.models import tiny_encoder

from e5core import pack
from e5core.kernels.cuda.graphs import SIZES, RecordedStack, fill


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
        x, cu_seqlens, longest = states_of(encoder, [[0, *range(5, 5 + own - 1)][:own]])
        more, bounds = fill(x, cu_seqlens, size)
        assert more.shape == (size, x.shape[1])
        assert bounds.tolist() == [0, own, size]
        assert bounds.dtype == torch.int32
        assert torch.equal(more[:own], x)
        assert (more[own:] == x[0]).all()
        if own < size:  # the plain kernels have no empty texts
            expected = run(x, cu_seqlens, longest)
            assert torch.allclose(run(more, bounds, size)[:own], expected, rtol=0, atol=1e-5)


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_graph_gives_what_the_layers_give(dialect):
    encoder = tiny_encoder(dialect).to("cuda").prepare_for_inference(torch.bfloat16, "cuda")
    stack = encoder.stack
    with torch.inference_mode():
        for ids in ([0, 5, 2], [0, *range(5, 30), 2], [0, 9, 9, 2]):
            states = states_of(encoder, [ids])
            assert torch.allclose(stack(*states), stack._run(*states), atol=2e-2)
    assert sorted(stack._recorded) == [16, 32]
