"""scripts/ray_serve.py: its keys, and on a local Ray two replicas, one of which is killed."""

import importlib.util
import os
import pickle
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from support.models import ROOT
from support.serving import Running, same_bits

from e5core import E5

PROGRAM = ROOT / "scripts" / "ray_serve.py"
BODY = {"model": "tiny-e5-query", "input": ["the query", "日本"]}
KEY = {"authorization": "Bearer of-the-file"}


@pytest.fixture
def ray_serve() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ray_serve", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nobody_else_is_served_without_a_key(
    ray_serve: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("E5CORE_API_KEY", raising=False)
    assert ray_serve.main(["--model", "x", "--host", "0.0.0.0"]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert "--host is 0.0.0.0, which others reach, and there is no key" in printed.err


def test_replicas_get_the_keys_of_the_program(
    ray_serve: ModuleType, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a replica runs, the environment is another one."""
    made: list[Any] = []

    def ingress(build: Any) -> Any:
        made.append(build)
        return lambda replica: replica

    ray = SimpleNamespace(deployment=lambda **options: lambda replica: replica, ingress=ingress)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    options = SimpleNamespace(
        model=str(folders[0]),
        **dict.fromkeys(("reranker", "default_input_type")),
        **dict.fromkeys(("replicas", "cpus", "gpus"), 1),
        dtype="auto",
    )
    keys = pickle.loads(pickle.dumps(ray_serve.Keys(["secret"])))
    ray_serve.deployment(ray, options, keys, None)
    monkeypatch.delenv("E5CORE_API_KEY", raising=False)
    app = made[0]()
    assert not app.keys.open({})
    assert app.keys.open({"authorization": "Bearer secret"})
    ray_serve.deployment(ray, options, ray_serve.Keys(), ("localhost",))
    assert made[1]()._hosts == ("localhost",)


def free_port() -> int:
    """One that no connection of Ray's own takes before the server does, which is seconds later."""
    ports = list(range(20_000, 32_000))  # Linux gives connections those from 32,768 on
    random.shuffle(ports)
    for port in ports:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@pytest.fixture
def running(folders: tuple[Path, Path], tmp_path: Path) -> Iterator[Running]:
    pytest.importorskip(
        "ray.serve", reason="the extra ray-serve is not installed", exc_type=ImportError
    )
    keys = tmp_path / "keys"
    keys.write_text("of-the-file\n")
    port = free_port()
    program = [sys.executable, str(PROGRAM), "--model", str(folders[0])]
    program += ["--api-key-file", str(keys)]
    process = subprocess.Popen(
        [*program, "--replicas", "2", "--port", str(port)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
    )
    try:
        assert process.stderr is not None
        seen = ""
        for line in process.stderr:
            seen += line
            if "2 replicas at" in line:
                break
        else:
            raise AssertionError(seen[-3000:])
        drained = threading.Thread(target=process.stderr.read, daemon=True)
        drained.start()
        yield Running(port, None)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def replicas() -> list[int]:
    """The processes of the replicas, by the title that Ray gives them."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = entry.read_bytes()
        except OSError:
            continue
        if re.match(rb"ray::ServeReplica:e5core:", title):
            found.append(int(entry.parent.name))
    return found


def test_a_replica_is_killed_under_load(running: Running, tiny: E5) -> None:
    """Clients see at most a request to send again, and every answer is right."""
    expected = tiny.embed(BODY["input"], input_type="query").vectors
    again, wrong = [0], []
    answered: list[float] = []
    stopped = threading.Event()

    def client() -> None:
        while not stopped.is_set():
            for _ in range(5):
                try:
                    found = running.post("/v1/embeddings", BODY, KEY)
                except OSError:
                    found = None
                if found is not None and found.status == 200:
                    break
                again[0] += 1
                time.sleep(0.5)
            if found is None or found.status != 200:
                wrong.append("no answer")
            elif not same_bits([row["embedding"] for row in found.json["data"]], expected):
                wrong.append("other vectors")
            answered.append(time.monotonic())

    own = replicas()
    assert len(own) == 2
    assert running.post("/v1/embeddings", BODY).status == 401
    threads = [threading.Thread(target=client, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 120
    while len(answered) < 40:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(own[0], signal.SIGKILL)
    so_far = len(answered)
    while len(answered) < so_far + 60:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    stopped.set()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert again[0] <= 4 * 2  # each of the four clients may have had a request there
