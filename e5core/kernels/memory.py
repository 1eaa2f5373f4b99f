"""One error for a device that has no memory left, where torch has several."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# In the words of a RuntimeError: where cuBLAS keeps memory of its own, and on a CPU.
FULL = "CUBLAS_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate memory"


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Raise torch.OutOfMemoryError for whatever says that there was no memory."""
    try:
        yield
    except RuntimeError as error:
        if any(words in str(error) for words in FULL):
            raise torch.OutOfMemoryError(str(error)) from error
        raise
