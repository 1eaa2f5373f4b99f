"""The server as a program: its line, its log, its keys, its end."""

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.models import ROOT, write_tiny_model
from support.serving import Answer, Running, program, where_it_listens

from e5core import cli
from e5core.cli.serve import LOOPBACK, check_host
from e5core.serve.keys import Keys

BODY = {"model": "tiny-e5-query", "input": "the query"}


def test_the_program(folders: tuple[Path, Path], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("from-the-file\n")
    arguments = ("--model", folders[0], "--reranker", folders[1], "--served-name", "ranker")
    environment = {"E5CORE_API_KEY": "from-the-environment"}
    with program(*arguments, "--api-key-file", keys, environment=environment) as running:
        assert running.line.startswith("e5core serve: tiny-e5, ranker at http://127.0.0.1:")
        server = running.server
        assert server.post("/v1/embeddings", BODY).status == 401
        for key in ("from-the-file", "from-the-environment"):
            opened = {"authorization": f"Bearer {key}"}
            assert server.post("/v1/embeddings", BODY, opened).status == 200
        ranked = {"model": "ranker", "query": "a", "documents": ["a"]}
        assert server.post("/v2/rerank", ranked, opened).status == 200
        code, lines, err = running.end()
    assert (code, err) == (-signal.SIGTERM, "")
    assert [line["status"] for line in lines] == [401, 200, 200, 200]
    last = lines[1]
    assert (last["texts"], last["model"], last["dialect"]) == (1, "tiny-e5", "openai")
    assert {"time", "id", "client", "ms", "tokens", "queue_ms", "inference_ms"} <= last.keys()
    everything = json.dumps(lines)
    assert "from-the" not in everything
    assert "the query" not in everything


def test_an_interrupt_is_one_line(folders: tuple[Path, Path]) -> None:
    with program("--model", folders[0], "--no-access-log") as running:
        code, lines, err = running.end(signal.SIGINT)
    assert (code, lines, err) == (130, [], "e5core: interrupted\n")


@pytest.mark.parametrize("drain", [0, 0.5])
def test_every_accepted_request_is_answered_at_the_end(
    folders: tuple[Path, Path], drain: float
) -> None:
    """SIGTERM under load. A request that nobody took, on a closed connection, may be sent again."""
    broken: list[bytes] = []
    done: list[int] = []
    stopped = threading.Event()

    def client(port: int) -> None:
        while not stopped.is_set():
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                connection.connect()
            except OSError:
                return  # nobody listens any more
            while not stopped.is_set():
                try:
                    connection.request("POST", "/v1/embeddings", json.dumps(BODY))
                    answer = connection.getresponse()
                except (http.client.RemoteDisconnected, ConnectionError):
                    break  # closed before any answer began: it was not accepted
                try:
                    json.loads(answer.read())
                    done.append(answer.status)
                except (http.client.IncompleteRead, ValueError) as error:
                    broken.append(repr(error).encode())
                if answer.will_close:
                    break

    with program("--model", folders[0], "--drain", drain) as running:
        threads = [
            threading.Thread(target=client, args=(running.server.port,), daemon=True)
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        while len(done) < 50:
            assert running.process.poll() is None
        code, lines, err = running.end()
        stopped.set()
        for thread in threads:
            thread.join(60)
    assert (code, err, broken) == (-signal.SIGTERM, "", [])
    assert {*done} <= {200, 503}
    assert {line["status"] for line in lines} <= {200, 503}  # none was taken and then dropped
    # What the log calls answered has reached its client.
    assert [line["status"] for line in lines].count(200) == done.count(200)


# A server whose forward passes of three texts last long.
SLOW = """
import sys, time
from e5core.serve import engines
made = engines.Engine.__init__
def slow(self, pace, probe, run, pausing=None):
    def wait(sequences):
        if len(sequences) == 3:
            time.sleep({seconds})
        return run(sequences)
    made(self, pace, probe, wait, lambda sequences, pause: wait(sequences))
engines.Engine.__init__ = slow
from e5core.cli import main
sys.exit(main(sys.argv[1:]))
"""
THREE = {**BODY, "input": ["a", "b", "z"]}


@contextmanager
def slow_program(
    folder: Path, seconds: int, *options: str
) -> Iterator[tuple["subprocess.Popen[str]", Running]]:
    command = [sys.executable, "-c", SLOW.format(seconds=seconds), "serve", "--model", str(folder)]
    command += ["--port", "0", "--no-access-log", "--drain", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        yield process, Running(where_it_listens(process)[1], None)
    finally:
        process.kill()
        process.communicate()


def test_the_end_waits_for_a_long_pass(folders: tuple[Path, Path]) -> None:
    """A request that was taken is answered, however long it takes."""
    with slow_program(folders[0], 2) as (process, server):
        found: list[Answer] = []
        client = threading.Thread(target=lambda: found.append(server.post("/v1/embeddings", THREE)))
        client.start()
        while b"e5core_worker_busy_seconds 0\n" in server.get("/metrics").body:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        client.join(60)
        assert [answer.status for answer in found] == [200]
        assert len(found[0].json["data"]) == 3
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == -signal.SIGTERM


def test_a_pass_that_hangs_ends_the_process(folders: tuple[Path, Path]) -> None:
    """Its supervisor starts it anew: the exit code is not 0."""
    with slow_program(folders[0], 3600, "--hang-seconds", "3") as (process, server):
        assert server.post("/v1/embeddings", BODY).status == 200
        answer = server.post("/v1/embeddings", THREE)
        assert answer.status == 503
        err = process.communicate(timeout=60)[1]
        assert process.returncode == 1
        assert "e5core serve: the worker was lost: a forward pass has not ended" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--host is 0.0.0.0, which others reach, and there is no key"),
        (["--max-wait", "0"], "--max-wait is 0.0, expected more than 0"),
        (["--served-name", "x", "--model", "y"], "--served-name x stands behind no --model"),
        (["--model", "{0}", "--model", "{0}"], "two models are served as 'tiny-e5'"),
        (["--reranker", "{0}"], "no classification head"),
        (["--api-key-file", "nowhere"], "nowhere"),
        (["--model", "{bare}"], "does not say which prefixes its texts take; pass --prompts"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    arguments: list[str],
    message: str,
    folders: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("E5CORE_API_KEY", raising=False)
    bare = write_tiny_model(folders[0].with_name("bare"), "xlm-roberta")
    (bare / "config_sentence_transformers.json").unlink()
    filled = [argument.format(*folders, bare=bare) for argument in arguments]
    assert cli.main(["serve", *filled]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert message in printed.err


@pytest.mark.parametrize(
    ("keys", "is_open", "hosts"),
    [([], False, LOOPBACK), ([], True, None), (["key"], False, None)],
)
def test_only_a_key_lets_pages_of_elsewhere_post(
    keys: list[str], is_open: bool, hosts: object
) -> None:
    assert check_host("127.0.0.1", Keys(keys), is_open) == hosts


def test_a_port_that_is_taken_is_an_error(folders: tuple[Path, Path]) -> None:
    with program("--model", folders[0]) as running:
        foreign = running.server.post("/v1/embeddings", BODY, {"origin": "http://evil.example"})
        assert foreign.status == 403
        port = str(running.server.port)
        command = [sys.executable, "-m", "e5core", "serve", "--model", str(folders[0])]
        done = subprocess.run(
            [*command, "--port", port], capture_output=True, text=True, cwd=ROOT, check=False
        )
    assert done.returncode == 2
    assert "address already in use" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_extra_is_named() -> None:
    code = (
        "import sys\n"
        "sys.modules['uvicorn'] = None\n"
        "from e5core.cli import main\n"
        "sys.exit(main(['serve', '--model', 'nowhere']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "e5core serve: it needs uvicorn; pip install 'e5core[serve]'\n"
