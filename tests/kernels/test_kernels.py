"""Every back-end against the plain kernels and against float64."""

import warnings
from itertools import pairwise

import pytest
import torch
from support.models import IN_FLOAT32, INSTRUCTION_SETS, tiny_encoder
from torch import nn

from e5core import kernels, pack, save_checkpoint
from e5core.kernels import BACKENDS, BY_NAME, select, warn_once, why_not
from e5core.parity.tolerances import KERNEL_ERROR_FACTOR, KERNEL_ERROR_FLOOR

# One text and many, all equal and all different, from one token to the longest of E5.
LENGTHS = {
    "one token": [1],
    "one long": [512],
    "equal": [16] * 9,
    "different": [1, 2, 3, 5, 8, 13, 64, 127, 128, 129],
    "long and short": [512, 511, 1, 1, 1],
    "runs, unsorted": [7, 7, 30, 7, 30, 30, 1],
}
OTHERS = sorted({*IN_FLOAT32, *INSTRUCTION_SETS} - {"plain", "native"})


def usable(name, dtype=torch.float32, device="cpu"):
    """The kernels of that name; skips the test where they cannot run, with their reason."""
    if reason := why_not(BY_NAME[name], torch.device(device), dtype):
        pytest.skip(f"{name}: {reason}")
    return select(name, device, dtype)


