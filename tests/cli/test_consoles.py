"""Consoles that are not UTF-8, Ctrl-C at any moment, and passages as people have them."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.cli import fails
from support.models import ROOT

from e5core.cli import main

TEXTS = ["日本 é", "plain", "\u200bя ß", "🇩🇪"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-8", "shift-jis"])
def test_every_result_is_printed(model: Path, tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS), encoding="utf-8")
    arguments = ["search", "日本", "--model", model, "--passages", file]
    done = subprocess.run(
        [sys.executable, "-m", "e5core", *map(str, arguments)],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    shown = done.stdout.decode(encoding).splitlines()
    expected = [text.encode(encoding, "backslashreplace").decode(encoding) for text in TEXTS]
    assert sorted(line.split(": ", 1)[1] for line in shown[1:]) == sorted(expected)


@pytest.mark.parametrize("seconds", [0.15, 0.4, 0.8, 1.2])
def test_an_interrupt_while_torch_is_imported(model: Path, tmp_path: Path, seconds: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "e5core", "info", str(model)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    )
    modules = Path(f"/proc/{process.pid}/maps")
    deadline = time.monotonic() + 30  # until torch is begun with, and a while on
    while "libtorch" not in modules.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1].decode()
    # A run that was done already has nothing to say.
    assert (process.returncode, error) in [(130, "e5core: interrupted\n"), (0, "")]


ROWS = [{"text": "a passage"}, {"text": " "}, {"text": "two\nlines"}, {"text": "the query"}]


def passages(folder: Path, suffix: str) -> Path:
    file = folder / f"in{suffix}"
    if suffix == ".parquet":
        pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(ROWS), file)
        return file
    jsonl = "".join(json.dumps(row) + "\n" for row in ROWS)
    csv = 'text\na passage\n" "\n"two\nlines"\nthe query\n'
    kinds = {
        ".jsonl": jsonl.encode(),
        ".json": json.dumps(ROWS, indent=1).encode(),
        ".csv": csv.encode(),
        ".csv.gz": gzip.compress(csv.encode()),
        ".tsv": b'text\tid\na passage\t1\n" "\t2\n"two\nlines"\t3\nthe query\t4\n',
    }
    file.write_bytes(kinds[suffix])
    return file


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".csv.gz", ".tsv", ".parquet"])
def test_passages_are_read_as_embed_reads_them(
    model: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    file = passages(tmp_path / "folder", suffix)
    lines = {".jsonl": [1, 3, 4], ".json": [2, 8, 11], ".csv": [2, 4, 6], ".tsv": [2, 4, 6]}
    expected = lines.get(suffix.removesuffix(".gz"), [1, 3, 4])
    for given, name in ((file, ""), (file.parent, f"{file}, ")):
        assert main(["search", "q", "--model", str(model), "--passages", str(given)]) == 0
        hits = capsys.readouterr().out.splitlines()[1:]
        assert len(hits) == 3  # the blank row is none, and a hit is one line
        found = sorted(hit.split("  ")[-1] for hit in hits)
        texts = ["a passage", "two lines", "the query"]
        wanted = [f"{name}line {n}: {text}" for n, text in zip(expected, texts, strict=True)]
        assert found == sorted(wanted)


def test_columns_of_passages(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.csv"
    file.write_text("id;body\n1;a b\n")
    rest = ("search", "q", "--model", model, "--passages", file)
    assert "has it between semicolons" in fails(capsys, *rest, "--column", "body")
    options = [*map(str, rest), "--column", "body", "--delimiter", ";"]
    assert main(options) == 0
    assert "line 2: a b" in capsys.readouterr().out
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
    rest = ("search", "q", "--model", model, "--passages", tmp_path / "b.jsonl")
    assert "b.jsonl, line 2: text is null, expected text" in fails(capsys, *rest)


@pytest.mark.parametrize("closed", ["stdout", "stderr", "stdin"])
def test_closed_streams(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    """Daemons and `>&-` leave Python without them: what needs none of them is done."""
    (tmp_path / "texts.txt").write_text("a text\n")
    monkeypatch.setattr(sys, closed, None)
    command = ["embed", tmp_path / "texts.txt", "--model", model, "--input-type", "query"]
    assert main([*map(str, command), "--output", str(tmp_path / "out.npy")]) == 0
    assert (tmp_path / "out.npy").is_file()
    search = ["search", "--passages", tmp_path / "texts.txt", "--model", model, "a query"]
    assert main(list(map(str, search))) == 0
    assert main([*map(str, search[:2]), "nowhere.txt", *map(str, search[3:])]) == 2


def test_standard_input_that_is_closed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    output = tmp_path / "out.npy"
    command = ["embed", "-", "--model", model, "--input-type", "query", "--output", output]
    assert "standard input, -, is closed; pipe texts" in fails(capsys, *command)
    command = ["search", "--passages", "-", "--model", model, "a query"]
    assert "standard input, -, is closed; pipe texts" in fails(capsys, *command)
