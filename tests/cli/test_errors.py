"""One line and the exit code 2 for whatever is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cli import LONG, fails, run_embed
from support.models import tiny_encoder

from e5core import E5, save_checkpoint
from e5core.formats.files import write_json


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
    arguments += ("--keep-blank",)
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
        (["--model", __file__], "test_errors.py' is a file; give the folder"),
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
    arguments += ("--keep-blank",)
    assert message in fails(capsys, *arguments, *options)
    assert not list(output.parent.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(
    model: Path, texts: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("embed", texts, "--model", model, "--output", output, "--input-type", "query")
    arguments += ("--keep-blank",)
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
    arguments += ("--keep-blank",)
    error = fails(capsys, *arguments, "--truncate", "none")
    tokens = E5.from_pretrained(model).tokenizer.count("query: " + LONG)
    assert f"{file}, line 2: the text has {tokens} tokens, the model takes 64" in error
    assert 'pass truncate="end" (--truncate end) or truncate="window" (--truncate window)' in error
    assert 'pass on_error="skip" (--on-error skip)' in error
    assert not list(output.parent.iterdir())


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
