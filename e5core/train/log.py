"""What a run tells: a line of JSON for each step, a bar on a terminal, TensorBoard on request."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from e5core.formats.durable import GrowingFile


class Log:
    """Where the figures of steps go. In all processes but the first they go nowhere."""

    def __init__(
        self,
        path: Path | None,
        size: int,
        first: int,
        steps: int,
        show_progress: bool | None,
        tensorboard: str | Path | None,
    ) -> None:
        """Go on with a log.

        path  the file; None for a process that tells nothing
        size  the bytes of it that count; what lies behind belongs to steps that are taken again
        first, steps  the step that comes next, and all of the run
        """
        self._file = None if path is None else GrowingFile(path, size)
        self._lines: list[str] = []
        self._bar: Any = None
        self._writer: Any = None
        if path is None:
            return
        if tensorboard is not None:
            self._writer = _summary_writer(tensorboard, first)
        if (sys.stderr and sys.stderr.isatty()) if show_progress is None else show_progress:
            from tqdm import tqdm  # comes with huggingface-hub; not needed without a bar

            self._bar = tqdm(total=steps, initial=first, unit=" steps", dynamic_ncols=True)
        self._last = time.perf_counter()

    def step(self, number: int, epoch: int, tokens: int, figures: dict[str, float]) -> None:
        """The figures of a step that was taken; `number` counts from 1."""
        if self._file is None:
            return
        now = time.perf_counter()
        rate = round(tokens / max(now - self._last, 1e-9))
        self._last = now
        rounded = {name: float(f"{value:.6g}") for name, value in figures.items()}
        told = {"tokens": tokens, "tokens_per_second": rate}
        self._note({"step": number, "epoch": epoch, **rounded, **told})
        if self._bar is not None:
            shown = ", ".join(f"{k} {figures[k]:.3g}" for k in ("loss", "learning_rate"))
            self._bar.set_postfix_str(f"{shown}, {rate} tokens/s", refresh=False)
            self._bar.update()
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(name, value, number)

    def ranked(self, number: int, figures: dict[str, float]) -> None:
        """The figures of held-out pairs after a step."""
        if self._file is None:
            return
        self._note({"step": number, "evaluation": figures})
        self.say(f"step {number}: {describe_figures(figures)} on held-out pairs")
        self._last = time.perf_counter()
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(f"evaluation/{name}", value, number)

    def say(self, line: str) -> None:
        """A line for people, on standard error."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        elif self._file is not None:
            print(line, file=sys.stderr)

    def flush(self) -> int:
        """Take the lines to the disk; returns the bytes that the log has now."""
        if self._file is None:
            return 0
        self._file.append("".join(self._lines).encode())
        self._lines.clear()
        return self._file.size

    def close(self) -> None:
        """Cut off what does not count, and let go of the file."""
        for open_one in (self._file, self._bar, self._writer):
            if open_one is not None:
                open_one.close()

    def _note(self, line: dict[str, Any]) -> None:
        self._lines.append(json.dumps(line) + "\n")


def describe_figures(figures: dict[str, float]) -> str:
    """Figures as people read them."""
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items())


def _summary_writer(folder: str | Path, first: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "--tensorboard needs tensorboard; pip install 'e5core[train]'", name="tensorboard"
        ) from error
    # What a stopped run has written of later steps is hidden; so is all of one that begins anew.
    return SummaryWriter(str(folder), purge_step=first + 1 if first else 0)
