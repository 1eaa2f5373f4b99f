"""What training on a CPU does between its products, in C++: see training.h."""

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from e5core.kernels.native import kind_of, library
from e5core.kernels.native.library import Dropout
from e5core.kernels.threads import thread_count

CHANCES = 1 << 32  # a probability is a multiple of 1 / CHANCES


class DenseTexts(NamedTuple):
    """Neighbouring texts that are one dense batch, padded to one length."""

    lengths: tuple[int, ...]
    heads: int
    length: int

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


class Weighing(NamedTuple):
    """How scores of dense texts become weights: softmax(scores · factor), then dropout."""

    texts: DenseTexts
    factor: float
    probability: float
    seed: int


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
    """Steps of training_attention.py, and dropout."""

    def __init__(self, dtype: torch.dtype, instructions: str | None = None) -> None:
        kind = kind_of(dtype, instructions)
        self.dtype = dtype
        self.kind = kind.number
        self.library = library.load(kind, instructions)

    def spread(self, x: Tensor, texts: DenseTexts) -> Tensor:
        x = x.contiguous()
        self._check(x)
        _, n, heads, size = x.shape
        dense = x.new_empty(n, len(texts.lengths) * heads, texts.length, size)
        self.library.e5core_spread(
            x.data_ptr(), dense.data_ptr(), _structure(texts), n, size * x.itemsize, thread_count()
        )
        return dense

    def gather(self, dense: Tensor, texts: DenseTexts, x: Tensor) -> None:
        self._check(dense, x)
        n, _, _, size = dense.shape
        self.library.e5core_gather(
            dense.data_ptr(), x.data_ptr(), _structure(texts), n, size * x.itemsize, thread_count()
        )

    def weigh(self, scores: Tensor, how: Weighing) -> tuple[Tensor, Tensor]:
        self._check(scores)
        kept = torch.empty_like(scores) if how.probability else scores
        self.library.e5core_weigh(
            self.kind, scores.data_ptr(), kept.data_ptr(), _structure(how.texts), how.factor,
            dropout(how.probability, how.seed), thread_count(),
        )  # fmt: skip
        return scores, kept

    def weigh_gradient(
        self, weights: Tensor, gradient: Tensor, how: Weighing
    ) -> tuple[Tensor, Tensor]:
        self._check(weights, gradient)
        kept = torch.empty_like(weights) if how.probability else weights
        self.library.e5core_weigh_gradient(
            self.kind, weights.data_ptr(), gradient.data_ptr(), kept.data_ptr(),
            _structure(how.texts), how.factor, dropout(how.probability, how.seed), thread_count(),
        )  # fmt: skip
        return gradient, kept

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


def _structure(texts: DenseTexts) -> library.DenseTexts:
    lengths = (ctypes.c_int32 * len(texts.lengths))(*texts.lengths)
    found = library.DenseTexts(
        ctypes.cast(lengths, ctypes.c_void_p), len(lengths), texts.heads, texts.length
    )
    found.memory = lengths  # which lives as long as this
    return found
