"""Linear layers in float8 (e4m3) on a GPU: a scale for each token and for each output.

A row is divided by a scale that brings its largest number to the largest of float8; the product is
multiplied by the scales of its row and its column. Between products everything is in bfloat16.
Source of the format: Micikevicius et al. 2022, arXiv:2209.05433.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from e5core.kernels.plain import StaysHere

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
SMALLEST_ROW = 1e-12  # the largest number that a row is taken to have at least
MULTIPLE = 16  # of the inputs and outputs that torch's product takes


class Rows(NamedTuple):
    """Rows in float8: values [rows, features], and scales [rows, 1] float32 that they count in."""

    values: Tensor
    scales: Tensor


def to_rows(x: Tensor) -> Rows:
    """x [rows, features], each row in float8 with a scale of its own."""
    wide = x.float()
    scales = wide.abs().amax(dim=1, keepdim=True).clamp(min=SMALLEST_ROW) / LARGEST
    return Rows((wide * (1 / scales)).to(FLOAT8), scales)


@dataclass(frozen=True)
class Float8Linear(StaysHere):
    """Linears that are multiplied together.

    weight    [outputs, inputs] float8, in units of scales [1, outputs] float32
    bias      [outputs], of the products' dtype
    incoming  brings an input to float8
    """

    weight: Tensor
    scales: Tensor
    bias: Tensor
    incoming: Callable[[Tensor], Rows]

    def product(self, x: Tensor, biased: bool = True) -> Tensor:
        """x W^T, + b if it is to be biased"""
        return self.product_of_rows(self.incoming(x), biased)

    def product_of_rows(self, x: Rows, biased: bool = True) -> Tensor:
        # Not with use_fast_accum, which keeps sums in fewer bits: large was 1.1 times as fast, and
        # the worst cosine of real e5-small .0004 lower (H200, 2026-11).
        return torch._scaled_mm(
            x.values, self.weight.t(), scale_a=x.scales, scale_b=self.scales,
            bias=self.bias if biased else None, out_dtype=self.bias.dtype,
        )  # fmt: skip


def prepare(
    linears: Sequence[nn.Linear], dtype: torch.dtype, incoming: Callable[[Tensor], Rows]
) -> Float8Linear:
    """Weights in float8 whose products are in a dtype.

    incoming  brings an input to float8, as to_rows does

    Raises ValueError for features in numbers that torch's product does not take.
    """
    weight = torch.cat([linear.weight.detach() for linear in linears])
    if any(features % MULTIPLE for features in weight.shape):
        outputs, inputs = weight.shape
        raise ValueError(
            f"a linear layer has {inputs} inputs and {outputs} outputs, float8 takes multiples of "
            f"{MULTIPLE}; choose bfloat16"
        )
    rows = to_rows(weight)
    bias = torch.cat([linear.bias.detach().to(dtype) for linear in linears])
    return Float8Linear(rows.values, rows.scales.t().contiguous(), bias, incoming)
