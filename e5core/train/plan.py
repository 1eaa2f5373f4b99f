"""Which examples each step sees: a function of seed and epoch alone.

Nothing of it depends on steps that were taken, on the number of processes or on chunks, so a run
that is taken up again sees what it would have seen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from e5core.train.links import Numbers


@dataclass(frozen=True)
class Plan:
    """The batches of all epochs.

    members     the numbers of the examples of each source
    batch_size  the most examples of a batch
    seed        of the order
    mixed       whether a batch may hold examples of several sources

    Each epoch has every example once. A source is divided evenly into as few batches as the size
    allows, so that no small rest is left over, which would have few negatives.
    """

    members: Sequence[Numbers]
    batch_size: int
    seed: int
    mixed: bool = False

    @property
    def steps_per_epoch(self) -> int:
        return sum(ceil(len(numbers) / self.batch_size) for numbers in self._sources())

    def batches(self, first: int, steps: int) -> Iterator[tuple[int, int, Numbers]]:
        """Each step from `first` on: its number, its epoch, both from 0, and its examples."""
        step = first
        while step < steps:
            epoch, place = divmod(step, self.steps_per_epoch)
            for numbers in self.epoch(epoch)[place : place + steps - step]:
                yield step, epoch, numbers
                step += 1

    def epoch(self, epoch: int) -> list[Numbers]:
        """The batches of an epoch, in their order."""
        batches: list[Numbers] = []
        for source, numbers in enumerate(self._sources()):
            order = np.random.default_rng([self.seed, epoch, source]).permutation(numbers)
            batches += np.array_split(order, ceil(len(order) / self.batch_size))
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(len(batches))
        return [batches[i] for i in shuffled]

    def _sources(self) -> list[Numbers]:
        some = [numbers for numbers in self.members if len(numbers)]
        return [np.concatenate(some)] if self.mixed else some
