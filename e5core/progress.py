"""A progress bar for work that a person waits for."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    total: int | None, show: bool | None, unit: str = " texts"
) -> Iterator[Callable[[float], object]]:
    """Yield a function that advances the bar by a number of units, or by part of one.

    total  units of the whole work, None if it is not known
    show   None shows the bar if standard error is a terminal
    """
    if not ((sys.stderr and sys.stderr.isatty()) if show is None else show):
        yield lambda amount: None
        return
    from tqdm import tqdm  # comes with huggingface-hub; not needed without a bar

    done = 0.0
    with tqdm(total=total, unit=unit, dynamic_ncols=True) as bar:

        def advance(amount: float) -> None:
            nonlocal done
            done += amount
            bar.update(round(done) - bar.n)  # whole units: tqdm would print 2.9999999999999996

        yield advance
