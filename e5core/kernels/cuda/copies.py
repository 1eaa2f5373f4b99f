"""Copies to a GPU and back for which the CPU does not wait."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Bytes up to which the driver stages a copy by itself; more than that has to be in pinned memory.
# Source: CUDA's documentation of API synchronization behavior.
STAGED = 65536


def copy_all(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """The same tensors on a device. From the CPU to a GPU they travel as one copy."""
    if torch.device(device).type != "cuda" or tensors[0].is_cuda:
        return [tensor.to(device) for tensor in tensors]
    joined = torch.cat([tensor.view(torch.uint8) for tensor in tensors])
    joined = joined.pin_memory() if joined.nbytes > STAGED else joined
    pieces = joined.to(device, non_blocking=True).split([tensor.nbytes for tensor in tensors])
    return [piece.view(tensor.dtype) for piece, tensor in zip(pieces, tensors, strict=True)]


def queue_to_cpu(rows: Tensor) -> Callable[[], Tensor]:
    """A copy of rows on the CPU, which is waited for when it is called for.

    A GPU goes on meanwhile with what it is given next.
    """
    if not rows.is_cuda:
        return rows.cpu
    copy = rows.to("cpu", non_blocking=True)  # in pinned memory
    copied = torch.cuda.current_stream(rows.device).record_event()

    def wait() -> Tensor:
        copied.synchronize()
        return copy

    return wait
