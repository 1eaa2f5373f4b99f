"""C++ for x86 CPUs from AVX2 on and for 64-bit Arm, compiled when e5core is installed.

It computes few tokens in half of the time that PyTorch's operators take, and attention of any
length. A text's vector has the same bits alone, in any batch and in any order.
"""

import ctypes
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e5core.kernels.int8_rows import quantized_weight
from e5core.kernels.native import build, ends, library
from e5core.kernels.native.in_memory import InMemory, bounds, check, norm_in_memory
from e5core.kernels.native.library import BFLOAT16, FLOAT32, INT8, Kind
from e5core.kernels.plain import (
    InferenceKernels,
    Layer,
    LayerWeights,
    Pause,
    Pooling,
    go_on,
)
from e5core.kernels.threads import thread_count


def kind_of(dtype: torch.dtype, instructions: str | None = None) -> Kind:
    """How weights of a dtype are multiplied."""
    if dtype == torch.bfloat16:
        return library.bfloat16_kind(instructions)
    return {torch.float32: FLOAT32, torch.int8: INT8}[dtype]


class NativeKernels(InferenceKernels):
    """The operations in C++.

    In int8 the products have the scales and zero points of onednn_int8.py. Attention then rounds
    to bfloat16 where that is faster, since its error is small beside that of int8. Everything
    else is in float32.

    only         the name of the instruction set that is wanted; None for the best that the CPU has
    stretch      units of 32 bits that a product adds up before they join the sum; an even number
    largest_sum  of weights in int8, see int8_rows.py
    """

    name = "native"
    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.int8)
    optional = True
    only: str | None = None
    stretch = 384

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(dtype)
        self._kind = kind_of(dtype, self.only)
        self._library = library.load(self._kind, self.only)
        self.instructions = self._library.e5core_instruction_set().decode()
        self.largest_sum = self._library.e5core_largest_sum()
        # WIDENED is multiplied as float32, by attention too.
        attends_in = library.bfloat16_kind(self.instructions) if dtype == torch.int8 else self._kind
        self._attention_kind = BFLOAT16 if attends_in is BFLOAT16 else FLOAT32

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        return library.missing(cls.only) or library.unsupported(kind_of(dtype, cls.only), cls.only)

    @classmethod
    def missing(cls) -> str | None:
        return library.missing() if library.has_instructions() else None

    def for_scores(self) -> "NativeKernels":
        """Shorter stretches, at 1 or 2% of speed. A product then has .75 to .95 of the error of
        MKL's where long ones have 1.2 to 1.7 of it (small and base geometry, 2026-11)."""
        self.stretch = 128
        return self

    def prepare(self, *linears: nn.Linear) -> InMemory:
        """Linears in float; for int8 also quantised already, with their `weight_scale`."""
        scales: tuple[Tensor, ...] = ()
        if self.dtype == torch.int8:
            rows = [quantized_weight(linear, self.largest_sum) for linear in linears]
            weights, channel = [integers for integers, _ in rows], torch.cat([s for _, s in rows])
            sums = torch.cat([one.sum(dim=1, dtype=torch.int32) for one in weights])
            scales = channel, -channel * sums
        else:
            weights = [linear.weight.detach() for linear in linears]
        bias = torch.cat([linear.bias.detach().float() for linear in linears])
        columns = self._library.e5core_panel_columns()
        tensors = (panels(weights, self._kind.weight, columns), bias, *scales)
        pointers = [tensor.data_ptr() for tensor in tensors]
        sizes = weights[0].shape[1], len(bias), self.stretch
        structure = library.Linear(self._kind.number, *sizes, *pointers)
        return InMemory(structure, tensors)

    def embed(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        word: Tensor,
        position: Tensor,
        token_type: Tensor,
        norm: nn.LayerNorm,
    ) -> Tensor:
        """Kernels.embed, returned in the dtype of the hidden states"""
        ids, tables = (input_ids, position_ids), (word, position)
        return ends.embed(self._library, self._kind, ids, tables, token_type, norm)

    def pooling(self, name: str, plain: Pooling, device: torch.device) -> Pooling:
        """The mean in C++, and others on the caller's thread."""

        def pool(hidden_states: Tensor, cu_seqlens: Tensor) -> Tensor:
            if name == "mean":
                return ends.mean_pool(self._library, self._kind, hidden_states, cu_seqlens)
            with ends.one_thread(self._library):
                return plain(hidden_states, cu_seqlens)

        return pool

    def linear(self, x: Tensor, weights: InMemory) -> Tensor:
        return self._linear(x, weights, gelu=False)

    def linear_gelu(self, x: Tensor, weights: InMemory) -> Tensor:
        return self._linear(x, weights, gelu=True)

    def _linear(self, x: Tensor, weights: InMemory, gelu: bool) -> Tensor:
        x = x.contiguous()
        check(x, weights)
        output = x.new_empty(len(x), weights.structure.outputs)
        self._library.e5core_linear(
            weights.address, x.data_ptr(), len(x), gelu, output.data_ptr(), thread_count()
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
            output.data_ptr(), thread_count(),
        )  # fmt: skip
        return output

    def infer_attention(self, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        if qkv.dtype != self._kind.activation:
            raise ValueError(f"qkv is {qkv.dtype}, expected {self._kind.activation}")
        tokens, _, heads, head_size = qkv.shape
        qkv, cu_seqlens = qkv.contiguous(), bounds(cu_seqlens, max_seqlen, tokens)
        texts = library.Texts(cu_seqlens.data_ptr(), len(cu_seqlens) - 1, heads, head_size)
        output = qkv.new_empty(tokens, heads, head_size)
        self._library.e5core_attention(
            self._kind.number, self._attention_kind.number, qkv.data_ptr(),
            ctypes.addressof(texts), output.data_ptr(), thread_count(),
        )  # fmt: skip
        return output

    def stack(self, layers: Sequence[Layer]) -> "NativeStack":
        """One call of C++ for all layers: in few tokens, Python would take as long as the work."""
        weights = [layer.weights for layer in layers]
        return NativeStack(self._library, weights, layers[0].head_size, self._attention_kind)


# The same for each instruction set, by its name.
BY_INSTRUCTIONS: dict[str, type[NativeKernels]] = {
    one.name: type(f"NativeKernels_{one.name}", (NativeKernels,), {"only": one.name})
    for one in build.INSTRUCTION_SETS
}


class NativeStack:
    """The layers of an encoder as C++ takes them."""

    def __init__(
        self,
        native: ctypes.CDLL,
        layers: Sequence[LayerWeights],
        head_size: int,
        attention_kind: Kind,
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
        structures = [library.EncoderLayer(*(part.address for part in row)) for row in rows]
        array = (library.EncoderLayer * len(rows))(*structures)
        self._array = InMemory(array, rows)  # type: ignore[arg-type]  # an array of structures
        self._qkv = layers[0].qkv
        self._library = native
        self._count = len(rows)
        self._head_size = head_size
        self._attention_kind = attention_kind.number

    def __call__(
        self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int, pause: Pause = go_on
    ) -> Tensor:
        check(x, self._qkv)
        x, cu_seqlens = x.contiguous(), bounds(cu_seqlens, max_seqlen, len(x))
        heads = x.shape[1] // self._head_size
        texts = library.Texts(cu_seqlens.data_ptr(), len(cu_seqlens) - 1, heads, self._head_size)
        qkv, context, output = x.new_empty(len(x), 3, x.shape[1]), *map(torch.empty_like, (x, x))
        step = self._count if pause is go_on else 1
        spare = output if step == self._count else torch.empty_like(output)
        for first in range(0, self._count, step):
            layers = self._array.address + first * ctypes.sizeof(library.EncoderLayer)
            self._library.e5core_encoder(
                layers, step, self._attention_kind, ctypes.addressof(texts),
                x.data_ptr(), qkv.data_ptr(), context.data_ptr(), output.data_ptr(),
                thread_count(),
            )  # fmt: skip
            pause()
            x, output, spare = output, spare, output  # the caller's own is only read
        return x


def panels(weights: Sequence[Tensor], dtype: torch.dtype, columns: int) -> Tensor:
    """Matrices [outputs, inputs], one below the other, as [panels, units, columns, numbers].

    A unit has the numbers of 32 bits; the last panel and the last unit are filled up with 0.
    """
    numbers = 4 // dtype.itemsize
    if any(len(weight) % columns for weight in weights) or weights[0].shape[1] % numbers:
        whole = torch.cat(list(weights))
        weights = [F.pad(whole, (0, -whole.shape[1] % numbers, 0, -len(whole) % columns))]
    units = weights[0].shape[1] // numbers
    result = torch.empty(sum(map(len, weights)) // columns, units, columns, dtype=torch.int32)
    rows = (part for weight in weights for part in weight.split(columns))
    for panel, part in zip(result, rows, strict=True):
        # As numbers of 32 bits, since PyTorch transposes only single numbers in blocks.
        panel.copy_(part.to(dtype).contiguous().view(torch.int32).T)
    return result.view(dtype).view(*result.shape, numbers)
