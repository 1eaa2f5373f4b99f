"""The weights that a run began with, a part of which stays in the result."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Start:
    """keep · start + (1 − keep) · trained: what was learned before is forgotten less.

    A few hundred pairs of one kind pull a model away from all others. The mean of both keeps most
    of what was gained and of what was there. Source: WiSE-FT, arXiv:2109.01903.
    """

    def __init__(self, weights: Mapping[str, Tensor], keep: float) -> None:
        """weights: those of the start by name. A mapped file's cost no memory."""
        self._weights = weights
        self._keep = keep

    @torch.no_grad()
    def mix(self, trained: Mapping[str, Tensor]) -> None:
        """Put the mean of both in the place of what was trained."""
        if self._keep:
            for name, weights in self._weights.items():
                trained[name].lerp_(weights.to(trained[name]), self._keep)

    @contextmanager
    def mixed(self, trained: Mapping[str, Tensor]) -> Iterator[None]:
        """The same as long as the block lasts."""
        if not self._keep:
            yield
            return
        kept = {name: trained[name].detach().clone() for name in self._weights}
        self.mix(trained)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in kept.items():
                    trained[name].copy_(tensor)
