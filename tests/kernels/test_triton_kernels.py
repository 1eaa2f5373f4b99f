"""The Triton kernels against float64: on a GPU, or on CPU tensors by Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F
from support.gpu import DEVICE, normal
from support.models import tiny_encoder
from torch import nn

from e5core import mean_pool, pack
from e5core.kernels import Kernels
from e5core.kernels.cuda.operations import CudaKernels, _triton_kernels
from e5core.parity.tolerances import KERNEL_ERROR_FLOOR

pytest.importorskip("triton", reason="triton is not installed")

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
FEATURES = [24, 384, 1024, 1536]  # whole blocks of a power of two and others


@pytest.fixture(scope="module")
def kernels():
    module = _triton_kernels()
    assert module is not None
    return module


def layer_norm(features, dtype):
    norm = nn.LayerNorm(features, eps=1e-5).to(DEVICE, dtype)
    norm.requires_grad_(False)
    norm.weight.copy_(normal(features, dtype=dtype, seed=3))
    norm.bias.copy_(normal(features, dtype=dtype, seed=4))
    return norm


def check(found, exact, plain):
    """FlashAttention's rule: at most twice the error of torch in the same dtype, and a floor."""
    assert found.dtype == plain.dtype
    floor = KERNEL_ERROR_FLOOR[str(plain.dtype)[6:]]
    if DEVICE == "cpu" and plain.dtype == torch.bfloat16:
        # Triton's interpreter (3.9) cuts a float32 down to a bfloat16 where a GPU rounds it.
        floor += torch.finfo(plain.dtype).eps * exact.abs().max()
    bound = 2 * (plain - exact).abs().max() + floor
    assert (found.double() - exact).abs().max() <= bound


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_gelu(kernels, dtype, features):
    x, bias = 3 * normal(7, features, dtype=dtype), normal(features, dtype=dtype, seed=1)
    exact = F.gelu(x.double() + bias.double())
    found = kernels.bias_gelu_(x.clone(), bias)
    check(found, exact, F.gelu(x + bias))
    # The exact GELU, not the one with tanh, where the dtype can tell them apart.
    if dtype == torch.float32:
        tanh = F.gelu(x.double() + bias.double(), approximate="tanh")
        assert (found - exact).abs().max() < 0.1 * (tanh - exact).abs().max()


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_residual_norm(kernels, dtype, features):
    x, residual = normal(2, 5, features, dtype=dtype).unbind()
    bias, norm = normal(features, dtype=dtype, seed=1), layer_norm(features, dtype)
    wide = x.double() + bias.double() + residual.double()
    exact = F.layer_norm(wide, (features,), norm.weight.double(), norm.bias.double(), norm.eps)
    plain = F.layer_norm(x + bias + residual, (features,), norm.weight, norm.bias, norm.eps)
    found = kernels.residual_norm_(x.clone(), bias, residual, norm)
    check(found, exact, plain)
    for changed in ((x + 1, bias, residual), (x, bias + 3 * x[0], residual), (x, bias, -residual)):
        assert not torch.allclose(
            kernels.residual_norm_(changed[0].clone(), *changed[1:], norm), found, atol=0.05
        ) or (
            changed[0] is not x  # a constant shift of a row vanishes in its LayerNorm
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_of_a_row_far_from_zero(kernels, dtype):
    """The variance is taken from x - mean: as E(x²) - mean² it would be lost here."""
    x = (100 + normal(3, 384, dtype=torch.float32)).to(dtype)
    zero, norm = torch.zeros(384, dtype=dtype, device=DEVICE), layer_norm(384, dtype)
    exact = F.layer_norm(x.double(), (384,), norm.weight.double(), norm.bias.double(), norm.eps)
    found = kernels.residual_norm_(x.clone(), zero, torch.zeros_like(x), norm)
    check(found, exact, F.layer_norm(x, (384,), norm.weight, norm.bias, norm.eps))


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_embed_norm(kernels, dtype, features):
    word, position = normal(50, features, dtype=dtype), normal(9, features, dtype=dtype, seed=1)
    token_type, norm = normal(2, features, dtype=dtype, seed=2), layer_norm(features, dtype)
    ids = torch.tensor([0, 49, 7, 7, 1], device=DEVICE)
    positions = torch.tensor([2, 3, 8, 0, 2], device=DEVICE)
    wide = word[ids].double() + token_type[0].double() + position[positions].double()
    exact = F.layer_norm(wide, (features,), norm.weight.double(), norm.bias.double(), norm.eps)
    plain = Kernels().embed(ids, positions, word, position, token_type, norm)
    check(kernels.embed_norm(ids, positions, word, position, token_type, norm), exact, plain)


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")  # a text of none
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_pool(kernels, dtype, features):
    """Texts of less than a tile of tokens, of whole ones and of several, and one of none."""
    lengths = [1, 31, 32, 33, 100, 64]
    states = 3 * normal(sum(lengths), features, dtype=dtype) + 1
    cu_seqlens = torch.tensor([0, *lengths], device=DEVICE).cumsum(0).int()
    exact = torch.stack([text.double().mean(0) for text in states.split(lengths)])
    plain = torch.stack([text.float().mean(0) for text in states.split(lengths)])
    found = kernels.mean_pool(states, cu_seqlens)
    check(found, exact, plain)
    assert torch.equal(kernels.mean_pool(states[1:33], cu_seqlens[1:4] - 1)[:1], found[1:2])
    none = kernels.mean_pool(states, torch.tensor([0, 5, 5], device=DEVICE).int())
    assert none[0].isfinite().all()
    assert none[1].isnan().all()


@pytest.mark.parametrize("with_triton", [True, False])
def test_pooling_of_the_back_end(kernels, monkeypatch, with_triton):
    if not with_triton:
        monkeypatch.setattr("e5core.kernels.cuda.operations._triton_kernels", lambda: None)
    states = normal(40, 24, dtype=torch.bfloat16)
    cu_seqlens = torch.tensor([0, 1, 40], device=DEVICE).int()
    expected = mean_pool(states.cpu(), cu_seqlens.cpu())
    found = CudaKernels().pooling("mean", mean_pool, states.device)(states, cu_seqlens)
    assert found.dtype == torch.float32
    assert torch.allclose(found.cpu(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_encoder_of_them(kernels, dialect, dtype):
    """All layers through the back-end's own code; on a CPU attention is the grouped one."""
    ids = [[0, 7, 8, 9, 2], [0, 5, 2], [0, *range(10, 60), 2]]
    exact = tiny_encoder(dialect).double()
    batch = pack(ids, exact.config)
    with torch.inference_mode():
        expected = exact(batch)
        error = (
            tiny_encoder(dialect).prepare_for_inference(dtype, "plain")(batch) - expected
        ).abs()
        ours = tiny_encoder(dialect).to(DEVICE).prepare_for_inference(kernels=CudaKernels(dtype))
        assert ours.kernels.triton is kernels
        found = ours(batch.to(DEVICE))
    assert found.dtype == dtype
    assert (found.cpu() - expected).abs().max() <= 2 * error.max() + KERNEL_ERROR_FLOOR[
        str(dtype)[6:]
    ]


def test_without_triton_torch_does_it(kernels, dialect, monkeypatch):
    monkeypatch.setattr("e5core.kernels.cuda.operations._triton_kernels", lambda: None)
    encoder = tiny_encoder(dialect).to(DEVICE).prepare_for_inference(kernels=CudaKernels())
    batch = pack([[0, 7, 8, 9, 2], [0, 5, 2]], encoder.config).to(DEVICE)
    with torch.inference_mode():
        found = encoder(batch)
        expected = tiny_encoder(dialect).prepare_for_inference(torch.bfloat16, "plain")(
            batch.to("cpu")
        )
    assert encoder.kernels.triton is None
    assert (found.cpu() - expected).abs().max() < 0.1


def test_dropout_is_refused(kernels):
    ours = CudaKernels()
    qkv, cu_seqlens = normal(4, 3, 2, 8, dtype=torch.float32), torch.tensor([0, 4]).int()
    with pytest.raises(ValueError, match="dropout is not 0"):
        ours.attention(qkv, cu_seqlens.to(DEVICE), 4, 0.1)
    x, layer, norm = normal(4, 8, dtype=torch.float32), nn.Linear(8, 8), nn.LayerNorm(8)
    with pytest.raises(ValueError, match="dropout is not 0"):
        ours.linear_residual_norm(x, ours.prepare(layer.to(DEVICE)), x, norm.to(DEVICE), 0.1)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_auto_takes_them_on_a_gpu(dialect, dtype):
    encoder = tiny_encoder(dialect).to("cuda").prepare_for_inference(dtype)
    assert encoder.kernels.name == "cuda"
