"""C++ for x86 CPUs with AVX-512, compiled when e5core is installed.

It computes few tokens in half of the time that PyTorch's operators take, and attention of any
length. A text's vector has the same bits alone, in any batch and in any order.
"""

import ctypes
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e5core.kernels.onednn_int8 import quantized_weight
from e5core.kernels.plain import INFERENCE_ONLY, PlainKernels, text_lengths

if TYPE_CHECKING:
    from e5core.encoder import EncoderLayer

FOLDER = Path(__file__).parent
LIBRARY = "libnative.so"

PANEL = 32  # columns, as in layers.h


@dataclass(frozen=True)
class Kind:
    """A kind of product: its number in C++, and what weights and activations are stored in."""

    number: int
    weight: torch.dtype
    activation: torch.dtype
    instructions: str


FLOAT32 = Kind(0, torch.float32, torch.float32, "AVX-512")
BFLOAT16 = Kind(1, torch.bfloat16, torch.bfloat16, "AVX512-BF16")
INT8 = Kind(2, torch.int8, torch.float32, "AVX512-VNNI")
WIDENED = Kind(3, torch.bfloat16, torch.bfloat16, "AVX-512")  # multiplied as float32

KINDS = (FLOAT32, BFLOAT16, INT8, WIDENED)  # by number


def kind_of(dtype: torch.dtype) -> Kind:
    """How weights of a dtype are multiplied."""
    if dtype == torch.bfloat16:
        return bfloat16_kind()
    return {torch.float32: FLOAT32, torch.int8: INT8}[dtype]


def bfloat16_kind() -> Kind:
    """BFLOAT16 on CPUs with a fast instruction for it, and as float32 on others."""
    return BFLOAT16 if load().e5core_prefers_bfloat16() else WIDENED


