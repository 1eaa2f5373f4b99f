"""Chunks of texts to vectors, by several processes on one machine.

On Linux the workers of a CPU are forked off a process that has loaded the model, so there is one
model in memory, its packed weights included. That process is started for the purpose: it has used
one thread only, which leaves its children free to use several (see kernels/forking.py). Elsewhere,
and with a GPU for each worker, every worker loads the model itself; on a CPU they still share the
token table, which stays in the file.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from e5core.bulk.chunks import Chunk
from e5core.bulk.engine import Embedded, EmbedOptions, describe, embed_texts, locate
from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.options import LoadOptions
from e5core.kernels.forking import allow_threads
from e5core.model import E5
from e5core.texts.errors import TextError

SHARED = sys.platform == "linux"  # macOS can fork too, but its libraries do not survive it
_KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG, from Linux' sys/prctl.h


@dataclass
class _Task:
    """A chunk that a worker has got, and its answer once there is one."""

    chunk: Chunk
    reply: Any = None


class Workers:
    """Several processes with a share of the cores or a GPU each, and a chunk at a time."""

    def __init__(
        self, folder: ModelFolder, load: LoadOptions, options: EmbedOptions, count: int
    ) -> None:
        """Start `count` processes and wait until all have the model of the folder.

        Raises what loading raises, and ChildProcessError if a process dies.
        """
        devices = _devices(load.device, count)
        together = SHARED and devices[0] == "cpu"
        threads = max(1, _cores() // count)
        context = multiprocessing.get_context("spawn")
        pairs = [context.Pipe() for _ in devices]
        self._connections = [ours for ours, _ in pairs]
        self._processes: list[BaseProcess] = []
        try:
            for first in [0] if together else range(count):
                theirs = [pair[1] for pair in (pairs if together else pairs[first : first + 1])]
                arguments = (theirs, folder, replace(load, device=devices[first]), options, threads)
                process = context.Process(target=_serve, args=arguments, daemon=True)
                with _ignore_interrupts():  # a child inherits it
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
        idle = list(range(len(self._connections)))
        busy: dict[int, _Task] = {}  # by worker
        unfinished: deque[_Task] = deque()  # in the order of the chunks
        ended = False
        fault: Exception | None = None
        while True:
            # One worker may be far behind the others; they wait rather than fill the memory.
            while idle and not ended and len(unfinished) < 2 * len(self._connections):
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
                busy[worker] = _Task(chunk)
                unfinished.append(busy[worker])
            while unfinished and unfinished[0].reply is not None:
                task = unfinished.popleft()
                if isinstance(task.reply, TextError):
                    raise locate(task.reply, task.chunk)
                if isinstance(task.reply, Exception):
                    raise task.reply
                yield task.chunk, task.reply
            if busy:
                for worker in self._wait_for(busy):
                    task = busy.pop(worker)
                    task.reply = self._receive(worker)
                    ended = ended or isinstance(task.reply, Exception)
                    idle.append(worker)
            elif ended:
                break
        if fault is not None:
            raise fault

    def _wait_for(self, workers: Iterable[int]) -> list[int]:
        """Wait until at least one of the workers has answered; return all that have."""
        ready = wait([self._connections[worker] for worker in workers])
        return [worker for worker in workers if self._connections[worker] in ready]

    def close(self) -> None:
        """End all processes at once, whatever they are doing."""
        for process in self._processes:
            process.kill()  # and what it forked goes with it
        for process in self._processes:
            process.join()
        for connection in self._connections:
            connection.close()

    def _receive(self, worker: int) -> Any:
        """The next answer of a worker, or a ChildProcessError if the worker is dead."""
        try:
            return self._connections[worker].recv()
        except (EOFError, ConnectionError):
            process = self._processes[min(worker, len(self._processes) - 1)]
            process.join(timeout=1)  # for its exit code; it may outlive what was forked off it
            count = len(self._connections)
            if process.exitcode and process.exitcode > 0:
                return ChildProcessError(
                    f"worker {worker + 1} of {count} ended with an error, which stands above; it "
                    "imports the main module, so a script must be a file and needs its "
                    'if __name__ == "__main__":'
                )
            return ChildProcessError(
                f"worker {worker + 1} of {count} died; the system ends processes when memory runs "
                f"out: if that was it, pass workers={count - 1} (--workers {count - 1})"
            )


def _serve(
    connections: list[Connection],
    folder: ModelFolder,
    load: LoadOptions,
    options: EmbedOptions,
    threads: int,
) -> None:
    """The main function of a worker, or of the process that several are forked off."""
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C ends
    torch.set_num_threads(1 if len(connections) > 1 else threads)
    try:
        model = E5.from_folder(folder, load)
    except Exception as error:
        for connection in connections:
            connection.send(error)
        return
    if len(connections) == 1:
        _work(connections[0], model, options)
    else:
        _fork(connections, model, options, threads)


def _fork(connections: list[Connection], model: E5, options: EmbedOptions, threads: int) -> None:
    """Let a child of this process work for each connection, with the model that is loaded here."""
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
            # The parent has used one thread only, so several are safe here: see forking.py.
            allow_threads()
            _work(own, model, options)
        finally:
            os._exit(0)
    for connection in connections:
        connection.close()
    for child in children:
        os.waitpid(child, 0)


def _work(connection: Connection, model: E5, options: EmbedOptions) -> None:
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


def _devices(device: object, count: int) -> list[str]:
    """The device of each worker."""
    name = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if name == "cpu":
        return ["cpu"] * count
    if name != "cuda":
        raise ValueError(
            f'device is {name!r}, which {count} workers cannot share; pass device="cpu" '
            '(--device cpu), or device="cuda" (--device cuda) for a GPU each'
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
def _ignore_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
