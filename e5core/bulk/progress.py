"""The bar of a bulk job: rows and tokens a second, and the share of the input that is read."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def rate_bar(
    total: int | None, position: int, show: bool | None
) -> Iterator[Callable[[int, int, int], object]]:
    """Yield a function to call with the bytes of the input read so far, and the rows and tokens
    that are done since the last call.

    total     bytes of the whole input, None if they are not known
    position  of which so many were done by an earlier run
    show      as for progress_bar
    """
    if not ((sys.stderr and sys.stderr.isatty()) if show is None else show):
        yield lambda position, rows, tokens: None
        return
    from tqdm import tqdm

    line = "{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]"
    done_rows = done_tokens = 0
    with tqdm(
        total=total,
        initial=position,
        bar_format="{desc} [{elapsed}]" if total is None else line,
        dynamic_ncols=True,
        smoothing=0.1,  # chunks of long texts and of short ones take turns
        desc="0 rows",
    ) as bar:
        start = time.monotonic()

        def advance(position: int, rows: int, tokens: int) -> None:
            nonlocal done_rows, done_tokens
            done_rows += rows
            done_tokens += tokens
            seconds = max(time.monotonic() - start, 1e-9)
            bar.set_description_str(
                f"{done_rows:,} rows, {done_rows / seconds:,.1f} rows/s, "
                f"{done_tokens / seconds:,.0f} tokens/s",
                refresh=False,
            )
            bar.update(position - bar.n)

        yield advance
