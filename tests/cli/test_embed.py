"""e5core embed: its vectors are the library's, whatever the options."""

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cli import LINES, LONG, fails, run_embed

from e5core import E5
from e5core.formats.files import write_json
from e5core.parity.tolerances import UNIT_VECTOR_FLOAT32
from e5core.prompts import E5_INSTRUCT_PROMPTS


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
    made_from = output.with_name(f"{output.name}.json")
    assert {*output.parent.iterdir()} == {output, ids, made_from}
    assert [json.loads(line) for line in ids.read_text().splitlines()] == [
        {"file": str(texts), "line": i + 1} for i in range(len(LINES))
    ]
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith(
        f"{output}: 7 vectors of 24 numbers, {expected.token_counts.sum()} tokens, "
        f"{expected.truncated.sum()} texts cut; "
    )
    assert re.search(r"; [\d.]+ s, [\d.]+ rows/s, \d+ tokens/s; kernels: [\w/]+\n$", printed.out)


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
