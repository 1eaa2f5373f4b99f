"""What lies before the layers and behind them, in C++: embeddings, and the mean of each text."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e5core.kernels.native import library
from e5core.kernels.native.in_memory import bounds, norm_in_memory
from e5core.kernels.native.library import Kind
from e5core.kernels.plain import text_lengths


def embed(
    native: ctypes.CDLL,
    kind: Kind,
    ids: tuple[Tensor, Tensor],
    tables: tuple[Tensor, Tensor],
    token_type: Tensor,
    norm: nn.LayerNorm,
) -> Tensor:
    """Kernels.embed, computed in float32 and returned as the activations of a kind.

    ids     of the tokens and of their positions, [tokens] int64 each
    tables  of both, [rows, hidden_size]; those that are not float32 are read by PyTorch

    Raises IndexError for an id outside of its table, and ValueError for another hidden_size.
    """
    tokens, hidden = len(ids[0]), norm.normalized_shape[0]
    for table in (*tables, token_type):
        if table.shape[1:] != (hidden,):
            raise ValueError(f"a table is {list(table.shape)}, expected [rows, {hidden}]")
    if len(ids[1]) != tokens:
        raise ValueError(f"{len(ids[1])} positions are given for {tokens} tokens")
    with one_thread(native):
        places, rows = zip(*map(_float_rows, ids, tables), strict=True)
    first = token_type[:1].float().contiguous()
    output = first.new_empty(tokens, hidden, dtype=kind.activation)
    held_norm = norm_in_memory(norm)
    addresses = [table.data_ptr() for table in (*rows, first)]
    structure = library.Tables(*addresses, held_norm.address, hidden)
    native.e5core_embed(
        kind.number, ctypes.addressof(structure), *(part.data_ptr() for part in places), tokens,
        output.data_ptr(),
    )  # fmt: skip
    return output


def _float_rows(ids: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """The ids and a table that C++ can read at them."""
    if len(ids):
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= len(table):
            raise IndexError(
                f"ids go from {low} to {high}, but the table has rows 0 to {len(table) - 1}"
            )
    if table.dtype == torch.float32 and table.is_contiguous():
        return ids.long().contiguous(), table
    return torch.arange(len(ids)), F.embedding(ids, table).float()


def mean_pool(native: ctypes.CDLL, kind: Kind, states: Tensor, cu_seqlens: Tensor) -> Tensor:
    """pooling.mean_pool of states that are the activations of a kind."""
    if states.dtype != kind.activation:
        raise ValueError(f"hidden states are {states.dtype}, expected {kind.activation}")
    tokens = len(states)
    starts = bounds(cu_seqlens, tokens, tokens)
    lengths = text_lengths(starts, tokens)
    if 0 in lengths:
        raise ValueError(f"text {lengths.index(0)} has no tokens to average")
    texts = library.Texts(starts.data_ptr(), len(lengths), 0, 0)
    states = states.contiguous()
    means = states.new_empty(len(lengths), states.shape[1], dtype=torch.float32)
    native.e5core_mean(
        kind.number, states.data_ptr(), ctypes.addressof(texts), states.shape[1],
        means.data_ptr(),
    )  # fmt: skip
    return means


@contextmanager
def one_thread(native: ctypes.CDLL) -> Iterator[None]:
    """Let torch's own operators use one thread here, and those of other callers all the same.

    They are short, so that on a busy machine they wait longer for their threads than they
    work: .1 ms for 1,024 tokens, and ten waits of a few ms each (2026-11).
    """
    threads = torch.get_num_threads()
    native.e5core_set_threads(1)
    try:
        yield
    finally:
        native.e5core_set_threads(threads)
