"""The command line: its results, and one line for whatever is wrong."""

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import ROOT, tiny_encoder

from e5core import E5, save_checkpoint, search
from e5core.cli import main
from e5core.formats.files import write_json
from e5core.parity.tolerances import UNIT_VECTOR_FLOAT32
from e5core.prompts import E5_INSTRUCT_PROMPTS

LINES = ["the query", "", "a passage: ß я", "日本", "x " * 30, "  ", "z"]
LONG = "a b c " * 40  # more than the 64 tokens of the tiny models


@pytest.fixture
def model(make_tiny: Callable[..., Path]) -> Path:
    return make_tiny()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("".join(line + "\n" for line in LINES), encoding="utf-8")
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "vectors.npy"


def run_embed(file: object, model: Path, output: Path, *options: str, kind: str = "query") -> int:
    arguments = ["embed", str(file), "--model", str(model), "--output", str(output)]
    return main([*arguments, "--input-type", kind, *options])


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail; returns the one line that it says."""
    try:
        code: Any = main([str(argument) for argument in arguments])
    except SystemExit as left:  # argparse leaves this way
        code = left.code
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("e5core")
    return printed.err


# --- embed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["query", "passage", "none"])
def test_embed_writes_the_vectors_of_the_library(
    model: Path, texts: Path, output: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_embed(texts, model, output, kind=kind) == 0
    expected = E5.from_pretrained(model).embed(LINES, input_type=None if kind == "none" else kind)
    vectors = np.load(output)
    np.testing.assert_array_equal(vectors, expected.vectors)
    assert (vectors.shape, vectors.dtype) == ((len(LINES), 24), np.float32)
    ids = output.with_name(f"{output.name}.ids.jsonl")
    assert {*output.parent.iterdir()} == {output, ids}
    assert [json.loads(line) for line in ids.read_text().splitlines()] == [
        {"file": str(texts), "line": i + 1} for i in range(len(LINES))
    ]
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith(
        f"{output}: 7 vectors of 24 numbers, {expected.token_counts.sum()} tokens, "
        f"{expected.truncated.sum()} texts cut; "
    )
    assert re.search(r"; [\d.]+ s, [\d.]+ rows/s, \d+ tokens/s\n$", printed.out)


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"a\r\n\r\nb\r\n", ["a", "", "b"]),
        (b"\n\n", ["", ""]),
        (b"\n", [""]),
        (b"", []),
        (b"\xef\xbb\xbfa\nb\n", ["a", "b"]),  # a byte order mark
        ("a\u2028b\u0085c\x0cd\x1ee\n".encode(), ["a\u2028b\u0085c\x0cd\x1ee"]),  # one line
        (b" a \n\tb\t\n", [" a ", "\tb\t"]),
        (b"a\rb\n", ["a\rb"]),
    ],
)
@pytest.mark.parametrize("stdin", [False, True], ids=["file", "stdin"])
def test_what_a_line_is(
    model: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    lines: list[str],
    stdin: bool,
) -> None:
    seen: list[str] = []
    embed = E5.embed

    def spy(self: E5, texts: list[str], **options: Any) -> Any:
        seen.extend(texts)
        return embed(self, texts, **options)

    monkeypatch.setattr(E5, "embed", spy)
    if stdin:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert run_embed("-", model, output) == 0
        assert not sys.stdin.closed  # it belongs to the caller
    else:
        (output.parent / "in").write_bytes(content)
        assert run_embed(output.parent / "in", model, output) == 0
    assert seen == lines
    assert np.load(output).shape == (len(lines), 24)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (["--truncate", "end"], {"truncate": "end"}),
        (["--truncate", "window"], {"truncate": "window"}),
        (["--truncate", "none", "--max-length", "64"], {"truncate": "none"}),
        (["--no-normalize"], {"normalize": False}),
        (["--max-tokens-per-batch", "10"], {"max_tokens_per_batch": 10}),
    ],
)
def test_options_of_embed_reach_the_library(
    model: Path, output: Path, options: list[str], arguments: dict[str, Any]
) -> None:
    # Under --truncate none no text may be long.
    lines = LINES if "none" in options else [*LINES, LONG]
    file = output.parent / "in"
    file.write_text("\n".join(lines), encoding="utf-8")
    assert run_embed(file, model, output, *options) == 0
    library = E5.from_pretrained(model)
    expected = library.embed(lines, input_type="query", **arguments).vectors
    np.testing.assert_array_equal(np.load(output), expected)
    if arguments.keys() & {"normalize"} or arguments.get("truncate") == "window":
        default = library.embed(lines, input_type="query").vectors
        assert np.abs(default - expected).max() > 1e-3  # the option changes something


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (["--prompts", "none"], {"prompts": "none"}),
        (["--max-length", "9"], {"max_length": 9}),
        (["--dtype", "bfloat16"], {"dtype": "bfloat16"}),
        (["--dtype", "float64"], {"dtype": "float64"}),
    ],
)
def test_options_of_loading_reach_the_library(
    model: Path, texts: Path, output: Path, options: list[str], arguments: dict[str, Any]
) -> None:
    assert run_embed(texts, model, output, *options) == 0
    vectors = np.load(output)
    expected = E5.from_pretrained(model, **arguments).embed(LINES, input_type="query").vectors
    np.testing.assert_array_equal(vectors, expected)
    default = E5.from_pretrained(model).embed(LINES, input_type="query").vectors
    assert (default != vectors).any()


@pytest.mark.parametrize("kernels", ["plain", "sdpa"])
def test_kernels_by_name(
    model: Path, texts: Path, output: Path, monkeypatch: pytest.MonkeyPatch, kernels: str
) -> None:
    used = []
    embed = E5.embed

    def spy(self: E5, *arguments: Any, **options: Any) -> Any:
        used.append(self.encoder.kernels.name)
        return embed(self, *arguments, **options)

    monkeypatch.setattr(E5, "embed", spy)
    assert run_embed(texts, model, output, "--kernels", kernels, "--device", "cpu") == 0
    assert used == [kernels]
    expected = E5.from_pretrained(model).embed(LINES, input_type="query").vectors
    np.testing.assert_allclose(np.load(output), expected, rtol=0, atol=UNIT_VECTOR_FLOAT32)


def test_a_task_goes_before_the_queries_of_an_instruct_model(
    model: Path, texts: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(model / "config_sentence_transformers.json", {"prompts": E5_INSTRUCT_PROMPTS})
    assert run_embed(texts, model, output, "--task", "find it") == 0
    prefixed = ["Instruct: find it\nQuery: " + line for line in LINES]
    expected = E5.from_pretrained(model).embed(prefixed, input_type=None).vectors
    np.testing.assert_array_equal(np.load(output), expected)
    capsys.readouterr()
    arguments = ("embed", texts, "--model", model, "--output", output, "--input-type", "query")
    said = 'pass task= (--task), for example task="Given a web search query'
    assert said in fails(capsys, *arguments)


def test_an_existing_output_is_replaced(model: Path, texts: Path, output: Path) -> None:
    output.write_bytes(b"old")
    assert run_embed(texts, model, output) == 0
    assert np.load(output).shape == (7, 24)


# --- search and info -----------------------------------------------------------------------


def test_search_prints_ranked_lines(
    model: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queries = ["日本", "zz the"]
    code = main(
        ["search", *queries, "--model", str(model), "--passages", str(texts), "--top-k", "3"]
    )
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    library = E5.from_pretrained(model)
    result = search(library.encode_query(queries), library.encode_passage(LINES), top_k=3)
    expected = []
    for query, indices, scores in zip(queries, result.indices, result.scores, strict=True):
        expected.append(query)
        for rank, (index, score) in enumerate(zip(indices, scores, strict=True), 1):
            expected.append(f"    {rank}. {score:.4f}  line {index + 1}: {LINES[index]}")
    assert printed.out.split("\n") == [*expected, ""]
    assert len(expected) == 2 * (1 + 3)


def test_info_describes_a_model(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tiny_folder)]) == 0
    printed = capsys.readouterr()
    rows = dict(line.split("  ", 1) for line in printed.out.splitlines())
    rows = {name: value.strip() for name, value in rows.items()}
    model = E5.from_pretrained(tiny_folder)
    parameters = sum(parameter.numel() for parameter in model.encoder.parameters())
    assert printed.err == ""
    assert rows["architecture"] == f"{model.config.model_type}, 3 layers"
    assert rows["parameters"] == f"{parameters:,}, of which {120 * 24:,} in the token table"
    assert rows["query prefix"] == "'query: '"
    assert rows["passage prefix"] == "'passage: '"
    assert rows["longest text"].startswith("64 tokens")
    assert rows["pooling"] == "mean"


def test_info_of_the_real_model(real_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(real_folder)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for expected in (
        "architecture bert, 12 layers",
        "hidden size 384 in 12 heads",
        "parameters 117,505,920",
        "memory in float64 940 MB",
        "memory in float32 470 MB",
        "memory in bfloat16 235 MB",
        "longest text 512 tokens",
    ):
        assert expected in printed


def test_info_reads_no_weights(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "model.safetensors").unlink()
    (model / "config_sentence_transformers.json").unlink()
    assert main(["info", str(model)]) == 0
    assert "not known; say it with --prompts" in capsys.readouterr().out


# --- what can be wrong ---------------------------------------------------------------------


def damage_weights(model: Path) -> None:
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[: len(content) // 2])


def damage_config(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    write_json(model / "config.json", {**config, "intermediate_size": 41})


def damage_tokenizer(model: Path) -> None:
    (model / "sentencepiece.bpe.model").write_bytes(b"this is no tokenizer")


def no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def no_config(model: Path) -> None:
    (model / "config.json").unlink()


def overflow(model: Path) -> None:
    encoder = tiny_encoder("bert")
    encoder.layers[-1].output_layer_norm.weight.data.fill_(3e38)
    save_checkpoint(encoder, model)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_weights, "is not a whole safetensors file"),
        (damage_config, "does not fit its config.json"),
        (damage_tokenizer, "is not a SentencePiece model (20 bytes)"),
        (no_weights, "has no model.safetensors"),
        (no_config, "has no config.json"),
        (overflow, "texts.txt, line 1, are zero or not finite in torch.float32"),
    ],
)
def test_damaged_models(
    model: Path,
    texts: Path,
    output: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    message: str,
) -> None:
    damage(model)
    output.write_bytes(b"old")
    arguments = ("embed", texts, "--model", model, "--output", output, "--input-type", "query")
    assert message in fails(capsys, *arguments)
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    assert output.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "t"], "leave task out"),
        (["--max-length", "1"], "max_length is 1, this model takes 3 to 64"),
        (["--max-length", "600"], "max_length is 600, this model takes 3 to 64"),
        (["--device", "nonsense"], "device 'nonsense' cannot be used: Expected one of"),
        (["--device", "meta"], "device 'meta' cannot be used"),
        (["--max-tokens-per-batch", "0"], "max_tokens_per_batch is 0, expected 1 or more"),
        (["--max-tokens-per-batch", "-5"], "max_tokens_per_batch is -5, expected 1 or more"),
        (["--max-tokens-per-batch", "many"], "--max-tokens-per-batch: invalid int value: 'many'"),
        (["--truncate", "start"], "--truncate: invalid choice: 'start'"),
        (["--dtype", "int4"], "--dtype: invalid choice: 'int4'"),
        (["--kernels", "fast"], "--kernels: invalid choice: 'fast'"),
        (["--prompts", "mine"], "--prompts: invalid choice: 'mine'"),
        (["--model", "./missing"], "'./missing' is neither a folder nor a hub id"),
        (["--model", __file__], "test_cli.py' is a file; give the folder"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_options(
    model: Path,
    texts: Path,
    output: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    arguments = ("embed", texts, "--model", model, "--output", output, "--input-type", "query")
    assert message in fails(capsys, *arguments, *options)
    assert not list(output.parent.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(
    model: Path, texts: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("embed", texts, "--model", model, "--output", output, "--input-type", "query")
    assert "device 'cuda' cannot be used: " in fails(capsys, *arguments, "--device", "cuda")
    assert not list(output.parent.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory: "),
        ("folder", "is a folder without files"),
        (b"good\nbad \xff\n", "file.txt, line 2: byte 4 is not UTF-8"),
        ("text".encode("utf-16"), "file.txt, line 1: byte 0 is not UTF-8"),
    ],
)
@pytest.mark.parametrize("command", ["embed", "search"])
def test_bad_input_files(
    model: Path,
    output: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    content: bytes | str | None,
    message: str,
) -> None:
    file = tmp_path / "file.txt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content == "folder":
        file.mkdir()
    if command == "embed":
        rest: tuple[object, ...] = (file, "--output", output, "--input-type", "passage")
    else:
        rest = ("a query", "--passages", file)
    error = fails(capsys, command, "--model", model, *rest)
    assert message in error
    assert str(file) in error
    assert not list(output.parent.iterdir())


def test_too_long_texts_are_named_by_their_lines(
    model: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "text 5.txt"  # a name that looks like the library's count
    file.write_text("\n".join(["a", LONG, "b", LONG]), encoding="utf-8")
    arguments = ("embed", file, "--model", model, "--output", output, "--input-type", "query")
    error = fails(capsys, *arguments, "--truncate", "none")
    tokens = E5.from_pretrained(model).tokenizer.count("query: " + LONG)
    assert f"{file}, line 2: the text has {tokens} tokens, the model takes 64" in error
    assert 'pass truncate="end" (--truncate end) or truncate="window" (--truncate window)' in error
    assert 'pass on_error="skip" (--on-error skip)' in error
    assert not list(output.parent.iterdir())


def test_a_query_that_is_not_text(
    model: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # What Python makes of an argument that is not UTF-8.
    arguments = ("search", "good", "bad \udcff", "--model", model, "--passages", texts)
    assert "e5core search: query 2: the text holds the lone surrogate" in fails(capsys, *arguments)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vectors.txt", "vectors.txt, expected a file name that ends in .npy"),
        ("vectors", "vectors, expected a file name that ends in .npy"),
        ("folder.npy", "folder.npy, expected a file name that ends in .npy"),
        ("missing/vectors.npy", "missing does not exist"),
    ],
)
def test_bad_outputs_fail_before_any_work(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    (tmp_path / "folder.npy").mkdir()
    before = sorted(tmp_path.rglob("*"))
    rest = ("--model", "./missing", "--output", tmp_path / name, "--input-type", "query")
    assert message in fails(capsys, "embed", texts, *rest)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_folder_that_cannot_be_written(
    texts: Path, output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **options: Any) -> None:  # a mode would not stop root
        raise PermissionError(13, "Permission denied", str(output.parent))

    monkeypatch.setattr(Path, "mkdir", refuse)
    rest = ("--model", "./missing", "--output", output, "--input-type", "query")
    error = fails(capsys, "embed", texts, *rest)
    assert f"Permission denied: '{output.parent}'" in error


@pytest.mark.parametrize("top_k", ["0", "-1"])
def test_top_k_is_checked_before_any_work(
    texts: Path, capsys: pytest.CaptureFixture[str], top_k: str
) -> None:
    rest = ("--model", "./missing", "--passages", texts, "--top-k", top_k)
    assert f"--top-k is {top_k}, expected 1 or more" in fails(capsys, "search", "q", *rest)


def test_nothing_to_search(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    rest = ("--model", model, "--passages", empty)
    assert f"{empty} has no lines to search" in fails(capsys, "search", "q", *rest)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "e5core: the following arguments are required: command; see e5core --help"),
        (["find"], "invalid choice: 'find'"),
        (["embed", "f", "--output", "o.npy"], "arguments are required: --input-type; see e5core"),
        (["embed", "f", "--input-type", "query"], "arguments are required: --output"),
        (["search", "q"], "arguments are required: --passages"),
        (["info", "./missing"], "'./missing' is neither a folder nor a hub id"),
    ],
)
def test_missing_arguments(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in fails(capsys, *arguments)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 2),
        (MemoryError(), 2),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (TypeError("a defect"), None),
    ],
)
def test_only_errors_of_the_user_become_a_line(
    model: Path,
    texts: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    expected: int | None,
) -> None:
    def fail(self: E5, *arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(E5, "embed", fail)
    if expected is None:
        with pytest.raises(type(error), match=str(error)):
            run_embed(texts, model, output)
    else:
        assert run_embed(texts, model, output) == expected
        assert (str(error) or "MemoryError") in capsys.readouterr().err
    assert not list(output.parent.iterdir())


# --- in a process of its own ---------------------------------------------------------------


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "e5core", *map(str, arguments)]


def embed_command(file: object, model: Path, output: Path, *options: object) -> list[str]:
    rest = ("--model", model, "--output", output, "--input-type", "query")
    return command("embed", file, *rest, *options)


def test_as_a_program(model: Path, output: Path) -> None:
    arguments = embed_command("-", model, output)
    done = subprocess.run(arguments, input=b"a\nb", capture_output=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, b"")  # no bar in a pipe, no warnings
    assert done.stdout.startswith(f"{output}: 2 vectors of 24 numbers".encode())
    expected = E5.from_pretrained(model).embed(["a", "b"], input_type="query").vectors
    np.testing.assert_allclose(np.load(output), expected, rtol=0, atol=UNIT_VECTOR_FLOAT32)


def test_a_reader_that_has_enough_is_no_error(model: Path, texts: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as head does after its last line
    done = subprocess.run(
        command("search", "a", "--model", model, "--passages", texts),
        stdout=writer,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_interrupt_and_progress_bar_on_a_terminal(
    model: Path, tmp_path: Path, output: Path
) -> None:
    file = tmp_path / "many.txt"
    file.write_text("the a query passage " * 20 + "\n" + "a\n" * 2_000_000, encoding="utf-8")
    output.write_bytes(b"old")
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # a new one has no width
    process = subprocess.Popen(
        embed_command(file, model, output, "--max-tokens-per-batch", 64, "--kernels", "plain"),
        stdout=subprocess.PIPE,
        stderr=end,
        cwd=ROOT,
    )
    os.close(end)
    try:
        shown = read_until(terminal, rb"%\|.*\| [1-9][\d,]* rows, .* rows/s, .* tokens/s \[")
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        shown += read_until(terminal, None)
        assert process.wait(timeout=20) == 130
        assert time.monotonic() - sent < 10  # the whole file takes minutes
    finally:
        process.kill()
        process.communicate()
        os.close(terminal)
    partial = output.with_name(f"{output.name}.partial")
    left = f"what is done is in {partial}, the same command goes on from there"
    assert shown.decode().splitlines()[-1] == f"e5core: interrupted; {left}"
    assert b"Traceback" not in shown
    assert {*output.parent.iterdir()} == {output, partial}
    assert output.read_bytes() == b"old"


def read_until(terminal: int, expected: bytes | None, seconds: float = 60) -> bytes:
    """What a terminal shows until it matches `expected`, or until its process ends."""
    shown = b""
    deadline = time.monotonic() + seconds
    while expected is None or not re.search(expected, shown):
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"waited {seconds} s for {expected!r}, saw {shown[-500:]!r}"
        try:
            part = os.read(terminal, 4096)
        except OSError:  # Linux says so when the last writer is gone
            part = b""
        if not part:
            assert expected is None, f"ended before {expected!r}: {shown[-500:]!r}"
            break
        shown += part
    return shown
