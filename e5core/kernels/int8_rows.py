"""Weights in int8, with one scale for each row of a matrix.

A row is an output channel of a linear layer, or a token of the token table. Its integers are
symmetric about 0 and reach from -127 to 127. A value is scale · integer, and its error is at most
half a scale.

Kernels that add up four products in 16 bits also have a largest sum: no four integers that meet
there may be larger together, signs aside. The scales of such a row are twice as large in e5-small,
which takes its mean cosine to float32 from .9997 to .9995 (2026-11).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST_INTEGER = 127  # of a row of weights; -128 is left out, so that a row is symmetric


def quantize_rows(weight: Tensor, largest_sum: int = 0) -> tuple[Tensor, Tensor]:
    """A matrix [rows, columns] of any float as integers [rows, columns] int8 and scales [rows].

    Scales are float32; those of rows of zeros are 1.

    largest_sum  of the sizes of four integers that meet in 16 bits; 0 for no limit
    """
    largest = torch.maximum(weight.amax(dim=1), -weight.amin(dim=1)).float()
    scales = torch.where(largest > 0, largest / LARGEST_INTEGER, torch.ones_like(largest))
    if largest_sum:
        exceeds = largest_sum_of_four((weight / scales[:, None]).round_()) > largest_sum
        # Rounding adds at most 1/2 to each of the four.
        reduced = largest_sum_of_four(weight.float()) / (largest_sum - 2)
        scales = torch.where(exceeds, reduced, scales)
    return (weight / scales[:, None]).round_().to(torch.int8), scales


def largest_sum_of_four(weight: Tensor) -> Tensor:
    """The largest of a row's sums, signs aside, of four numbers that meet in 16 bits: [rows].

    Of eight neighbours the first two of each half meet, and the last two of each half.
    """
    eights = F.pad(weight.abs(), (0, -weight.shape[1] % 8)).view(len(weight), -1, 2, 2, 2)
    return eights.sum(dim=(2, 4)).flatten(1).amax(dim=1)


def dequantize_rows(integers: Tensor, scales: Tensor) -> Tensor:
    """The float32 values of what quantize_rows returns."""
    return integers.float() * scales[:, None]


def quantized_weight(linear: nn.Linear, largest_sum: int = 0) -> tuple[Tensor, Tensor]:
    """Integers and scales of a linear that a file holds in int8 already, or made now.

    With a largest sum, as in quantize_rows, rows of a file that exceed it are quantised anew.
    """
    if linear.weight.dtype == torch.int8:
        scales: Tensor = linear.get_buffer("weight_scale")
        if not largest_sum:
            return linear.weight, scales
        return quantize_rows(dequantize_rows(linear.weight, scales), largest_sum)
    return quantize_rows(linear.weight.detach(), largest_sum)
