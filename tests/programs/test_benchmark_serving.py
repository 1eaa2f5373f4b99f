"""scripts/benchmark serve on a tiny model: every scenario, with every answer checked."""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

import serving
from loader import Loader, Outcome, Shot, percentile, poisson, post
from support.serving import serving as in_a_thread

from e5core.serve.app import App


@contextmanager
def server(folder: Path, dtype: str, constant: bool = False) -> Iterator[tuple[int, Any]]:
    """In place of a process, which takes seconds to start."""
    with in_a_thread(App(serving.make_service(folder, dtype, constant))) as running:
        yield running.port, SimpleNamespace(pid=os.getpid())


@pytest.fixture
def figures_of(
    make_tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Any]:
    """Runs a scenario, small and short; its figures by their titles."""
    monkeypatch.setattr(serving, "ENDLESS", 200)
    monkeypatch.setattr(serving, "BULK", 8)
    monkeypatch.setattr(serving, "LOADS", (0.1, 0.2))  # of what a tiny model computes in a second
    monkeypatch.setattr(serving, "LONE", 20.0)
    monkeypatch.setattr(serving, "text_of_length", lambda tokenizer, tokens, *_, **__: "a " * 9)
    folder = make_tiny(dialect="xlm-roberta")

    def run(name: str) -> Any:
        file = tmp_path / "figures.json"
        arguments = ["--model", str(folder), "--seconds", "0.2", "--only", name]
        assert serving.main([*arguments, "--json", str(file)]) == 0
        return json.loads(file.read_text())

    return run


TITLES = {
    "overhead": ["overhead, 1 connections", "overhead, 8 connections", "overhead, 64 connections"],
    "one": ["one query"],
    "bulk": ["bulk"],
    "a": ["a 0.1 C", "a 0.2 C"],
    "b": ["b 0.1 C", "b 0.2 C"],
    "c": ["c queries alone", "c queries, bulk beside lone queries", "c queries, bulk", "c bulk"],
    "d": ["d", "d tokens"],
    "e": ["e 2 C"],
    "f": ["f 1 of 6", "f 6 of 6"],
    "h": ["h without", "h with"],
    "malformed": ["malformed, before", "malformed, after"],
}


@pytest.mark.parametrize("name", TITLES)
def test_scenarios(
    name: str, figures_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every answer is right, and none is anything else than an answer or a 429."""
    monkeypatch.setattr(serving, "server", server)
    figures = figures_of(name)
    assert {*TITLES[name]} <= {*figures}
    for title, values in figures.items():
        assert values.get("wrong", 0) == 0, title
        assert values.get("other", 0) == 0, title
        assert values.get("requests", 1) > 0, title
    if name == "d":
        assert figures["d tokens"]["computed"] >= figures["d tokens"]["delivered"] > 0
    if name == "malformed":
        found = figures["malformed, after"]
        assert found["bodies"] > 1000
        assert found["5xx or none"] == 0


def test_the_scenario_of_the_end(figures_of: Callable[[str], Any]) -> None:
    """This one has a process, to which it sends the signal."""
    found = figures_of("g")["g"]
    assert found["requests"] > 0
    assert (found["wrong"], found["exit_code"]) == (0, -signal.SIGTERM)


def test_latency_counts_from_the_time_that_was_planned() -> None:
    times = list(poisson(100, 10, seed=0))
    assert times == list(poisson(100, 10, seed=0))
    assert 800 < len(times) < 1200
    assert times == sorted(times)
    assert Outcome(Shot(b"", 1, 1), due=1.0, done=3.0).latency == 2.0
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert np.isnan(percentile([], 0.5))
    assert Loader(0).seconds == 0.0


def test_a_connection_that_the_server_closed_is_not_used_again() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async def statuses() -> list[int]:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as closing:
            loader, shot = Loader(closing.sockets[0].getsockname()[1]), Shot(post("/", b""), 1, 1)
            for _ in range(2):
                await loader.send(shot, loader.now)
                await asyncio.sleep(0.1)
            loader.close()
            return [outcome.status for outcome in loader.outcomes]

    assert asyncio.run(statuses()) == [200, 200]


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert serving.main(["--seconds", "0"]) == 2
    assert "--seconds is 0.0, expected more than 0" in capsys.readouterr().err
