"""Linear layers in int8 on the CPU, everything between them in float32.

Weights have one scale an output channel (see quantization.py). Activations have a scale and a
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
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e5core.kernels import onednn
from e5core.kernels.int8_rows import quantize_rows
from e5core.kernels.plain import INFERENCE_ONLY

# Steps between a token's smallest and largest number, which become uint8 (oneDNN has no fast path
# for int8 there). Not 255: where zero point and largest number both end on half a step and both
# are rounded up, that is one more.
STEPS = 254

SMALLEST_SCALE = 1e-30  # of a token of zeros; its reciprocal is still finite

# A float32 of this size has whole numbers for steps, and its lowest byte counts them modulo 256:
# adding it rounds, and the byte is the result. round() and a cast take twice as long.
ROUNDER = 1.5 * 2**23


@dataclass(frozen=True)
class Int8Packed:
    """Layers that are called together; channel, row_sum and bias are [outputs] float32.

    row_sum  -channel · sum(I), what a zero point of 1 takes off each output
    """

    weight: Tensor
    channel: Tensor
    zero_point: Tensor
    row_sum: Tensor
    bias: Tensor


class Int8Kernels(onednn.OnednnKernels):
    name = "int8"
    dtypes: tuple[torch.dtype, ...] = (torch.int8,)

    def __init__(self) -> None:
        super().__init__()
        self._int8: dict[nn.Linear, Int8Packed] = {}

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        return _probe()

    def take(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        """Layers in float, or quantised already: int8 with their `weight_scale`."""
        pairs = [quantized_weight(layer) for layer in layers]
        integers, channel = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
        self._int8[layers[0]] = Int8Packed(
            weight=torch.ops.onednn.qlinear_prepack(integers, [onednn.ROWS, integers.shape[1]]),
            channel=channel,
            zero_point=torch.zeros(len(channel), dtype=torch.int32),
            row_sum=-channel * integers.sum(dim=1),
            bias=torch.cat([layer.bias.detach().float() for layer in layers]),
        )
        for layer in layers:
            layer.to("meta")

    def linear(self, x: Tensor, *layers: nn.Linear) -> Tensor:
        return _product(x, self._int8[layers[0]])

    def linear_gelu(self, x: Tensor, layer: nn.Linear) -> Tensor:
        product = self.linear(x, layer)
        torch.ops.aten.gelu_(product)
        return product

    def linear_residual_norm(
        self, x: Tensor, layer: nn.Linear, residual: Tensor, norm: nn.LayerNorm, dropout: float
    ) -> Tensor:
        if dropout:
            raise ValueError(INFERENCE_ONLY.format(self.name))
        return self.layer_norm(_product(x, self._int8[layer], residual), norm)

    def attention_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """bfloat16 where the CPU has it: its rounding is small beside that of int8."""
        return dtype if onednn.probe(torch.bfloat16) else torch.bfloat16


def quantized_weight(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """Integers and scales of a layer that a file holds in int8 already, or made now."""
    if layer.weight.dtype == torch.int8:
        scales: Tensor = layer.get_buffer("weight_scale")
        return layer.weight, scales
    return quantize_rows(layer.weight.detach())


def _product(x: Tensor, packed: Int8Packed, residual: Tensor | None = None) -> Tensor:
    """x W^T + b, plus a residual, in float32

    No addcmul or addr: torch computes them with one rounding or two, depending on where the
    work is split between threads, and a text's bits would depend on its batch.
    """
    q, scale, zero_point = quantize_tokens(x)
    output: Tensor = torch.ops.onednn.qlinear_pointwise(
        q, 1.0, 0, packed.weight, packed.channel, packed.zero_point,
        None, 1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    output.mul_(scale).add_((scale * zero_point) * packed.row_sum).add_(packed.bias)
    return output if residual is None else output.add_(residual)


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


@cache
def _probe() -> str | None:
    """As in onednn: the private operators must be there, right and not slow."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 128, generator=generator)
    layer = nn.Linear(128, 128)
    ours = Int8Kernels()
    try:
        with torch.inference_mode():
            expected = F.linear(x, layer.weight, layer.bias)
            plain_seconds = onednn.fastest(lambda: F.linear(x, layer.weight, layer.bias))
            ours.take([layer], torch.float32)
            limit = onednn.MAX_SLOWDOWN * plain_seconds
            seconds = onednn.fastest(lambda: ours.linear(x, layer), limit)
            deviation = (ours.linear(x, layer) - expected).abs().max().item()
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        return f"oneDNN's int8 products fail: {str(error).splitlines()[0]}"
    if deviation > 0.05:
        return f"oneDNN's int8 products are wrong by {deviation:.1g}"
    if seconds > onednn.MAX_SLOWDOWN * plain_seconds:
        return f"oneDNN's int8 products take {seconds / plain_seconds:.0f} times as long as float32"
    return None