def packed(lengths, dtype, heads=3, head_size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    # A spread of 2 gives attention weights that differ much from one token to another.
    qkv = 2 * torch.randn(tokens, 3, heads, head_size, generator=generator, dtype=torch.float64)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    return qkv.to(dtype), cu_seqlens, max(lengths)


def test_plain_attention_is_the_textbook_formula():
    qkv, cu_seqlens, longest = packed([3, 5], torch.float64)
    found = select("plain").attention(qkv, cu_seqlens, longest, 0.0)
    query, key, value = qkv.unbind(1)
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
    other = usable(name, dtype)
    qkv, cu_seqlens, longest = packed(lengths, dtype)
    plain = select("plain")
    exact = plain.attention(qkv.double(), cu_seqlens, longest, 0.0)
    error_plain = (plain.attention(qkv, cu_seqlens, longest, 0.0) - exact).abs().max()
    found = other.attention(qkv, cu_seqlens, longest, 0.0)
    assert found.dtype == dtype
    assert found.shape == exact.shape
    bound = KERNEL_ERROR_FACTOR * error_plain + KERNEL_ERROR_FLOOR[str(dtype)[6:]]
    assert (found - exact).abs().max() <= bound


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("name", [name for name in OTHERS if BY_NAME[name].trainable])
def test_gradients_of_attention_are_as_near_to_float64_as_those_of_plain(name, lengths):
    def gradients(kernels, dtype):
        qkv, cu_seqlens, longest = packed(lengths, dtype)
        output = kernels.attention(qkv.requires_grad_(), cu_seqlens, longest, 0.0)
        weights = torch.linspace(-1, 1, output.numel(), dtype=dtype).view_as(output)
        return torch.autograd.grad((output * weights).sum(), qkv)[0]

    exact = gradients(select("plain"), torch.float64)
    error_plain = (gradients(select("plain"), torch.float32) - exact).abs().max()
    error = (gradients(select(name), torch.float32) - exact).abs().max()
    assert error <= KERNEL_ERROR_FACTOR * error_plain + 10 * KERNEL_ERROR_FLOOR["float32"]


def normed(x, norm):
    """The LayerNorm of the paper, arXiv:1607.06450."""
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return scaled * norm.weight + norm.bias


@pytest.mark.parametrize("name", IN_FLOAT32)
class TestEveryArgumentCounts:
    """An argument that is accepted and dropped is how attention leaks between texts."""

    def test_cu_seqlens(self, name):
        qkv, cu_seqlens, _ = packed([4, 6], torch.float32)
        kernels = usable(name)
        apart = kernels.attention(qkv, cu_seqlens, 10, 0.0)
        together = kernels.attention(qkv, torch.tensor([0, 10]).int(), 10, 0.0)
        assert not torch.allclose(apart, together, atol=1e-2)

    def test_max_seqlen(self, name):
        qkv, cu_seqlens, _ = packed([4, 6], torch.float32)
        with pytest.raises(ValueError, match="max_seqlen is 5, but a text has 6 tokens"):
            usable(name).attention(qkv, cu_seqlens, 5, 0.0)

    def test_query_key_value(self, name):
        qkv, cu_seqlens, longest = packed([4, 6], torch.float32)
        before = usable(name).attention(qkv, cu_seqlens, longest, 0.0)
        for i in range(3):
            changed = qkv.clone()
            changed[2, i] += 1
            after = usable(name).attention(changed, cu_seqlens, longest, 0.0)
            assert not torch.allclose(before[:4], after[:4], atol=1e-3)
            assert torch.equal(before[4:], after[4:])

    def test_attention_dropout(self, name):
        kernels = usable(name)
        qkv, cu_seqlens, longest = packed([4, 6], torch.float32)
        if not kernels.trainable:
            with pytest.raises(ValueError, match="dropout is not 0"):
                kernels.attention(qkv, cu_seqlens, longest, 0.5)
            return
        torch.manual_seed(0)
        dropped = kernels.attention(qkv, cu_seqlens, longest, 0.5)
        kept = kernels.attention(qkv, cu_seqlens, longest, 0.0)
        assert not torch.allclose(dropped, kept, atol=1e-2)

    def test_linears_and_norm(self, name):
        kernels = usable(name)
        torch.manual_seed(0)
        layer, other, norm = nn.Linear(6, 4), nn.Linear(6, 3), nn.LayerNorm(4, eps=0.5)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        x, residual = torch.randn(2, 5, 6)
        residual = residual[:, :4].contiguous()
        products = [x @ linear.weight.T + linear.bias for linear in (layer, other)]
        alone = nn.Linear(6, 4)
        alone.load_state_dict(layer.state_dict())
        with torch.no_grad():
            side_by_side = kernels.linear(x, kernels.prepare(layer, other))
            weights = kernels.prepare(alone)
            product = products[0]
            close = {"rtol": 0, "atol": 1e-6}
            assert torch.allclose(side_by_side, torch.cat(products, dim=-1), **close)
            assert torch.allclose(kernels.linear(x, weights), product, **close)
            gelu = product * 0.5 * (1 + torch.erf(product / 2**0.5))
            assert torch.allclose(kernels.linear_gelu(x, weights), gelu, **close)
            assert torch.allclose(kernels.layer_norm(product, norm), normed(product, norm), **close)
            added = kernels.linear_residual_norm(x, weights, residual, norm, 0.0)
            assert torch.allclose(added, normed(residual + product, norm), **close)
            if not kernels.trainable:
                with pytest.raises(ValueError, match="dropout is not 0"):
                    kernels.linear_residual_norm(x, weights, residual, norm, 0.5)
                return
            torch.manual_seed(0)
            dropped = kernels.linear_residual_norm(x, weights, residual, norm, 0.5)
            torch.manual_seed(0)
            expected = normed(residual + torch.nn.functional.dropout(product, 0.5), norm)
        assert torch.allclose(dropped, expected, **close)
        assert not torch.allclose(dropped, added, atol=1e-2)


@pytest.mark.parametrize("name", IN_FLOAT32)
def test_no_text_sees_another(dialect, name):
    """Change text B: text A keeps its bits under plain, and under the others as well."""
    usable(name)
    encoder = tiny_encoder(dialect).prepare_for_inference(kernels=name)
    a, b, other_b = [0, 7, 8, 9, 2], [0, 20, 21, 2], [0, 90, 91, 2]
    one, two = (encoder(pack([a, text, a], encoder.config)) for text in (b, other_b))
    assert torch.equal(one[:5], two[:5])
    assert torch.equal(one[9:], two[9:])
    assert not torch.allclose(one[5:9], two[5:9], atol=0.1)


@pytest.mark.parametrize("name", IN_FLOAT32)
def test_the_kernels_that_run_are_those_that_were_chosen(dialect, name):
    usable(name)
    assert tiny_encoder(dialect).prepare_for_inference(kernels=name).kernels.name == name


def test_auto_takes_the_first_that_runs(dialect):
    for dtype in (torch.float32, torch.bfloat16):
        compiled = why_not(BACKENDS["native"], torch.device("cpu"), dtype) is None
        kernels = tiny_encoder(dialect).prepare_for_inference(dtype).kernels
        assert kernels.name == ("native" if compiled else "onednn")
    assert tiny_encoder(dialect).kernels.name == "sdpa"  # it is still trainable


def test_auto_says_once_that_it_fell_back(dialect, monkeypatch):
    monkeypatch.setattr(BACKENDS["native"], "unavailable", lambda *_: "there is no compiler")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # native is optional: nothing is said
        assert tiny_encoder(dialect).prepare_for_inference().kernels.name == "onednn"
    monkeypatch.setattr(BACKENDS["onednn"], "unavailable", lambda *_: "they have a cold")
    warn_once.cache_clear()
    with pytest.warns(UserWarning, match="runs on its sdpa kernels: onednn cannot be used: they h"):
        encoder = tiny_encoder(dialect).prepare_for_inference()
    assert encoder.kernels.name == "sdpa"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_encoder(dialect).prepare_for_inference()
        # Kernels that are not made for a dtype are no fall-back.
        assert tiny_encoder(dialect).prepare_for_inference(torch.float16).kernels.name == "sdpa"


def test_an_unknown_name_is_refused(dialect):
    with pytest.raises(ValueError, match=r"kernels is 'fast', expected 'auto' or one of \['cuda'"):
        tiny_encoder(dialect).prepare_for_inference(kernels="fast")


def test_a_name_that_cannot_run_is_refused_with_the_reason(dialect):
    with pytest.raises(
        ValueError,
        match=r"kernels .onednn. cannot be used: they are for float32 and bfloat16 and int8 on cpu",
    ):
        tiny_encoder(dialect).prepare_for_inference(torch.float64, kernels="onednn")


def test_weights_that_kernels_have_taken_are_taken_once(dialect, tmp_path):
    encoder = tiny_encoder(dialect).prepare_for_inference(kernels="onednn")
    with pytest.raises(ValueError, match="the encoder holds no weights: it was prepared"):
        encoder.prepare_for_inference(kernels="sdpa")
    with pytest.raises(ValueError, match="no weights to save: prepare_for_inference gave them to"):
        save_checkpoint(encoder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_where_there_is_amx_onednn_takes_what_it_uses_amx_for(monkeypatch):
    monkeypatch.setattr(kernels, "has_amx", lambda: True)
    dtypes = (torch.float32, torch.int8, torch.bfloat16)
    assert [kernels.preferred(dtype)[0].name for dtype in dtypes] == ["cuda", "cuda", "onednn"]
    assert all(set(kernels.preferred(dtype)) == set(BACKENDS.values()) for dtype in dtypes)
    dtype = torch.bfloat16
    usable("native", dtype), usable("onednn", dtype)
    warn_once.cache_clear()
    assert select("auto", dtype=dtype).name == "onednn"
    assert kernels.describe("onednn", torch.device("cpu"), dtype) == "onednn"
    with monkeypatch.context() as without:
        without.setattr(BACKENDS["onednn"], "unavailable", lambda *_: "it is broken")
        with pytest.warns(UserWarning, match="onednn cannot be used: it is broken"):
            assert select("auto", dtype=dtype).name == "native"
    monkeypatch.setattr(kernels, "has_amx", lambda: False)
    assert select("auto", dtype=dtype).name == "native"
