"""Linear layers in int8 on the CPU, everything between them in float32.

Weights have one scale an output channel (see int8_rows.py). Activations have a scale and a
zero point a token, taken from the token's own smallest and largest number: one scale for all
tokens, as libraries commonly have it, loses ten times more on E5, whose `<s>` has numbers ten
times larger than other tokens have (e5-small, worst cosine to float32 over 208 texts: .981 with
one scale, .9984 with one a token, .9994 with a zero point as well; 2026-11).

With x ≈ scale · (q - zero_point) and W ≈ channel · I, a product is
    x W^T + b ≈ scale · (channel · q I^T - zero_point · channel · sum(I)) + b
of which oneDNN computes `channel · q I^T`, exactly before the scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from e5core.kernels.int8_rows import quantized_weight
from e5core.kernels.plain import StaysHere
from e5core.kernels.row_counts import fill_rows, own_rows, row_count

# Steps between a token's smallest and largest number. The numbers become uint8, because oneDNN has
# no fast path for int8 there. With 255 steps the largest could become 256: its own rounding and
# that of the zero point may both go up by half a step.
STEPS = 254

SMALLEST_SCALE = 1e-30  # of a token of zeros; its reciprocal is still finite

# A float32 of this size has whole numbers for steps, and its lowest byte counts them modulo 256:
# adding it rounds, and the byte is the result. round() and a cast take twice as long.
ROUNDER = 1.5 * 2**23


@dataclass(frozen=True)
class Int8Linear(StaysHere):
    """Linears that are multiplied together; channel, row_sum and bias are [outputs] float32.

    row_sum  -channel · sum(I), what a zero point of 1 takes off each output
    """

    weight: Tensor
    channel: Tensor
    zero_point: Tensor
    row_sum: Tensor
    bias: Tensor

    def product(self, x: Tensor, then: str = "none", residual: Tensor | None = None) -> Tensor:
        """x W^T + b in float32, then "none", "gelu" (the exact one) or "add" of a residual

        No addcmul or addr: torch computes them with one rounding or two, depending on where the
        work is split between threads, and a text's bits would depend on its batch.
        """
        rows = row_count(x.shape[0])
        q, scale, zero_point = quantize_tokens(fill_rows(x, rows))
        output: Tensor = torch.ops.onednn.qlinear_pointwise(
            q, 1.0, 0, self.weight, self.channel, self.zero_point,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        output.mul_(scale).add_((scale * zero_point) * self.row_sum).add_(self.bias)
        if then == "gelu":
            torch.ops.aten.gelu_(output)
        output = own_rows(output, x)
        return output if residual is None else output.add_(residual)


def prepare(linears: Sequence[nn.Linear], rows: int) -> Int8Linear:
    """Linears in float, or quantised already: int8 with their `weight_scale`.

    rows  of x, for which oneDNN chooses its layout
    """
    pairs = [quantized_weight(linear) for linear in linears]
    integers, channel = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
    return Int8Linear(
        weight=torch.ops.onednn.qlinear_prepack(integers, [rows, integers.shape[1]]),
        channel=channel,
        zero_point=torch.zeros(len(channel), dtype=torch.int32),
        row_sum=-channel * integers.sum(dim=1),
        bias=torch.cat([linear.bias.detach().float() for linear in linears]),
    )


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[tokens, features] float32 as uint8, with the scale and the zero point [tokens, 1] of each.

    x ≈ scale · (q - zero_point), at most half a scale away; the range always reaches to 0, so
    that a constant token has one too.
    """
    smallest = x.amin(dim=1, keepdim=True).clamp_(max=0)
    largest = x.amax(dim=1, keepdim=True).clamp_(min=0)
    scale = ((largest - smallest) / STEPS).clamp_(min=SMALLEST_SCALE)
    steps = scale.reciprocal()
    zero_point = (-smallest * steps).round_()
    rounded = (x * steps).add_(zero_point + ROUNDER)
    return rounded.view(torch.int32).to(torch.uint8), scale, zero_point
