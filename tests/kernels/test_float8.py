"""Linear layers in float8: rows with scales, products, the quality of the whole encoder."""

import pytest
import torch
import torch.nn.functional as F
from support.gpu import DEVICE, normal
from torch import nn

from e5core import E5, Encoder, EncoderConfig
from e5core.kernels import Kernels, select
from e5core.kernels.cuda import float8
from e5core.kernels.cuda.float8 import FLOAT8, LARGEST
from e5core.kernels.cuda.operations import CudaKernels, _triton_kernels
from e5core.parity.samples import QUERIES, SENTENCES
from e5core.parity.tolerances import INT8_MEAN_COSINE, INT8_WORST_COSINE

STEP = 2**-3  # between neighbouring numbers of float8, by the smaller one's power of two

# torch has it on CPUs (2.6 has none, 2.13 has it), and on GPUs in all versions.
HAS_PRODUCT = torch._C._dispatch_has_kernel_for_dispatch_key("aten::_scaled_mm", DEVICE.upper())
multiplies = pytest.mark.skipif(not HAS_PRODUCT, reason="this torch has no product for a CPU")


def linear(inputs, outputs, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs).to(DEVICE)


def values(rows):
    return rows.values.double() * rows.scales


@pytest.fixture(params=[True, False], ids=["triton", "torch"])
def kernels(request, monkeypatch):
    if request.param:
        pytest.importorskip("triton", reason="triton is not installed")
    else:
        monkeypatch.setattr("e5core.kernels.cuda.operations._triton_kernels", lambda: None)
    return CudaKernels(FLOAT8)


def test_rows_keep_their_largest_number_and_the_size_of_all():
    x = normal(50, 64) * torch.logspace(-9, 9, 50, device=DEVICE)[:, None].to(torch.bfloat16)
    rows = float8.to_rows(x)
    wide = x.double()
    assert rows.values.float().abs().amax(dim=1).eq(LARGEST).all()
    # Half a step of the numbers that are not too small for their row.
    error = (values(rows) - wide).abs()
    assert (error <= wide.abs() * STEP / 2 + rows.scales * 2**-10).all()


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("features", [16, 384, 1536])
def test_rows_in_triton(features, gelu):
    triton = pytest.importorskip("triton", reason="triton is not installed") and _triton_kernels()
    x, bias = 3 * normal(9, features), normal(features, seed=1)
    x[4] = 0.0
    found = triton.float8_rows(x, bias if gelu else None)
    exact = F.gelu(x.float() + bias.float()) if gelu else x.float()
    expected = float8.to_rows(exact)
    assert torch.allclose(found.scales, expected.scales, rtol=1e-5, atol=0)
    other = found.values.float() != expected.values.float()
    # Triton's interpreter (3.9) drops the carry where rounding reaches the next power of two.
    assert other.float().mean() <= (0.05 if DEVICE == "cpu" else 0.002)


@multiplies
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 200])
def test_products(rows, biased):
    """Those of the numbers that stand in the rows, up to what bfloat16 rounds."""
    layers = linear(64, 48), linear(64, 32, seed=1)
    weights = float8.prepare(layers, torch.bfloat16, float8.to_rows)
    x = normal(rows, 64, seed=2)
    inner = float8.to_rows(x)
    stored = weights.weight.double() * weights.scales.t()
    exact = values(inner) @ stored.t() + (weights.bias.double() if biased else 0.0)
    found = weights.product(x, biased)
    assert found.dtype == torch.bfloat16
    assert (found - exact).abs().max() <= 2**-8 * exact.abs().max()
    # The weights are those of the linears, one scale an output.
    linears = torch.cat([layer.weight for layer in layers]).double()
    assert ((stored - linears).abs() <= linears.abs() * STEP / 2 + 1e-4).all()


@multiplies
def test_the_feed_forward_network_is_that_of_its_parts(kernels):
    inner, outer = linear(64, 256), linear(256, 64, seed=1)
    norm = nn.LayerNorm(64).to(DEVICE, torch.bfloat16).requires_grad_(False)
    x = normal(11, 64, seed=2)
    exact = Kernels(torch.float64).feed_forward(
        x.double(), (inner.double(),), (outer.double(),), norm.double(), 0.0
    )
    weights = [kernels.prepare(layer) for layer in (inner.float(), outer.float())]
    norm = norm.to(torch.bfloat16)
    found = kernels.feed_forward(x, *weights, norm, 0.0)
    parts = kernels.linear_residual_norm(
        kernels.linear_gelu(x, weights[0]), weights[1], x, norm, 0.0
    )
    assert found.dtype == torch.bfloat16
    # Of numbers of the size of 1 whose products are off by a thirtieth here and there.
    assert (found - exact).abs().mean() < 0.02
    assert (found - parts).abs().float().mean() < 0.01
    with pytest.raises(ValueError, match="dropout is not 0"):
        kernels.feed_forward(x, *weights, norm, 0.1)


@multiplies
def test_quality_of_real_small(real_folder, measured, monkeypatch):
    """Against float32 with the gates of int8; in torch's operators where there is no GPU."""
    if DEVICE == "cpu":
        monkeypatch.setattr("e5core.kernels.cuda.operations._triton_kernels", lambda: None)
    texts = SENTENCES + QUERIES
    exact = E5.from_pretrained(real_folder, device="cpu")
    expected = exact.encode_query(texts)
    model = E5.from_pretrained(real_folder, device=DEVICE, kernels="plain")
    encoder = model.encoder.prepare_for_inference(kernels=CudaKernels(FLOAT8))
    found = E5(encoder, model.tokenizer, prompts=model.prompts).encode_query(texts)
    assert encoder.dtype == torch.bfloat16
    cosines = (expected * found).sum(axis=1)
    measured(f"real small in float8: mean cosine {cosines.mean():.5f}, worst {cosines.min():.5f}")
    assert cosines.mean() >= INT8_MEAN_COSINE
    assert cosines.min() >= INT8_WORST_COSINE


def test_features_that_the_product_does_not_take(kernels):
    with pytest.raises(ValueError, match="24 inputs and 48 outputs, float8 takes multiples of 16"):
        kernels.prepare(linear(24, 48))


@pytest.mark.skipif(DEVICE == "cuda", reason="about machines without a GPU")
def test_a_cpu_has_none(real_folder):
    with pytest.raises(ValueError, match="no kernels run in float8_e4m3fn on cpu: it needs cuda"):
        E5.from_pretrained(real_folder, dtype="float8")
    with pytest.raises(ValueError, match="no kernels run in float8_e4m3fn on cpu"):
        select("auto", "cpu", FLOAT8)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs an NVIDIA GPU")
def test_auto_takes_them_on_a_gpu():
    encoder = Encoder(EncoderConfig("bert", 100, 64, 2, 2, 128, 16, 0, 2, 1e-12)).to("cuda")
    encoder.prepare_for_inference(FLOAT8)
    assert encoder.kernels.name == "cuda"
    assert encoder.dtype == torch.bfloat16
