"""Several processes that train one model: every gradient is that of the whole batch.

All of them hold the same plan and the same weights. Each encodes its share of the chunks and gets
the rows of all; each computes the loss of its share of the queries, divided by the queries of
*all*; gradients are summed. No factor of the number of processes occurs anywhere.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Ranks:
    """The number of this process and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def share(self, total: int) -> slice:
        """The part of `total` queries whose loss is computed here."""
        return slice(self.rank * total // self.size, (self.rank + 1) * total // self.size)

    def gather(self, rows: Tensor, order: Sequence[int], total: int) -> Tensor:
        """The rows of all processes, [total, …] in the order of the sequences.

        rows   [computed here, …]
        order  the place of each among all
        """
        places = torch.tensor(order, dtype=torch.int64, device=rows.device)
        if not rows.requires_grad and torch.is_grad_enabled():
            rows = rows.detach().requires_grad_()  # the backward pass takes part in the sum too
        if self.size == 1:
            return rows[places.argsort()]
        gathered: Tensor = _Gather.apply(rows, places, total)  # type: ignore[no-untyped-call]
        return gathered

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their sums over all processes."""
        if self.size > 1:
            some = list(tensors)
            flat = torch.cat([tensor.flatten() for tensor in some])
            distributed.all_reduce(flat)
            for tensor, part in zip(some, flat.split([t.numel() for t in some]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def wait(self) -> None:
        """Return once all processes are here."""
        if self.size > 1:
            distributed.barrier()


ALONE = Ranks()


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The processes that torchrun, or whoever set its variables, has started.

    A process group that is there already is used and left open.
    """
    if distributed.is_available() and distributed.is_initialized():
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        try:
            yield Ranks(distributed.get_rank(), distributed.get_world_size())
        finally:
            distributed.destroy_process_group()
    else:
        yield ALONE


def local_device(device: str | torch.device | None) -> str | torch.device | None:
    """The device of this process: of GPUs that nobody has chosen from, the one of its number."""
    number = os.environ.get("LOCAL_RANK")
    if device is None and number is not None and torch.cuda.is_available():
        torch.cuda.set_device(int(number))
        return f"cuda:{number}"
    return device


class _Gather(torch.autograd.Function):
    """Rows of all processes forward; backward the sum of all processes' gradients for own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, total: int) -> Tensor:
        ctx.save_for_backward(places)
        # Each row is a process's own, and zeros are added to it, so that shares may be unequal.
        gathered = rows.new_zeros(total, *rows.shape[1:])
        gathered[places] = rows
        distributed.all_reduce(gathered)
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        gradient = gradients[0].contiguous().clone()
        distributed.all_reduce(gradient)
        return gradient[places], None, None
