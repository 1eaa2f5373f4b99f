"""Long texts in windows: sequences that fit the model, and the average of their rows."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def windows(ids: Sequence[int], max_length: int, prefix: Sequence[int] = ()) -> list[list[int]]:
    """Split a long text into sequences of at most `max_length` tokens.

    ids     `<s> pieces </s>`
    prefix  pieces of the prompt: where the text starts with them, every window does

    The windows do not overlap; together they hold each piece of the text once.
    Raises ValueError if the prefix leaves no room for text.
    """
    ids = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    if len(ids) <= max_length:
        return [ids]
    pieces = ids[1:-1]
    lead = list(prefix) if pieces[: len(prefix)] == list(prefix) else []
    room = max_length - 2 - len(lead)
    if room < 1:
        raise ValueError(
            f"the prefix has {len(lead)} tokens and leaves no room for text in windows of "
            f"{max_length}; shorten the task or raise max_length"
        )
    body = pieces[len(lead) :]
    return [
        [ids[0], *lead, *body[start : start + room], ids[-1]] for start in range(0, len(body), room)
    ]


class Windows:
    """The windows of several texts, one after another.

    sequences  the ids of every window
    """

    def __init__(self, texts: Sequence[Sequence[list[int]]]) -> None:
        """Lay the windows of each text one after another; every text has one at least."""
        self.sequences = [window for text_windows in texts for window in text_windows]
        self._owners = [text for text, windows in enumerate(texts) for _ in windows]
        self._shares = [1 / len(texts[text]) for text in self._owners]

    def count_texts(self, windows: Sequence[int]) -> float:
        """How many texts some windows make, as fractions of the windows that each text has."""
        return sum(self._shares[window] for window in windows)

    def average(self, rows: Tensor) -> Tensor:
        """The average [texts, hidden_size] of each text's windows, weighted by their tokens.

        With mean pooling that is the average of all token states of the text.

        rows  [windows, hidden_size] float32 on the CPU
        """
        texts = self._owners[-1] + 1
        if len(self._owners) == texts:  # each text has one window
            return rows
        weights = torch.tensor([len(ids) for ids in self.sequences], dtype=torch.float32)
        index = torch.tensor(self._owners)
        sums = rows.new_zeros(texts, rows.shape[1]).index_add_(0, index, rows * weights[:, None])
        return sums / torch.zeros(texts).index_add_(0, index, weights)[:, None]