class Layer(ctypes.Structure):
    """Layers that are called together, as layers.h has them."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("panels", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("channel", ctypes.c_void_p),
        ("row_sum", ctypes.c_void_p),
    )


class Norm(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("eps", ctypes.c_float))


class Layers(ctypes.Structure):
    """What an EncoderLayer holds, as native.cpp has it."""

    _fields_ = (
        ("qkv", ctypes.c_void_p),
        ("attention_output", ctypes.c_void_p),
        ("intermediate", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("attention_norm", ctypes.c_void_p),
        ("output_norm", ctypes.c_void_p),
    )


class Texts(ctypes.Structure):
    _fields_ = (
        ("cu_seqlens", ctypes.c_void_p),
        ("count", ctypes.c_int),
        ("heads", ctypes.c_int),
        ("head_size", ctypes.c_int),
    )


@dataclass(frozen=True)
class Held:
    """A Layer or a Norm by its address, and the memory that it points to."""

    address: int
    structure: ctypes.Structure
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True)
class Stack:
    """The layers of an encoder: their array in C, and what it points to."""

    array: "ctypes.Array[Layers]"
    qkv: Held  # of the first layer
    head_size: int
    held: list[Held]


class NativeKernels(PlainKernels):
    name = "native"
    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    trainable = False
    optional = True

    def __init__(self) -> None:
        self._library = load()
        self._layers: dict[nn.Linear, Held] = {}
        self._norms: dict[nn.LayerNorm, Held] = {}
        self._stacks: dict[tuple[EncoderLayer, ...], Stack] = {}

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self.name} kernels cannot be copied or pickled; load the model anew")

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        return missing() or unsupported(kind_of(dtype))

    def take(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        weights = [layer.weight.detach() for layer in layers]
        self._hold(layers, kind_of(dtype), weights)

    def _hold(
        self, layers: Sequence[nn.Linear], kind: Kind, weights: list[Tensor], *scales: Tensor
    ) -> None:
        bias = torch.cat([layer.bias.detach().float() for layer in layers])
        tensors = (panels(weights, kind.weight), bias, *scales)
        pointers = [tensor.data_ptr() for tensor in tensors]
        structure = Layer(kind.number, weights[0].shape[1], len(bias), *pointers)
        self._layers[layers[0]] = Held(ctypes.addressof(structure), structure, tensors)
        for layer in layers:
            layer.to("meta")  # one copy in memory is enough

    def linear(self, x: Tensor, *layers: nn.Linear) -> Tensor:
        return self._linear(x, layers[0], gelu=False)

    def linear_gelu(self, x: Tensor, layer: nn.Linear) -> Tensor:
        return self._linear(x, layer, gelu=True)

    def _linear(self, x: Tensor, layer: nn.Linear, gelu: bool) -> Tensor:
        held, x = self._layers[layer], x.contiguous()
        check(x, held)
        output = x.new_empty(len(x), held.structure.outputs)
        self._library.e5core_linear(
            held.address, x.data_ptr(), len(x), gelu, output.data_ptr(), torch.get_num_threads()
        )
        return output

    def linear_residual_norm(
        self, x: Tensor, layer: nn.Linear, residual: Tensor, norm: nn.LayerNorm, dropout: float
    ) -> Tensor:
        if dropout:
            raise ValueError(INFERENCE_ONLY.format(self.name))
        held, x, residual = self._layers[layer], x.contiguous(), residual.contiguous()
        check(x, held)
        output = x.new_empty(len(x), held.structure.outputs)
        if residual.shape != output.shape or residual.dtype != output.dtype:
            raise ValueError(
                f"residual is {list(residual.shape)} {residual.dtype}, expected "
                f"{list(output.shape)} {output.dtype}"
            )
        self._library.e5core_linear_residual_norm(
            held.address, x.data_ptr(), len(x), residual.data_ptr(), self._norm(norm).address,
            output.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return output

    def _norm(self, norm: nn.LayerNorm) -> Held:
        if norm not in self._norms:
            tensors = (norm.weight.detach().float(), norm.bias.detach().float())
            structure = Norm(*(tensor.data_ptr() for tensor in tensors), norm.eps)
            self._norms[norm] = Held(ctypes.addressof(structure), structure, tensors)
        return self._norms[norm]

    def attention(self, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
        if dropout:
            raise ValueError(INFERENCE_ONLY.format(self.name))
        taken = [kind_of(dtype).activation for dtype in self.dtypes]
        if qkv.dtype not in taken:
            raise ValueError(f"qkv is {qkv.dtype}, expected {' or '.join(map(str, taken))}")
        tokens, _, heads, head_size = qkv.shape
        qkv, cu_seqlens = qkv.contiguous(), bounds(cu_seqlens, max_seqlen, tokens)
        texts = Texts(cu_seqlens.data_ptr(), len(cu_seqlens) - 1, heads, head_size)
        output = qkv.new_empty(tokens, heads, head_size)
        self._library.e5core_attention(
            self._attention_kind(qkv.dtype), qkv.data_ptr(), ctypes.addressof(texts),
            output.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return output

    def layers(
        self, x: Tensor, layers: Sequence["EncoderLayer"], cu_seqlens: Tensor, max_seqlen: int
    ) -> Tensor:
        """One call of C++ for all layers: in few tokens, Python would take as long as the work."""
        if layers[0].training:
            raise ValueError(INFERENCE_ONLY.format(self.name))
        stack = self._stack(tuple(layers))
        check(x, stack.qkv)
        x, cu_seqlens = x.contiguous(), bounds(cu_seqlens, max_seqlen, len(x))
        heads = x.shape[1] // stack.head_size
        texts = Texts(cu_seqlens.data_ptr(), len(cu_seqlens) - 1, heads, stack.head_size)
        qkv, context, output = x.new_empty(len(x), 3, x.shape[1]), *map(torch.empty_like, (x, x))
        self._library.e5core_layers(
            ctypes.addressof(stack.array), len(layers), self._attention_kind(x.dtype),
            ctypes.addressof(texts), x.data_ptr(), qkv.data_ptr(), context.data_ptr(),
            output.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return output

    def _stack(self, layers: tuple["EncoderLayer", ...]) -> Stack:
        if layers not in self._stacks:
            held = [
                part
                for layer in layers
                for part in (
                    self._layers[layer.attention.query],
                    self._layers[layer.attention.output],
                    self._layers[layer.intermediate],
                    self._layers[layer.output],
                    self._norm(layer.attention_layer_norm),
                    self._norm(layer.output_layer_norm),
                )
            ]
            parts = len(Layers._fields_)
            rows = [held[i : i + parts] for i in range(0, len(held), parts)]
            array = (Layers * len(rows))(*(Layers(*(part.address for part in row)) for row in rows))
            self._stacks[layers] = Stack(array, held[0], layers[0].attention.head_size, held)
        return self._stacks[layers]

    def _attention_kind(self, dtype: torch.dtype) -> int:
        return kind_of(dtype).number


class NativeInt8Kernels(NativeKernels):
    """Products in int8 with the scales and zero points of int8.py, the rest in float32.

    Attention rounds to bfloat16 where that is faster: little beside the rounding to int8.
    """

    name = "native-int8"
    dtypes: tuple[torch.dtype, ...] = (torch.int8,)

    def __init__(self) -> None:
        super().__init__()
        self._rounding = 2 if bfloat16_kind() is BFLOAT16 else FLOAT32.number

    def take(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        """Layers in float, or quantised already: int8 with their `weight_scale`."""
        integers, channels = zip(*map(quantized_weight, layers), strict=True)
        channel = torch.cat(channels)
        sums = torch.cat([rows.sum(dim=1, dtype=torch.int32) for rows in integers])
        self._hold(layers, INT8, list(integers), channel, -channel * sums)

    def _attention_kind(self, dtype: torch.dtype) -> int:
        return self._rounding


def panels(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Matrices [outputs, inputs], one below the other, as panels [panels, units, PANEL, numbers].

    A unit has the numbers of 32 bits; the last panel and the last unit are filled up with 0.
    """
    numbers = 4 // dtype.itemsize
    if any(len(weight) % PANEL for weight in weights) or weights[0].shape[1] % numbers:
        whole = torch.cat(list(weights))
        weights = [F.pad(whole, (0, -whole.shape[1] % numbers, 0, -len(whole) % PANEL))]
    units = weights[0].shape[1] // numbers
    result = torch.empty(sum(map(len, weights)) // PANEL, units, PANEL, dtype=torch.int32)
    rows = (part for weight in weights for part in weight.split(PANEL))
    for panel, part in zip(result, rows, strict=True):
        # As numbers of 32 bits, since PyTorch transposes only single numbers in blocks.
        panel.copy_(part.to(dtype).contiguous().view(torch.int32).T)
    return result.view(dtype).view(*result.shape, numbers)


def check(x: Tensor, held: Held) -> None:
    """Raises ValueError for an x that C++ would misread."""
    layer = held.structure
    dtype = KINDS[layer.kind].activation
    if x.shape[1:] != (layer.inputs,) or x.dtype != dtype:
        raise ValueError(
            f"x is {list(x.shape)} {x.dtype}, expected [tokens, {layer.inputs}] {dtype}"
        )


def bounds(cu_seqlens: Tensor, max_seqlen: int, tokens: int) -> Tensor:
    """cu_seqlens as C++ reads it. Raises ValueError if it would lead outside of the tokens."""
    starts = cu_seqlens.tolist()
    if starts[0] != 0 or starts[-1] != tokens or starts != sorted(starts):
        raise ValueError(
            f"cu_seqlens goes from {starts[0]} to {starts[-1]}, expected it to rise from 0 to "
            f"{tokens}, the number of tokens"
        )
    text_lengths(cu_seqlens, max_seqlen)
    return cu_seqlens.int().contiguous()


def source_checksum() -> int:
    """Of the C++ here; hatch_build.py compiles it into the library."""
    checksum = 0
    for file in sorted(file for file in FOLDER.iterdir() if file.suffix in (".cpp", ".h")):
        checksum = zlib.crc32(file.read_bytes(), checksum)
    return checksum


def missing() -> str | None:
    """Why there is no library, as a sentence; None if it can be loaded."""
    if not (FOLDER / LIBRARY).exists():
        return "they were not compiled: e5core was installed without g++ or clang++"
    try:
        load()
    except OSError as error:
        return f"they cannot be loaded: {error}"
    return None


def unsupported(kind: Kind) -> str | None:
    return None if load().e5core_supports(kind.number) else f"this CPU has no {kind.instructions}"


@cache
def load() -> ctypes.CDLL:
    """The compiled library. Raises OSError if there is none, or one of another source."""
    native = ctypes.CDLL(str(FOLDER / LIBRARY))
    try:
        native.e5core_source.restype = ctypes.c_uint32
        compiled = native.e5core_source()
    except AttributeError:
        raise OSError(f"{LIBRARY} is not of e5core") from None
    if compiled != source_checksum():
        raise OSError(f"{LIBRARY} was compiled from another source; install e5core again")
    pointer, number = ctypes.c_void_p, ctypes.c_int
    native.e5core_linear.argtypes = (pointer, pointer, number, number, pointer, number)
    native.e5core_linear_residual_norm.argtypes = (
        pointer, pointer, number, pointer, pointer, pointer, number,
    )  # fmt: skip
    native.e5core_attention.argtypes = (number, pointer, pointer, pointer, number)
    native.e5core_layers.argtypes = (pointer, number, number, *[pointer] * 5, number)
    return native
