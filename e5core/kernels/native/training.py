"""What training on a CPU does beside the products of linears, in C++: see training.h and
attention_gradient.h.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from e5core.kernels.native import kind_of, library
from e5core.kernels.native.library import BFLOAT16, FLOAT32, Dropout, Texts
from e5core.kernels.threads import thread_count

CHANCES = 1 << 32  # a probability is a multiple of 1 / CHANCES


@cache
def steps(dtype: torch.dtype) -> "Steps | None":
    """What is in C++ for states of a dtype; None if it takes no such, or was not compiled."""
    if dtype not in (torch.float32, torch.bfloat16) or library.missing():
        return None
    return None if library.unsupported(kind_of(dtype)) else Steps(dtype)


def dropout(probability: float, seed: int) -> Dropout:
    """How C++ drops numbers; of the seed 64 bits count."""
    threshold = min(round(probability * CHANCES), CHANCES - 1)
    scale = 1 / (1 - threshold / CHANCES)
    return Dropout((seed & 0xFFFFFFFF, seed >> 32), threshold, scale)


class Steps:
    """What is in C++ for one dtype."""

    def __init__(self, dtype: torch.dtype, instructions: str | None = None) -> None:
        kind = kind_of(dtype, instructions)
        self.dtype = dtype
        self.kind = kind.number
        self.attention_kind = (BFLOAT16 if kind is BFLOAT16 else FLOAT32).number
        self.library = library.load(kind, instructions)

    def attention(self, qkv: Tensor, lengths: Sequence[int], how: Dropout) -> tuple[Tensor, Tensor]:
        """[tokens, heads, head_size] of qkv [tokens, 3, heads, head_size], and for the gradient the
        logarithms of the sums of each softmax, [heads, tokens]."""
        self._check(qkv)
        tokens, _, heads, size = qkv.shape
        if sum(lengths) != tokens:
            raise ValueError(f"texts have {sum(lengths)} tokens, and qkv has {tokens}")
        output = qkv.new_empty(tokens, heads, size)
        log_sums = qkv.new_empty(heads, tokens, dtype=torch.float32)
        self.library.e5core_attention_forward(
            self.kind, self.attention_kind, qkv.data_ptr(), _texts(lengths, heads, size), how,
            log_sums.data_ptr(), output.data_ptr(), thread_count(),
        )  # fmt: skip
        return output, log_sums

    def attention_gradient(
        self,
        qkv: Tensor,
        lengths: Sequence[int],
        how: Dropout,
        output: Tensor,
        log_sums: Tensor,
        gradient: Tensor,
    ) -> Tensor:
        """The gradient of qkv, from what `attention` gave and the gradient of its output."""
        gradient = gradient.contiguous()
        self._check(qkv, output, gradient)
        of_qkv = torch.empty_like(qkv)
        self.library.e5core_attention_backward(
            self.kind, self.attention_kind, qkv.data_ptr(), _texts(lengths, *qkv.shape[2:]), how,
            log_sums.data_ptr(), output.data_ptr(), gradient.data_ptr(), of_qkv.data_ptr(),
            thread_count(),
        )  # fmt: skip
        return of_qkv

    def gelu(self, x: Tensor) -> Tensor:
        self._check(x)
        found = torch.empty_like(x)
        self.library.e5core_gelu(
            self.kind, x.data_ptr(), found.data_ptr(), x.numel(), thread_count()
        )
        return found

    def gelu_gradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        self._check(x, gradient)
        self.library.e5core_gelu_gradient(
            self.kind, x.data_ptr(), gradient.data_ptr(), x.numel(), thread_count()
        )
        return gradient

    def add_dropped(self, residual: Tensor, x: Tensor, how: Dropout) -> Tensor:
        """residual [float32] + dropout(x)"""
        residual, x = residual.contiguous(), x.contiguous()
        self._check(x)
        total = torch.empty_like(residual)
        self.library.e5core_add_dropped(
            self.kind, residual.data_ptr(), x.data_ptr(), x.numel(), how, total.data_ptr(),
            thread_count(),
        )  # fmt: skip
        return total

    def drop(self, gradient: Tensor, how: Dropout) -> Tensor:
        """The gradient of x from that of `add_dropped`, which is in float32."""
        gradient = gradient.contiguous()
        of_x = torch.empty_like(gradient, dtype=self.dtype)
        self.library.e5core_drop(
            self.kind, gradient.data_ptr(), gradient.numel(), how, of_x.data_ptr(), thread_count()
        )
        return of_x

    def _check(self, *tensors: Tensor) -> None:
        """Raises ValueError for tensors that C++ would misread."""
        for tensor in tensors:
            if tensor.dtype != self.dtype or not tensor.is_contiguous():
                raise ValueError(
                    f"a tensor of {list(tensor.shape)} is {tensor.dtype} with strides "
                    f"{tensor.stride()}, expected {self.dtype}, one row after another"
                )


class Gelu(torch.autograd.Function):
    """The exact GELU, where `steps` has x's dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.steps = steps(x.dtype)
        found: Tensor = ctx.steps.gelu(x)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        found: Tensor = ctx.steps.gelu_gradient(*ctx.saved_tensors, gradient)
        return found


class AddDropped(torch.autograd.Function):
    """residual + dropout(x), where `steps` has x's dtype and the residual is in float32."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, probability: float, seed: int) -> Tensor:
        ctx.steps, ctx.how = steps(x.dtype), dropout(probability, seed)
        total: Tensor = ctx.steps.add_dropped(residual, x, ctx.how)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return gradient, ctx.steps.drop(gradient, ctx.how), None, None


class Attention(torch.autograd.Function):
    """training_attention.attention, where `steps` has the dtype."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, lengths: tuple[int, ...], probability: float, seed: int
    ) -> Tensor:
        qkv = qkv.contiguous()
        ctx.steps, ctx.lengths, ctx.how = steps(qkv.dtype), lengths, dropout(probability, seed)
        found: tuple[Tensor, Tensor] = ctx.steps.attention(qkv, lengths, ctx.how)
        ctx.save_for_backward(qkv, *found)
        return found[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        qkv, output, log_sums = ctx.saved_tensors
        args = qkv, ctx.lengths, ctx.how, output, log_sums, gradient
        found: Tensor = ctx.steps.attention_gradient(*args)
        return found, None, None, None


def _texts(lengths: Sequence[int], heads: int, size: int) -> Texts:
    starts = (ctypes.c_int32 * (len(lengths) + 1))(*accumulate(lengths, initial=0))
    found = Texts(ctypes.cast(starts, ctypes.c_void_p), len(lengths), heads, size)
    found.memory = starts  # which lives as long as this
    return found
