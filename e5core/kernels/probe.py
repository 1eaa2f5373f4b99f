"""Whether kernels whose operators are private to torch, or compiled on the spot, can be used.

Every operation is called on a small input before anything depends on it: it must be there and
right. Nothing is timed, for what runs must not depend on how busy the machine is.
"""

import copy

import torch
from torch import Tensor, nn

from e5core.kernels.plain import Kernels

HEADS, HEAD_SIZE = 2, 32
HIDDEN_SIZE = HEADS * HEAD_SIZE
LENGTHS = (5, 16, 1)  # tokens of each text


class _Layer(nn.Module):
    """The modules that one call of every operation needs."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (
            nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE) for _ in range(4)
        )
        self.norm = nn.LayerNorm(HIDDEN_SIZE)


def fault(kernels: Kernels, device: torch.device, largest_error: float) -> str | None:
    """Why the kernels cannot be used on a device, as a sentence; None if they can.

    largest_error  that any number may have against float64, where most are of the size of 1
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(LENGTHS), HIDDEN_SIZE, generator=generator)
    x = x.to(device, kernels.hidden_dtype)
    layer = _Layer().to(device, kernels.hidden_dtype)
    try:
        with torch.inference_mode():
            expected = _outputs(Kernels(torch.float64), copy.deepcopy(layer).double(), x.double())
            error = (_outputs(kernels, layer, x) - expected).abs().max().item()
    except Exception as failure:  # whatever torch, a compiler or a driver raises
        reason = (str(failure).strip() or type(failure).__name__).splitlines()[0]
        return f"they fail in {kernels.dtype}: {reason}"
    if not error <= largest_error:
        return f"they are wrong in {kernels.dtype}, by {error:.1g}"
    return None


def _outputs(kernels: Kernels, layer: _Layer, x: Tensor) -> Tensor:
    """The results of all operations, and of the mean pooling, as one row of float64."""
    qkv_weights = kernels.prepare(layer.query, layer.key, layer.value)
    weights = kernels.prepare(layer.output)
    cu_seqlens = torch.tensor([0, *LENGTHS], device=x.device).cumsum(0).int()
    qkv = kernels.linear(x, qkv_weights)
    heads = qkv.view(-1, 3, HEADS, HEAD_SIZE)
    context = kernels.attention(heads, cu_seqlens, max(LENGTHS), 0.0).flatten(1)
    inner = kernels.linear_gelu(x, weights)
    normed = kernels.linear_residual_norm(inner, weights, x, layer.norm, 0.0)
    normed = kernels.feed_forward(normed, weights, weights, layer.norm, 0.0)
    pooled = kernels.pooling("mean", _means, x.device)(normed, cu_seqlens)
    return torch.cat([part.double().flatten() for part in (qkv, context, inner, normed, pooled)])


def _means(states: Tensor, cu_seqlens: Tensor) -> Tensor:
    return torch.stack([part.mean(dim=0) for part in states.split(LENGTHS)])
