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
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e5core.kernels.int8_rows import quantized_weight
from e5core.kernels.plain import InferenceKernels, Layer, LayerWeights, text_lengths

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


class Linear(ctypes.Structure):
    """Linears that are multiplied together, as layers.h has them."""

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


class EncoderLayer(ctypes.Structure):
    """What an encoder layer holds, as native.cpp has it."""

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


class InMemory:
    """A structure of C with the memory that it points to: neither can be elsewhere."""

    def __init__(self, structure: ctypes.Structure, *memory: object) -> None:
        self.structure = structure
        self.address = ctypes.addressof(structure)
        self._memory = memory

    def __reduce__(self) -> NoReturn:
        raise TypeError("native kernels cannot be copied or pickled; load the model anew")


class NativeKernels(InferenceKernels):
    """In int8 the products have the scales and zero points of onednn_int8.py, the rest is in
    float32; attention rounds to bfloat16 where that is faster: little beside the rounding to int8.
    """

    name = "native"
    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.int8)
    optional = True

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(dtype)
        self._library = load()
        self._kind = kind_of(dtype)
        self._attention_kind = self._kind.number
        if dtype == torch.int8:
            self._attention_kind = 2 if bfloat16_kind() is BFLOAT16 else FLOAT32.number

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self.name} kernels cannot be copied or pickled; load the model anew")

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        return missing() or unsupported(kind_of(dtype))

    def prepare(self, *linears: nn.Linear) -> InMemory:
        """Linears in float; for int8 also quantised already, with their `weight_scale`."""
        scales: tuple[Tensor, ...] = ()
        if self.dtype == torch.int8:
            integers, channels = zip(*map(quantized_weight, linears), strict=True)
            weights, channel = list(integers), torch.cat(channels)
            sums = torch.cat([rows.sum(dim=1, dtype=torch.int32) for rows in weights])
            scales = channel, -channel * sums
        else:
            weights = [linear.weight.detach() for linear in linears]
        bias = torch.cat([linear.bias.detach().float() for linear in linears])
        tensors = (panels(weights, self._kind.weight), bias, *scales)
        pointers = [tensor.data_ptr() for tensor in tensors]
        structure = Linear(self._kind.number, weights[0].shape[1], len(bias), *pointers)
        return InMemory(structure, tensors)

    def linear(self, x: Tensor, weights: InMemory) -> Tensor:
        return self._linear(x, weights, gelu=False)

    def linear_gelu(self, x: Tensor, weights: InMemory) -> Tensor:
        return self._linear(x, weights, gelu=True)

    def _linear(self, x: Tensor, weights: InMemory, gelu: bool) -> Tensor:
        x = x.contiguous()
        check(x, weights)
        output = x.new_empty(len(x), weights.structure.outputs)
        self._library.e5core_linear(
            weights.address, x.data_ptr(), len(x), gelu, output.data_ptr(), torch.get_num_threads()
        )
        return output

    def infer_linear_residual_norm(
        self, x: Tensor, weights: InMemory, residual: Tensor, norm: nn.LayerNorm
    ) -> Tensor:
        x, residual = x.contiguous(), residual.contiguous()
        check(x, weights)
        output = x.new_empty(len(x), weights.structure.outputs)
        if residual.shape != output.shape or residual.dtype != output.dtype:
            raise ValueError(
                f"residual is {list(residual.shape)} {residual.dtype}, expected "
                f"{list(output.shape)} {output.dtype}"
            )
        held_norm = norm_in_memory(norm)
        self._library.e5core_linear_residual_norm(
            weights.address, x.data_ptr(), len(x), residual.data_ptr(), held_norm.address,
            output.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return output

    def infer_attention(self, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        if qkv.dtype != self._kind.activation:
            raise ValueError(f"qkv is {qkv.dtype}, expected {self._kind.activation}")
        tokens, _, heads, head_size = qkv.shape
        qkv, cu_seqlens = qkv.contiguous(), bounds(cu_seqlens, max_seqlen, tokens)
        texts = Texts(cu_seqlens.data_ptr(), len(cu_seqlens) - 1, heads, head_size)
        output = qkv.new_empty(tokens, heads, head_size)
        self._library.e5core_attention(
            self._attention_kind, qkv.data_ptr(), ctypes.addressof(texts),
            output.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return output

    def stack(self, layers: Sequence[Layer]) -> "NativeStack":
        """One call of C++ for all layers: in few tokens, Python would take as long as the work."""
        weights = [layer.weights for layer in layers]
        return NativeStack(self._library, weights, layers[0].head_size, self._attention_kind)


class NativeStack:
    """The layers of an encoder as C++ takes them."""

    def __init__(
        self,
        library: ctypes.CDLL,
        layers: Sequence[LayerWeights],
        head_size: int,
        attention_kind: int,
    ) -> None:
        rows = [
            tuple(
                norm_in_memory(part) if isinstance(part, nn.LayerNorm) else part
                for part in (
                    weights.qkv,
                    weights.attention_output,
                    weights.intermediate,
                    weights.output,
                    weights.attention_norm,
                    weights.output_norm,
                )
            )
            for weights in layers
        ]
        array = (EncoderLayer * len(rows))(
            *(EncoderLayer(*(part.address for part in row)) for row in rows)
        )
        self._array = InMemory(array, rows)  # type: ignore[arg-type]  # an array of structures
        self._qkv = layers[0].qkv
        self._library = library
        self._count = len(rows)
        self._head_size = head_size
        self._attention_kind = attention_kind

    def __call__(self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        check(x, self._qkv)
        x, cu_seqlens = x.contiguous(), bounds(cu_seqlens, max_seqlen, len(x))
        heads = x.shape[1] // self._head_size
        texts = Texts(cu_seqlens.data_ptr(), len(cu_seqlens) - 1, heads, self._head_size)
        qkv, context, output = x.new_empty(len(x), 3, x.shape[1]), *map(torch.empty_like, (x, x))
        self._library.e5core_layers(
            self._array.address, self._count, self._attention_kind, ctypes.addressof(texts),
            x.data_ptr(), qkv.data_ptr(), context.data_ptr(), output.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        return output


def norm_in_memory(norm: nn.LayerNorm) -> InMemory:
    """A LayerNorm as C++ takes it, in float32."""
    tensors = (norm.weight.detach().float(), norm.bias.detach().float())
    return InMemory(Norm(*(tensor.data_ptr() for tensor in tensors), norm.eps), tensors)


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


def check(x: Tensor, weights: InMemory) -> None:
    """Raises ValueError for an x that C++ would misread."""
    linear = weights.structure
    dtype = KINDS[linear.kind].activation
    if x.shape[1:] != (linear.inputs,) or x.dtype != dtype:
        raise ValueError(
            f"x is {list(x.shape)} {x.dtype}, expected [tokens, {linear.inputs}] {dtype}"
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
