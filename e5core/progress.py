"""A progress bar for work that a person waits for."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    total: int | None, show: bool | None, unit: str = " texts"
) -> Iterator[Callable[[float], object]]:
    """Yield a function that advances the bar.

    total  units of the whole work, None if it is not known
    show   None shows the bar if standard error is a terminal
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda amount: None
        return
    from tqdm import tqdm  # comes with huggingface-hub; not needed without a bar

    with tqdm(total=total, unit=unit, dynamic_ncols=True, bar_format=None) as bar:
        yield bar.update
