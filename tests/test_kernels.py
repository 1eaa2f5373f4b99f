"""Every back-end against the plain kernels and against float64."""

from itertools import pairwise

import pytest
import torch
from conftest import tiny_encoder
from tolerances import KERNEL_ERROR_FACTOR, KERNEL_ERROR_FLOOR
from torch import nn

from e5core import pack
from e5core.kernels import BACKENDS, select

# One text and many, all equal and all different, from one token to the longest of E5.
LENGTHS = {
    "one token": [1],
    "one long": [512],
    "equal": [16] * 9,
    "different": [1, 2, 3, 5, 8, 13, 64, 127, 128, 129],
    "long and short": [512, 511, 1, 1, 1],
    "runs, unsorted": [7, 7, 30, 7, 30, 30, 1],
}
OTHERS = sorted(set(BACKENDS) - {"plain"})


def packed(lengths, dtype, heads=3, head_size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    tensors = [
        # A spread of 2 gives attention weights that differ much from one token to another.
        (2 * torch.randn(tokens, heads, head_size, generator=generator, dtype=torch.float64))
        for _ in range(3)
    ]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    return [tensor.to(dtype) for tensor in tensors], cu_seqlens, max(lengths)


def test_plain_attention_is_the_textbook_formula():
    (query, key, value), cu_seqlens, longest = packed([3, 5], torch.float64)
    found = select("plain").attention(query, key, value, cu_seqlens, longest, 0.0)
    for start, stop in pairwise(cu_seqlens.tolist()):
        for head in range(query.shape[1]):
            for i in range(start, stop):
                dots = [float(query[i, head] @ key[j, head]) for j in range(start, stop)]
                weights = torch.tensor(dots, dtype=torch.float64).div(8**0.5).exp()
                weights /= weights.sum()
                expected = sum(
                    w * value[j, head] for w, j in zip(weights, range(start, stop), strict=True)
                )
                assert torch.allclose(found[i, head], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("name", OTHERS)
def test_attention_is_as_near_to_float64_as_plain(name, lengths, dtype):
    tensors, cu_seqlens, longest = packed(lengths, dtype)
    plain, other = select("plain"), select(name)
    wide = [tensor.double() for tensor in tensors]
    exact = plain.attention(*wide, cu_seqlens, longest, 0.0)
    error_plain = (plain.attention(*tensors, cu_seqlens, longest, 0.0) - exact).abs().max()
    found = other.attention(*tensors, cu_seqlens, longest, 0.0)
    assert found.dtype == dtype
    assert found.shape == exact.shape
    bound = KERNEL_ERROR_FACTOR * error_plain + KERNEL_ERROR_FLOOR[str(dtype)[6:]]
    assert (found - exact).abs().max() <= bound


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("name", OTHERS)
def test_gradients_of_attention_are_as_near_to_float64_as_those_of_plain(name, lengths):
    def gradients(kernels, dtype):
        tensors, cu_seqlens, longest = packed(lengths, dtype)
        leaves = [tensor.requires_grad_() for tensor in tensors]
        output = kernels.attention(*leaves, cu_seqlens, longest, 0.0)
        weights = torch.linspace(-1, 1, output.numel(), dtype=dtype).view_as(output)
        return torch.cat(torch.autograd.grad((output * weights).sum(), leaves))

    exact = gradients(select("plain"), torch.float64)
    error_plain = (gradients(select("plain"), torch.float32) - exact).abs().max()
    error = (gradients(select(name), torch.float32) - exact).abs().max()
    assert error <= KERNEL_ERROR_FACTOR * error_plain + 10 * KERNEL_ERROR_FLOOR["float32"]


@pytest.mark.parametrize("name", sorted(BACKENDS))
class TestEveryArgumentCounts:
    """An argument that is accepted and dropped is how attention leaks between texts."""

    def test_cu_seqlens(self, name):
        tensors, cu_seqlens, _ = packed([4, 6], torch.float32)
        apart = select(name).attention(*tensors, cu_seqlens, 10, 0.0)
        together = select(name).attention(*tensors, torch.tensor([0, 10]).int(), 10, 0.0)
        assert not torch.allclose(apart, together, atol=1e-2)

    def test_max_seqlen(self, name):
        tensors, cu_seqlens, _ = packed([4, 6], torch.float32)
        with pytest.raises(ValueError, match="max_seqlen is 5, but a text has 6 tokens"):
            select(name).attention(*tensors, cu_seqlens, 5, 0.0)

    def test_query_key_value(self, name):
        tensors, cu_seqlens, longest = packed([4, 6], torch.float32)
        before = select(name).attention(*tensors, cu_seqlens, longest, 0.0)
        for i in range(3):
            changed = [t.clone() for t in tensors]
            changed[i][2] += 1
            after = select(name).attention(*changed, cu_seqlens, longest, 0.0)
            assert not torch.allclose(before[:4], after[:4], atol=1e-3)
            assert torch.equal(before[4:], after[4:])

    def test_attention_dropout(self, name):
        tensors, cu_seqlens, longest = packed([4, 6], torch.float32)
        torch.manual_seed(0)
        dropped = select(name).attention(*tensors, cu_seqlens, longest, 0.5)
        kept = select(name).attention(*tensors, cu_seqlens, longest, 0.0)
        assert not torch.allclose(dropped, kept, atol=1e-2)

    def test_linears_and_norm(self, name):
        kernels = select(name)
        torch.manual_seed(0)
        layer, norm, x, residual = nn.Linear(6, 4), nn.LayerNorm(4, eps=0.5), *torch.randn(2, 5, 6)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        residual = residual[:, :4]
        product = x @ layer.weight.T + layer.bias
        close = {"rtol": 0, "atol": 1e-6}
        assert torch.allclose(kernels.linear(x, layer), product, **close)
        gelu = product * 0.5 * (1 + torch.erf(product / 2**0.5))
        assert torch.allclose(kernels.linear_gelu(x, layer), gelu, **close)
        added = kernels.linear_residual(x, layer, residual, 0.0)
        assert torch.allclose(added, residual + product, **close)
        dropped = kernels.linear_residual(x, layer, residual, 0.5) - residual
        # A dropped value is 0, a kept one is doubled: the mean stays.
        assert torch.logical_or(dropped.abs() < 1e-6, (dropped - 2 * product).abs() < 1e-6).all()
        assert (dropped.abs() < 1e-6).any()
        centred = product - product.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 0.5).sqrt()
        expected = scaled * norm.weight + norm.bias
        assert torch.allclose(kernels.layer_norm(product, norm), expected, **close)


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_no_text_sees_another(dialect, name):
    """Change text B: text A keeps its bits under plain, and under the others as well."""
    encoder = tiny_encoder(dialect).prepare_for_inference(kernels=name)
    a, b, other_b = [0, 7, 8, 9, 2], [0, 20, 21, 2], [0, 90, 91, 2]
    one, two = (encoder(pack([a, text, a], encoder.config)) for text in (b, other_b))
    assert torch.equal(one[:5], two[:5])
    assert torch.equal(one[9:], two[9:])
    assert not torch.allclose(one[5:9], two[5:9], atol=0.1)


def test_the_kernels_that_run_are_those_that_were_chosen(dialect):
    for name in BACKENDS:
        assert tiny_encoder(dialect).prepare_for_inference(kernels=name).kernels.name == name
    assert tiny_encoder(dialect).prepare_for_inference().kernels.name == "sdpa"


def test_an_unknown_name_is_refused(dialect):
    with pytest.raises(ValueError, match=r"kernels is 'fast', expected 'auto' or one of \['plain'"):
        tiny_encoder(dialect).prepare_for_inference(kernels="fast")
