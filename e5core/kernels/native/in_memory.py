"""What C++ is given: structures with the tensors that they point to, checked before it reads."""

import ctypes

from torch import Tensor, nn

from e5core.kernels.native import library
from e5core.kernels.native.library import KINDS
from e5core.kernels.plain import StaysHere, text_lengths


class InMemory(StaysHere):
    """A structure of C and the memory that it points to, which can be neither moved nor copied."""

    def __init__(self, structure: ctypes.Structure, *memory: object) -> None:
        self.structure = structure
        self.address = ctypes.addressof(structure)
        self._memory = memory


def norm_in_memory(norm: nn.LayerNorm) -> InMemory:
    """A LayerNorm as C++ takes it, in float32."""
    tensors = (norm.weight.detach().float(), norm.bias.detach().float())
    return InMemory(library.Norm(*(tensor.data_ptr() for tensor in tensors), norm.eps), tensors)


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
