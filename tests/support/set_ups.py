"""Processes as people set them up around a model. Run as a program, it prints a line for each.

A set-up that hangs is ended, and so is the program then, which says where it waited.
"""

import asyncio
import copy
import faulthandler
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import torch

TEXTS = ["one text", "another text " * 9]
LONGEST = 120  # seconds of one child, on a machine as busy as may be
fork = multiprocessing.get_context("fork")
model: Any = None


def load(folder: str) -> Any:
    from e5core import E5

    global model
    model = E5.from_pretrained(folder)
    return model


def vectors(text: object = None) -> tuple[bytes, int]:
    """What a model gives, and the threads that it was computed on."""
    content = model.encode_query(TEXTS).tobytes()
    return content, torch.get_num_threads()


def load_and_use(folder: str) -> tuple[bytes, int]:
    load(folder)
    return vectors()


def use_torch() -> None:
    """On two threads, as they are needed for hidden states of this size."""
    torch.set_num_threads(2)
    (torch.randn(2_000_000) + 1).sum()
    torch.randn(500, 500) @ torch.randn(500, 500)


def child(work: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process forked with os.fork."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            signal.alarm(LONGEST)
            os.write(writer, pickle.dumps(work(*arguments)))
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        content = answer.read()
    status = os.waitpid(pid, 0)[1]
    assert status == 0, f"{work} ended with {status}"
    return pickle.loads(content)


def daemon(work: Callable[..., Any], *arguments: Any) -> Any:
    """The same in a process whose parent has ended."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        if not os.fork():
            signal.alarm(LONGEST)
            os.write(writer, pickle.dumps(work(*arguments)))
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader, "rb") as answer:
        return pickle.loads(answer.read())


def in_thread(work: Callable[..., Any], *arguments: Any) -> Any:
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(work, *arguments).result()


def use_from_threads(folder: str) -> tuple[bytes, int]:
    load(folder)
    with ThreadPool(4) as threads:
        found = set(threads.map(vectors, range(12)))
    found.add(vectors())
    assert len(found) == 1
    return found.pop()


def load_in_thread(folder: str) -> tuple[bytes, int]:
    in_thread(load, folder)
    return vectors()


def ask_for_threads(folder: str) -> tuple[bytes, int]:
    load(folder)
    torch.set_num_threads(2)
    return vectors()


def warned(folder: str) -> int:
    """How often loading and using a model says that there is one thread."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(folder)
        for _ in range(2):
            torch.set_num_threads(2)
            vectors()
    return sum("computes on one thread here" in str(one.message) for one in caught)


def train(folder: str) -> int:
    """A step of an encoder that the child has made."""
    from e5core import Encoder, EncoderConfig, load_checkpoint, pack

    encoder = Encoder(EncoderConfig.from_file(Path(folder) / "config.json"))
    load_checkpoint(encoder, folder)
    encoder(pack([list(range(64))] * 40, encoder.config)).sum().backward()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter -= parameter.grad
    return torch.get_num_threads()


def convert(folder: str, target: str) -> int:
    from e5core.cli import main

    return main(["convert", "dtype", folder, target, "--dtype", "int8", "--force"])


def bulk(folder: str, workers: int) -> str:
    from e5core.bulk import embed_files

    place = Path(folder).with_name(f"bulk-{os.getpid()}")
    place.mkdir()
    (place / "texts.txt").write_text("a\nb\nc\n")
    options: dict[str, Any] = {"input_type": "query", "workers": workers, "show_progress": False}
    try:
        done = embed_files(folder, place / "texts.txt", place / "out.npy", **options)
    except ValueError as error:
        return str(error)
    return f"{done.rows} rows"


def while_another_embeds(folder: str) -> set[tuple[bytes, int]]:
    """Forks at any moment of another thread's work."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            model.encode_query(TEXTS)

    others = [threading.Thread(target=work) for _ in range(2)]
    for other in others:
        other.start()
    try:
        return {child(load_and_use, folder) for _ in range(5)} | {child(vectors) for _ in range(5)}
    finally:
        stop.set()
        for other in others:
            other.join()


def forked(folder: str) -> dict[str, Any]:
    """Set-ups around a parent that has used torch and a model on two threads."""
    use_torch()
    import e5core

    assert e5core
    found: dict[str, Any] = {"parent": load_and_use(folder)}
    found["loaded before"] = child(vectors)
    found["loaded after"] = child(load_and_use, folder)
    found["nested"] = child(child, load_and_use, folder)
    found["nested, loaded between"] = child(lambda: (load(folder), child(vectors))[1])
    found["from a thread"] = in_thread(child, load_and_use, folder)
    found["from a thread of a child"] = child(in_thread, child, load_and_use, folder)
    found["from asyncio"] = asyncio.run(asyncio.to_thread(child, load_and_use, folder))
    found["threads in a child"] = child(use_from_threads, folder)
    found["loaded in a thread of a child"] = child(load_in_thread, folder)
    found["daemon"] = daemon(load_and_use, folder)
    found["threads asked for"] = child(ask_for_threads, folder)
    with fork.Pool(2, initializer=load, initargs=(folder,)) as pool:
        found["Pool with initializer"] = pool.map(vectors, range(2))[0]
    with fork.Pool(2) as pool:
        found["Pool with a global model"] = pool.map(vectors, range(2))[0]
        found["workers in a Pool"] = pool.apply(bulk, (folder, 2))
    with ProcessPoolExecutor(2, mp_context=fork) as executor:
        found["ProcessPoolExecutor"] = executor.submit(load_and_use, folder).result()
    found["while another embeds"] = while_another_embeds(folder)
    found["workers in a child"] = child(bulk, folder, 2)
    found["warnings"] = child(warned, folder)
    found["nested warnings"] = child(lambda: (load(folder), child(warned, folder))[1])
    found["training"] = child(train, folder)
    found["converting"] = child(convert, folder, folder + "-int8")
    found["parent again"] = vectors()
    return found


def late(folder: str) -> dict[str, Any]:
    """The parent has used torch; e5core is imported in the child alone."""
    use_torch()
    assert not [name for name in sys.modules if name.startswith("e5core")]
    return {
        "loaded after": child(load_and_use, folder),
        "nested": child(child, load_and_use, folder),
        "daemon": daemon(load_and_use, folder),
        "from a thread": in_thread(child, load_and_use, folder),
    }


def pickled(folder: str) -> dict[str, Any]:
    """A model that travels."""
    torch.set_num_threads(1)
    load(folder)
    found: dict[str, Any] = {"parent": vectors()}
    for method in ("spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(1, mp_context=context) as executor:
            found[method] = executor.submit(use_other, model).result()
            found[f"{method}, loaded there"] = executor.submit(load_and_use, folder).result()[0]
    loader: Any = torch.utils.data.DataLoader(
        Embedded(model), batch_size=2, num_workers=1, multiprocessing_context="spawn"
    )
    found["DataLoader"] = next(iter(loader)).numpy().tobytes()
    found["deepcopy"] = use_other(copy.deepcopy(model))
    command = [sys.executable, __file__, "use", folder]
    run = in_thread(lambda: subprocess.run(command, capture_output=True, check=True))
    found["subprocess of a thread"] = run.stdout
    return found


def use_other(other: Any) -> bytes:
    content: bytes = other.encode_query(TEXTS).tobytes()
    return content


class Embedded(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Texts that are embedded as they are asked for."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __len__(self) -> int:
        return len(TEXTS)

    def __getitem__(self, index: int) -> Any:
        return self.model.encode_query(TEXTS[index])


def use(folder: str) -> None:
    sys.stdout.buffer.write(use_other(load(folder)))


if __name__ == "__main__":
    faulthandler.dump_traceback_later(2 * LONGEST, exit=True)
    name, folder = sys.argv[1:]
    if name == "use":
        use(folder)
    else:
        answers = {"forked": forked, "late": late, "pickled": pickled}[name](folder)
        Path(folder, "answers").write_bytes(pickle.dumps(answers))
