"""The encoder on a GPU: every geometry, precision and length, against float64 on the same GPU."""

import pytest
import torch
from support.gpu import GEOMETRIES, KERNELS, LENGTHS, prepared, texts
from support.models import tiny_cross_encoder

from e5core import pack
from e5core.parity.tolerances import KERNEL_ERROR_FACTOR, KERNEL_ERROR_FLOOR


def states(encoder, ids):
    with torch.inference_mode():
        return encoder(pack(ids, encoder.config).to("cuda")).double()


def check(geometry, dtype, ids):
    """FlashAttention's rule on all hidden states; returns them."""
    exact = states(prepared(geometry, "float64", "plain"), ids)
    plain = (states(prepared(geometry, dtype, "plain"), ids) - exact).abs()
    encoder = prepared(geometry, dtype, "auto")
    assert encoder.kernels.name == KERNELS[dtype]
    found = states(encoder, ids)
    error = (found - exact).abs()
    # The largest of millions of errors is chance; their mean is not.
    assert error.max() <= KERNEL_ERROR_FACTOR * plain.max() + KERNEL_ERROR_FLOOR[dtype]
    assert error.mean() <= 1.25 * plain.mean()
    return encoder, found


@pytest.mark.parametrize("dtype", KERNELS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_texts_of_every_kind_of_length(geometry, dtype, measured):
    ids = texts(LENGTHS)
    encoder, found = check(geometry, dtype, ids)
    # Alone each text gives the same up to what products of other shapes round.
    alone = torch.cat([states(encoder, [text]) for text in ids])
    scale = {"float32": 1e-4, "bfloat16": 0.3, "float16": 0.04}[dtype]
    measured(f"{geometry} {dtype}: alone and together differ by {(alone - found).abs().max():.1e}")
    assert (alone - found).abs().max() <= scale


@pytest.mark.parametrize("dtype", KERNELS)
def test_the_longest_text(dtype):
    check("large", dtype, texts([8192, 5, 3000]))


@pytest.mark.parametrize("dtype", KERNELS)
def test_thousands_of_texts_at_once(dtype):
    check("small", dtype, texts([3 + i % 40 for i in range(4000)]))


@pytest.mark.parametrize("dtype", KERNELS)
def test_no_text_sees_another(dtype):
    encoder = prepared("small", dtype, "auto")
    a, b, other = texts([40]), texts([70], 1), texts([70], 2)
    one, two = (states(encoder, [*a, *middle, *a]) for middle in (b, other))
    assert torch.equal(one[:40], two[:40])
    assert torch.equal(one[110:], two[110:])
    assert not torch.allclose(one[40:110], two[40:110], atol=0.1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("own", [1, 7, 16, 17, 100, 512])
def test_a_graph_gives_the_bits_of_the_layers(dtype, own):
    """Of the same two texts, one of which nobody reads."""
    encoder = prepared("small", dtype, "auto")
    (ids,) = texts([own])
    found = states(encoder, [ids])
    (size,) = encoder.stack._recorded
    filled = encoder.stack._recorded[size].filled
    with torch.inference_mode():
        expected = encoder.stack._run(filled.x, filled.cu_seqlens, size)[:own]
        again = states(encoder, [ids])
    assert torch.equal(found, expected.double())
    assert torch.equal(found, again)


def test_scores_of_a_cross_encoder(dialect):
    ids = [[0, 5, 2, 2, 7, 2], [0, *range(5, 40), 2, 2, 9, 2], [0, 2, 2, 2]]
    encoder, head = tiny_cross_encoder(dialect)
    with torch.inference_mode():
        exact = head(encoder(pack(ids, encoder.config), first_only=True))
    for dtype, bound in ((torch.float32, 1e-4), (torch.float16, 0.2), (torch.bfloat16, 2.0)):
        encoder, head = tiny_cross_encoder(dialect)
        encoder.to("cuda").prepare_for_inference(dtype)
        head.to("cuda").prepare(encoder.kernels)
        batch = pack(ids, encoder.config).to("cuda")
        with torch.inference_mode():
            together = head(encoder(batch, first_only=True))
            alone = [
                head(encoder(pack([one], encoder.config).to("cuda"), first_only=True))
                for one in ids
            ]
        assert together.dtype == torch.float32
        assert (together.cpu() - exact).abs().max() <= bound
        assert (torch.cat(alone).cpu() - exact).abs().max() <= bound
