"""FlashAttention 2 over packed texts, as torch carries it, with its gradient and dropout.

Source: Dao 2023, arXiv:2307.08691. torch's public function for it, varlen_attn, has no dropout,
came with torch 2.10, and launches a kernel more a layer; the operator behind it is private.
"""

from functools import cache

import torch
from torch import Tensor

from e5core.kernels.plain import Kernels

CAPABILITY = (8, 0)  # Ampere: FlashAttention 2 needs it
HEAD_SIZE = (8, 256)  # its multiple and its limit
DTYPES = (torch.bfloat16, torch.float16)
LARGEST_ERROR = 0.1  # of numbers of the size of 1, when it is tried in bfloat16


def takes(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether `attention` can be called with queries, keys and values of that kind."""
    multiple, limit = HEAD_SIZE
    fits = head_size % multiple == 0 and head_size <= limit
    return device.type == "cuda" and dtype in DTYPES and fits and _runs_on(device)


def attention(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float = 0.0) -> Tensor:
    """Kernels.attention. max_seqlen is taken at its word: to check it would wait for the GPU.

    A text without tokens is one of the packed texts like any other.
    """
    query, key, value = qkv.unbind(1)
    bounds = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    causal = returns_mask = False
    output: Tensor
    output, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, *bounds, dropout, causal, returns_mask
    )
    return output


@cache
def _runs_on(device: torch.device) -> bool:
    """Whether the GPU is new enough, and the operator there, with these arguments, and right."""
    if torch.cuda.get_device_capability(device) < CAPABILITY:
        return False
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 3, 1, 32, generator=generator).to(device, torch.bfloat16)
    bounds = torch.tensor([0, 1, 3], dtype=torch.int32, device=device)
    try:
        found = attention(qkv, bounds, 2)
    except torch.OutOfMemoryError:
        raise  # which says nothing about the operator
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):
        return False
    expected = Kernels().attention(qkv.double(), bounds, 2, 0.0)
    return bool((found - expected).abs().max() < LARGEST_ERROR)
