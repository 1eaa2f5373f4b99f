"""Weights in int8, with one scale for each row of a matrix.

A row is an output channel of a linear layer, or a token of the token table. Its integers are
symmetric about 0 and reach from -127 to 127. A value is scale · integer, and its error is at most
half a scale.
"""

import torch
from torch import Tensor, nn

LARGEST_INTEGER = 127  # of a row of weights; -128 is left out, so that a row is symmetric


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix [rows, columns] of any float as integers [rows, columns] int8 and scales [rows].

    Scales are float32; those of rows of zeros are 1.
    """
    largest = torch.maximum(weight.amax(dim=1), -weight.amin(dim=1)).float()
    scales = torch.where(largest > 0, largest / LARGEST_INTEGER, torch.ones_like(largest))
    return (weight / scales[:, None]).round_().to(torch.int8), scales


def dequantize_rows(integers: Tensor, scales: Tensor) -> Tensor:
    """The float32 values of what quantize_rows returns."""
    return integers.float() * scales[:, None]


def quantized_weight(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Integers and scales of a linear that a file holds in int8 already, or made now."""
    if linear.weight.dtype == torch.int8:
        scales: Tensor = linear.get_buffer("weight_scale")
        return linear.weight, scales
    return quantize_rows(linear.weight.detach())
