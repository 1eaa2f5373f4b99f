"""Whether kernels whose operators are private to torch, or compiled on the spot, can be used.

Every operation is called on a small input before anything depends on it: it must be there, right
and not slow.
"""

import copy
import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e5core.kernels.plain import Kernels

HEADS, HEAD_SIZE = 2, 32
HIDDEN_SIZE = HEADS * HEAD_SIZE
LENGTHS = (5, 16, 1)  # tokens of each text

# A reference path without vector instructions is hundreds of times slower than F.linear; a
# working one is never this much slower, on a busy machine either.
MAX_SLOWDOWN = 10


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


def slowness(kernels: Kernels) -> str | None:
    """Why the products of the kernels on a CPU are too slow to be used; None if they are not."""
    dtype = kernels.hidden_dtype
    linear, x = nn.Linear(128, 128, dtype=dtype), torch.ones(64, 128, dtype=dtype)
    with torch.inference_mode():
        limit = MAX_SLOWDOWN * _fastest(lambda: F.linear(x, linear.weight, linear.bias))
        weights = kernels.prepare(linear)
        seconds = _fastest(lambda: kernels.linear(x, weights), limit)
    if seconds > limit:
        times = MAX_SLOWDOWN * seconds / limit
        return f"their products in {kernels.dtype} take {times:.0f} times as long as torch's"
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
    pool = kernels.pooling("mean", x.device)
    if pool is None:
        pooled = torch.stack([states.mean(dim=0) for states in normed.split(LENGTHS)])
    else:
        pooled = pool(normed, cu_seqlens)
    return torch.cat([part.double().flatten() for part in (qkv, context, inner, normed, pooled)])


def _fastest(call: Callable[[], object], enough: float = 0.0) -> float:
    """Seconds of the fastest of a few calls, after one to warm up.

    enough  seconds at which there is no need to go on: on a busy machine threads wait for each
            other for milliseconds, in nearly all of a few calls
    """
    call()
    seconds: list[float] = []
    while len(seconds) < (50 if enough else 3) and min(seconds, default=math.inf) > enough:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
