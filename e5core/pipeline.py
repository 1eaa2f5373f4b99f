"""Token ids to one row a sequence: plan, pack, encode, reduce, in the caller's order.

Everything that computes stands on this: texts, pairs and requests are sequences of ids here, and
a batch may hold any mixture of them, because a row does not depend on its neighbours.
"""

from collections import deque
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from e5core.batching import pack, plan_batches
from e5core.encoder import Encoder
from e5core.kernels.cuda.copies import copy_all
from e5core.kernels.memory import out_of_memory
from e5core.kernels.plain import Pause, go_on
from e5core.pooling import POOLINGS
from e5core.texts.errors import TextError

# Tokens of one forward pass. On a CPU the activations of about 1,024 tokens stay in its
# cache (measured on Zen 4 with small and large); a GPU needs many more to be busy, and with half
# as many the CPU that calls it takes a fifth longer for small (H200, 2026-11).
MAX_TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 65536}

# From token states [tokens, hidden_size] and cu_seqlens to [sequences, …].
Reduction = Callable[[Tensor, Tensor], Tensor]


class Pipeline:
    """An encoder and what it reduces the token states of a sequence to.

    >>> from e5core import EncoderConfig
    >>> encoder = Encoder(EncoderConfig("bert", 100, 32, 2, 4, 64, 16, 0, 2, 1e-12)).eval()
    >>> Pipeline(encoder).run([[0, 7, 2], [0, 8, 9, 2]]).shape
    torch.Size([2, 32])
    """

    def __init__(
        self, encoder: Encoder, reduction: str | Reduction = "mean", first_only: bool = False
    ) -> None:
        """Put the two together.

        reduction   "mean" or "cls", or a function of the token states [tokens, hidden_size] and
                    cu_seqlens [sequences + 1] that gives a row for each sequence
        first_only  show a function the first token of each sequence alone, which takes less time
        """
        self.encoder = encoder
        self.first_only = first_only or reduction == "cls"
        self._reduction = reduction
        self._most: int | None = None  # tokens of a pass, once the device had no memory for more
        if isinstance(reduction, str):
            if reduction not in POOLINGS:
                raise ValueError(f"pooling is {reduction!r}, expected one of {sorted(POOLINGS)}")
            plain = POOLINGS[reduction]
            reduction = encoder.kernels.pooling(reduction, plain, encoder.device)
        self.reduce = reduction
        self.size: int = getattr(reduction, "size", encoder.config.hidden_size)

    def __reduce__(self) -> Any:
        """A copy or a pickle is made of the parts anew: kernels' own pooling is of one process."""
        return Pipeline, (self.encoder, self._reduction, self.first_only)

    def run(
        self,
        sequences: Sequence[Sequence[int]],
        max_tokens: int | None = None,
        advance: Callable[[Sequence[int]], object] = lambda indices: None,
        halve: bool = False,
        pause: Pause = go_on,
    ) -> Tensor:
        """The row of each sequence, in the caller's order.

        sequences   the ids of each, `<s>` and `</s>` included, at most `config.max_length`
        max_tokens  tokens of one forward pass; a longer sequence still goes whole. None takes
                    what suits the device
        advance     called after each forward pass with the indices of the sequences that it had
        halve       go on with half as many tokens where the device has no memory for several
                    sequences, instead of raising torch.OutOfMemoryError
        pause       as in Encoder.forward
        returns     [sequences, …] float32 or wider, on the encoder's device. Gradients flow if the
                    caller has them on and the kernels are trainable

        Raises TextError for ids that the encoder cannot take.
        """
        lengths = [len(ids) for ids in sequences]
        batches = deque(plan_batches(lengths, self.budget(max_tokens)))
        if not batches:
            return torch.empty(0, self.size, device=self.encoder.device)
        rows, order = [], []
        while batches:
            batch = batches.popleft()
            try:
                with out_of_memory():
                    rows.append(self._run([sequences[i] for i in batch], pause))
            except TextError as error:
                raise error.renumbered(batch.__getitem__) from None
            except torch.OutOfMemoryError:
                if not halve or len(batch) == 1:
                    raise
                left = [i for some in (batch, *batches) for i in some]
                self._most = sum(lengths[i] for i in batch) // 2
                plan = plan_batches([lengths[i] for i in left], self._most)
                batches = deque([left[i] for i in some] for some in plan)
                continue
            order += batch
            advance(batch)
        if order == list(range(len(order))):
            return torch.cat(rows) if rows[1:] else rows[0]
        (places,) = copy_all([torch.tensor(order).argsort()], self.encoder.device)
        return torch.cat(rows)[places]

    def _run(self, sequences: Sequence[Sequence[int]], pause: Pause) -> Tensor:
        """The rows of one forward pass. They stay on the device: a copy would wait for it."""
        packed = pack(sequences, self.encoder.config).to(self.encoder.device)
        states, starts = self.encoder(packed, self.first_only, pause), packed.cu_seqlens
        if self.first_only:  # what is left are sequences of one token
            starts = torch.arange(len(starts), dtype=starts.dtype, device=starts.device)
        return self.reduce(states, starts)

    def budget(self, max_tokens: int | None) -> int:
        """The tokens of one forward pass: those asked for, or what suits the device.

        Raises ValueError if there are none.
        """
        if max_tokens is None:
            kind = self.encoder.device.type
            max_tokens = MAX_TOKENS_PER_BATCH.get(kind, MAX_TOKENS_PER_BATCH["cpu"])
        if not isinstance(max_tokens, Integral) or max_tokens < 1:
            raise ValueError(f"max_tokens_per_batch is {max_tokens!r}, expected 1 or more")
        return max_tokens if self._most is None else min(max_tokens, self._most)
