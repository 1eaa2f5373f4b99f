"""Chunks of texts to vectors: in this process, or by several on one machine.

On Linux the workers of a CPU are forked off a process that has loaded the model, so there is one
model in memory, its packed weights included. That process is started for the purpose: it has used
one thread only, which leaves its children free to use several (see forking.py). Elsewhere, and
with a GPU for each worker, every worker loads the model itself; on a CPU they still share the
token table, which stays in the file.
"""

import ctypes
import multiprocessing
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch

from e5core.bulk.chunks import Chunk
from e5core.bulk.sources import Row
from e5core.model import E5, Vectors
from e5core.prompts import prefix_for

SHARED = sys.platform == "linux"  # macOS can fork too, but its libraries do not survive it
_TEXT = re.compile(r"\btext (\d+)\b")
_KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG, from Linux' sys/prctl.h


@dataclass(frozen=True)
class Embedded:
    """What the texts of a chunk became.

    vectors  [texts - rejected, hidden_size] float32, in order
    tokens   of all these texts before any cut
    cut      how many of them lost their end
    rejected the index of each text without a vector, and why
    """

    vectors: Vectors
    tokens: int = 0
    cut: int = 0
    rejected: dict[int, str] = field(default_factory=dict)


def embed_texts(model: E5, texts: list[str], options: dict[str, Any]) -> Embedded:
    """`model.embed(texts, **options)`, but a text that is too long does not stop the others.

    Raises ValueError as `embed` does; "text 5" in its message is the index in `texts`.
    """
    rejected = {}
    if options["truncate"] == "none":
        prefix = prefix_for(model.prompts, options["input_type"], options["task"])
        for index, text in enumerate(texts):
            tokens = model.tokenizer.count(prefix + text)
            if tokens > model.max_length:
                rejected[index] = (
                    f"the text has {tokens} tokens, the model takes {model.max_length} (prefix, "
                    '<s> and </s> included); pass truncate="end" or truncate="window"'
                )
        options = {**options, "truncate": "end"}  # counted already; nothing is left to cut
    kept = [index for index in range(len(texts)) if index not in rejected]
    if not kept:
        return Embedded(np.empty((0, model.config.hidden_size), np.float32), rejected=rejected)
    try:
        result = model.embed([texts[index] for index in kept], show_progress=False, **options)
    except ValueError as error:
        raise ValueError(_TEXT.sub(lambda m: f"text {kept[int(m[1])]}", str(error))) from error
    tokens, cut = int(result.token_counts.sum()), int(result.truncated.sum())
    return Embedded(result.vectors, tokens, cut, rejected)


def describe(model: E5, options: dict[str, Any]) -> dict[str, Any]:
    """What the vectors depend on, beside the model's files and the texts."""
    device = model.encoder.embeddings.word.weight.device
    return {
        "hidden_size": model.config.hidden_size,
        "prefix": prefix_for(model.prompts, options["input_type"], options["task"]),
        "pooling": model.pooling,
        "max_length": model.max_length,
        "dtype": str(model.encoder.dtype).removeprefix("torch."),
        "kernels": model.encoder.kernels.name,
        "machine": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability(),
        "device": device.type,
    }


class Here:
    """The model in this process, on all of torch's threads."""

    def __init__(self, folder: Path, load: dict[str, Any], options: dict[str, Any]) -> None:
        """Load the model; arguments as those of Workers."""
        self._model = E5.from_pretrained(folder, **load)
        self._options = options
        self.description = describe(self._model, options)

    def embed(self, chunks: Iterator[Chunk]) -> Iterator[tuple[Chunk, Embedded]]:
        """Each chunk with its vectors, in order."""
        for chunk in chunks:
            try:
                embedded = embed_texts(self._model, chunk.texts, self._options)
            except ValueError as error:
                raise _located(error, chunk) from error
            yield chunk, embedded

    def close(self) -> None:
        pass


