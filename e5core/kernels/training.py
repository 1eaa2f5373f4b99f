"""What training on a CPU spends its time on, with gradients of its own: products and dropout.

Everything here is a function of the published weights as the modules hold them, so an encoder that
is trained with it can be saved at any moment. `sdpa` uses it where gradients flow on a CPU.
Attention is in training_attention.py, and what is in C++ in native/training.py.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from e5core.kernels.native import training as native

# A probability is a multiple of 1 / CHANCES: dropout draws 15 bits a number.
CHANCES = 1 << 15

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a float


def is_for(x: Tensor) -> bool:
    """Whether these functions are to be used for hidden states: gradients flow on a CPU."""
    return torch.is_grad_enabled() and x.device.type == "cpu"


def multiplies(x: Tensor) -> bool:
    """Whether `linear` is faster for such states than torch: under autocast, and by oneDNN."""
    casts = torch.is_autocast_enabled("cpu")
    return is_for(x) and (casts or (x.dtype == torch.float32 and _onednn_is_right()))


@cache
def has_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16, and torch can tell."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private to torch
    return any(getattr(torch.cpu, name, bool)() for name in names)


def linear(x: Tensor, linears: Sequence[nn.Linear]) -> Tensor:
    """Kernels.linear with its gradient: [tokens, features] in float32, or in autocast's dtype.

    States are cast once for all linears, which are one product, and once again for none of the
    products of the backward pass.
    """
    casts = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if casts else x.dtype
    # Each is read once: with low-rank updates it is computed by being read.
    parameters = *(one.weight for one in linears), *(one.bias for one in linears)
    joined = _joined(linears[0], [part.detach() for part in parameters], dtype)
    product: Tensor = _Product.apply(x, *joined, *parameters)  # type: ignore[no-untyped-call]
    return product


Made = dict[nn.Linear, tuple[Tensor, Tensor]]
_made: ContextVar[Made | None] = ContextVar("made", default=None)


@contextmanager
def made_once(made: Made) -> Iterator[None]:
    """Join and cast the weights of linears once for all blocks that are given one dictionary.

    For passes between which no weight changes, such as the chunks of a step. Nothing else tells
    that none does: fused optimizers leave the versions of tensors as they are (torch 2.13).
    """
    token = _made.set(made)
    try:
        yield
    finally:
        _made.reset(token)


def _joined(
    first: nn.Linear, parameters: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The weight and the bias of linears, side by side in a dtype.

    first       of the linears, by which the result is known
    parameters  all weights, then all biases
    """
    made = _made.get()
    if made is not None and first in made:
        return made[first]
    count = len(parameters) // 2
    weight, bias = (
        (part[0] if count == 1 else torch.cat(list(part))).to(dtype)
        for part in (parameters[:count], parameters[count:])
    )
    if made is not None:
        made[first] = weight, bias
    return weight, bias


class _Product(torch.autograd.Function):
    """x W^T + b, multiplied in W's dtype, with the gradients of x and of what W and b are made of.

    parameters  all weights, then all biases
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *parameters: Tensor) -> Tensor:
        ctx.wide = x.dtype, parameters[0].dtype
        ctx.outputs = [len(bias) for bias in parameters[len(parameters) // 2 :]]
        x = x.to(weight.dtype)
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.to(x.dtype).contiguous()
        needs_x, _, _, *needs = ctx.needs_input_grad
        of_x, of_parameters = ctx.wide
        count = len(ctx.outputs)
        of_weights: Sequence[Tensor | None] = [None] * count
        of_biases: Sequence[Tensor | None] = [None] * count
        if any(needs[:count]):
            product = _multiply(gradient.t(), x.t()).to(of_parameters)
            of_weights = product.split(ctx.outputs)
        if any(needs[count:]):
            of_biases = gradient.sum(0).to(of_parameters).split(ctx.outputs)
        return (
            _multiply(gradient, weight.t()).to(of_x) if needs_x else None,
            None,
            None,
            *of_weights,
            *of_biases,
        )


def _multiply(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b^T + bias [rows of a, rows of b]"""
    if a.dtype != torch.float32:  # torch itself takes oneDNN for these
        return a @ b.t() if bias is None else torch.nn.functional.linear(a, b, bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return product


@cache
def _onednn_is_right() -> bool:
    """Whether the operator, which is private to torch, is there and multiplies as it should."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 48, generator=generator) for n in (33, 24))
    bias = torch.randn(24, generator=generator)
    try:
        found = [(_multiply(a, b, bias), a @ b.t() + bias), (_multiply(a.t(), a.t()), a.t() @ a)]
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return all(torch.allclose(one, other, atol=1e-4) for one, other in found)


def gelu(x: Tensor) -> Tensor:
    """The exact GELU with its gradient."""
    if native.steps(x.dtype) is None:
        return torch.nn.functional.gelu(x, approximate="none")
    found: Tensor = native.Gelu.apply(x)  # type: ignore[no-untyped-call]
    return found


def add_dropped(residual: Tensor, x: Tensor, probability: float) -> Tensor:
    """residual + dropout(x), with masks that take a tenth of the time of torch's to draw."""
    if not probability:
        return residual + x
    args = residual, x, probability, draw_seed()
    is_native = residual.dtype == torch.float32 and native.steps(x.dtype)
    add = native.AddDropped if is_native else _AddDropped
    total: Tensor = add.apply(*args)  # type: ignore[no-untyped-call]
    return total


class _AddDropped(torch.autograd.Function):
    """Numbers are dropped by their bits: torch's operators on bool are slow (torch 2.13)."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, probability: float, seed: int) -> Tensor:
        keeps = draw_keeps(x.shape, probability, seed)
        ctx.save_for_backward(keeps.to(torch.int8))
        ctx.scale, ctx.dtype = scale_of(probability), x.dtype
        return torch.add(residual, _kept(x, keeps), alpha=ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (keeps,) = ctx.saved_tensors
        return gradient, _kept((gradient * ctx.scale).to(ctx.dtype), keeps), None, None


def _kept(x: Tensor, keeps: Tensor) -> Tensor:
    """x where the bits of `keeps` are set, and zeros elsewhere."""
    integer = INTEGERS[x.element_size()]
    return x.contiguous().view(integer).bitwise_and(keeps.to(integer)).view(x.dtype)


def draw_seed() -> int:
    """A seed from torch's generator, which the caller has seeded."""
    return int(torch.randint(1 << 62, ()))


def draw_keeps(shape: Sequence[int], probability: float, seed: int) -> Tensor:
    """What dropout keeps: int16, all bits set where it does and none elsewhere.

    torch's own masks are drawn on one thread at 5 ns a number, these at 0.5 (torch 2.13, 2026-11).
    """
    count = math.prod(shape)
    drawn = np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.int16)[:count]
    # From -CHANCES / 2 to CHANCES / 2; taken from the threshold, the sign tells.
    drawn >>= 1
    np.subtract(round(probability * CHANCES) - 1 - CHANCES // 2, drawn, out=drawn)
    drawn >>= 15
    return torch.from_numpy(drawn).view(*shape)


def scale_of(probability: float) -> float:
    """What is kept is multiplied by it, so that the mean stays."""
    return 1 / (1 - round(probability * CHANCES) / CHANCES)
