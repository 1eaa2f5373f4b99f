"""Two servers behind nginx with the configuration of docs/serving.md; one of them is killed."""

import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from support.models import ROOT
from support.serving import Running, program, same_bits

from e5core import E5

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
BODY = {"model": "tiny-e5-query", "input": ["the query", "日本"]}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def configuration(folder: Path, listening: int, ports: tuple[int, int]) -> str:
    """The page's, with ports that are free, and with what nginx needs around it."""
    page = (ROOT / "docs" / "serving.md").read_text("utf-8")
    [inner] = re.findall(r"^```text\n(upstream e5core .*?)^```$", page, re.M | re.S)
    for here, there in zip(("8080", "8081", "8082"), (listening, *ports), strict=True):
        assert here in inner
        inner = inner.replace(here, str(there))
    inner = inner.replace(f"listen {listening}", f"listen 127.0.0.1:{listening}")
    places = "".join(
        f"{name}_temp_path {folder / name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"daemon off;\nuser root;\npid {folder / 'pid'};\nerror_log {folder / 'error.log'};\n"
        f"worker_processes 1;\nevents {{}}\nhttp {{\naccess_log off;\n{places}{inner}}}\n"
    )


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_a_server_is_killed_and_no_client_notices(
    folders: tuple[Path, Path], tmp_path: Path, tiny: E5
) -> None:
    expected = tiny.embed(BODY["input"], input_type="query").vectors
    listening = free_port()
    wrong: list[str] = []
    answered: list[float] = []
    stopped = threading.Event()

    def client() -> None:
        server = Running(listening, None)
        while not stopped.is_set():
            found = server.post("/v1/embeddings", BODY)
            if found.status != 200:
                wrong.append(f"{found.status} {found.body[:200]!r}")
            elif not same_bits([row["embedding"] for row in found.json["data"]], expected):
                wrong.append("other vectors")
            answered.append(time.monotonic())

    arguments = ("--model", folders[0], "--no-access-log")
    with program(*arguments) as one, program(*arguments) as other:
        file = tmp_path / "nginx.conf"
        file.write_text(configuration(tmp_path, listening, (one.server.port, other.server.port)))
        nginx = subprocess.Popen([str(NGINX), "-c", str(file), "-e", str(tmp_path / "error.log")])
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", listening)).close()
                    break
                except OSError:
                    assert nginx.poll() is None, "nginx does not start"
                    assert time.monotonic() < deadline, "nginx does not listen"
                    time.sleep(0.05)
            threads = [threading.Thread(target=client, daemon=True) for _ in range(4)]
            for thread in threads:
                thread.start()
            while len(answered) < 60:
                time.sleep(0.02)
            one.process.kill()
            one.process.wait()
            killed, so_far = time.monotonic(), len(answered)
            while len(answered) < so_far + 100:
                assert time.monotonic() < killed + 60, "nobody is answered any more"
                time.sleep(0.02)
            stopped.set()
            for thread in threads:
                thread.join(60)
        finally:
            stopped.set()
            nginx.terminate()
            nginx.wait(30)
    assert not wrong