class Workers:
    """Several processes with a share of the cores or a GPU each, and a chunk at a time."""

    def __init__(
        self, folder: Path, load: dict[str, Any], options: dict[str, Any], count: int
    ) -> None:
        """Start the processes and wait until all have the model.

        folder, load  the arguments of `E5.from_pretrained`
        options       those of `E5.embed`

        Raises what loading raises, and ChildProcessError if a process dies.
        """
        devices = _devices(load.get("device"), count)
        together = SHARED and devices[0] == "cpu"
        threads = max(1, _cores() // count)
        context = multiprocessing.get_context("spawn")
        pairs = [context.Pipe() for _ in devices]
        self._connections = [ours for ours, _ in pairs]
        self._processes = []
        try:
            for first in [0] if together else range(count):
                theirs = [pair[1] for pair in (pairs if together else pairs[first : first + 1])]
                arguments = (theirs, folder, {**load, "device": devices[first]}, options, threads)
                process = context.Process(target=_serve, args=arguments, daemon=True)
                with _ignoring_interrupts():  # a child inherits it
                    process.start()
                self._processes.append(process)
            for _, theirs_too in pairs:
                theirs_too.close()  # held by the child alone, it tells when that dies
            for number in range(count):
                reply = self._receive(number)
                if isinstance(reply, Exception):
                    raise reply
                self.description: dict[str, Any] = reply
        except BaseException:
            self.close()
            raise

    def embed(self, chunks: Iterator[Chunk]) -> Iterator[tuple[Chunk, Embedded]]:
        """Each chunk with its vectors, in order; errors too come in the order of the chunks."""
        idle = list(range(len(self._connections)))
        busy: dict[int, int] = {}  # worker → chunk
        sent: dict[int, Chunk] = {}
        replies: dict[int, Any] = {}
        next_sent = next_out = 0
        ended = False
        fault: Exception | None = None
        while True:
            # One worker may be far behind the others; they wait rather than fill the memory.
            while idle and not ended and next_sent - next_out < 2 * len(self._connections):
                try:
                    chunk = next(chunks, None)
                except Exception as error:  # after the chunks before it
                    chunk, fault = None, error
                if chunk is None:
                    ended = True
                    break
                worker = idle.pop()
                with suppress(ConnectionError):  # receiving will say so
                    self._connections[worker].send(chunk.texts)
                busy[worker], sent[next_sent] = next_sent, chunk
                next_sent += 1
            while next_out in replies:
                reply = replies.pop(next_out)
                chunk = sent.pop(next_out)
                if isinstance(reply, Exception):
                    raise _located(reply, chunk)
                yield chunk, reply
                next_out += 1
            if not busy:
                if next_out == next_sent and ended:
                    break
                continue
            ready = wait([self._connections[worker] for worker in busy])
            for worker in [w for w in busy if self._connections[w] in ready]:
                reply = replies[busy.pop(worker)] = self._receive(worker)
                if isinstance(reply, Exception):
                    ended = True
                else:
                    idle.append(worker)
        if fault is not None:
            raise fault

    def close(self) -> None:
        """End all processes at once, whatever they are doing."""
        for process in self._processes:
            process.kill()  # and what it forked goes with it
        for process in self._processes:
            process.join()
        for connection in self._connections:
            connection.close()

    def _receive(self, worker: int) -> Any:
        """The next answer of a worker, or the error that it ended with."""
        try:
            return self._connections[worker].recv()
        except (EOFError, ConnectionError):
            process = self._processes[min(worker, len(self._processes) - 1)]
            process.join(timeout=1)  # for its exit code; it may outlive what was forked off it
            if process.exitcode and process.exitcode > 0:
                return ChildProcessError(
                    f"worker {worker + 1} of {len(self._connections)} ended with an error, which "
                    "stands above; it imports the main module, so a script must be a file and "
                    'needs its if __name__ == "__main__":'
                )
            return ChildProcessError(
                f"worker {worker + 1} of {len(self._connections)} died; the system ends processes "
                f"when memory runs out: if that was it, pass workers={len(self._connections) - 1}"
            )


def _serve(
    connections: list[Connection],
    folder: Path,
    load: dict[str, Any],
    options: dict[str, Any],
    threads: int,
) -> None:
    """The main function of a worker, or of the process that several are forked off."""
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C ends
    torch.set_num_threads(1 if len(connections) > 1 else threads)
    try:
        model = E5.from_pretrained(folder, **load)
    except Exception as error:
        for connection in connections:
            connection.send(error)
        return
    if len(connections) == 1:
        _work(connections[0], model, options)
        return
    children = []
    for own in connections:
        child = os.fork()
        if child:
            children.append(child)
            continue
        # Nothing of the parent's may run at the end of a child, such as a flush of its buffers.
        try:
            _end_with_parent()
            for other in connections:
                if other is not own:
                    other.close()
            torch.set_num_threads(threads)
            # A model knows in which process it was made: see forking.py.
            model = E5(
                model.encoder,
                model.tokenizer,
                pooling=model.pooling,
                prompts=model.prompts,
                max_length=model.max_length,
            )
            _work(own, model, options)
        finally:
            os._exit(0)
    for connection in connections:
        connection.close()
    for child in children:
        os.waitpid(child, 0)


def _work(connection: Connection, model: E5, options: dict[str, Any]) -> None:
    """Answer lists of texts until the other side is gone."""
    with suppress(EOFError, ConnectionError):
        reply: object
        try:
            reply = describe(model, options)
        except Exception as error:
            reply = error
        while True:
            connection.send(reply)
            texts = connection.recv()
            try:
                reply = embed_texts(model, texts, options)
            except Exception as error:
                if hasattr(error, "add_note"):  # from Python 3.11
                    error.add_note(f"in a worker:\n{traceback.format_exc()}")
                reply = error


def _located(error: Exception, chunk: Chunk) -> Exception:
    """An error of embed_texts with the file and the line of the text that it counts."""
    rows = [row for row in chunk.rows if isinstance(row, Row)]

    def place(match: re.Match[str]) -> str:
        return f"{rows[int(match[1])].file}, line {rows[int(match[1])].line}"

    return ValueError(_TEXT.sub(place, str(error))) if type(error) is ValueError else error


def _devices(device: object, count: int) -> list[str]:
    """The device of each worker."""
    name = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if name == "cpu":
        return ["cpu"] * count
    if name != "cuda":
        raise ValueError(
            f'device is {name!r}, which {count} workers cannot share; pass device="cpu", or '
            'device="cuda" for a GPU each'
        )
    gpus = torch.cuda.device_count()
    if count > gpus:
        raise ValueError(f"workers is {count}, but the GPUs are {gpus}; each takes one worker")
    return [f"cuda:{number}" for number in range(count)]


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _end_with_parent() -> None:
    """Let the kernel end this process when its parent ends, however that happens."""
    if SHARED:
        ctypes.CDLL(None).prctl(_KILL_WITH_PARENT, signal.SIGKILL)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
