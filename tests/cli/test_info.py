"""e5core info: what a model says of itself, without its weights."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.models import TINY, write_tiny_reranker

from e5core import E5
from e5core.cli import main
from e5core.encoder import ClassificationHead
from e5core.formats.files import read_json_object, write_json
from e5core.kernels import BACKENDS

TINY_RERANKER = {dialect: replace(config, num_labels=1) for dialect, config in TINY.items()}


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


def test_info_describes_a_reranker(
    tmp_path: Path, dialect: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tiny_reranker(tmp_path / "reranker", dialect)
    (folder / "model.safetensors").unlink()  # it reads no weights
    assert main(["info", str(folder)]) == 0
    printed = capsys.readouterr()
    rows = dict(line.split("  ", 1) for line in printed.out.splitlines())
    rows = {name: value.strip() for name, value in rows.items()}
    assert printed.err == ""
    parameters = sum(p.numel() for p in ClassificationHead(TINY_RERANKER[dialect]).parameters())
    head = f"the first token through 24 to 24, tanh, 24 to 1; {parameters:,} parameters more"
    assert rows["head"] == head
    assert rows["labels"] == "1; scores pairs: Reranker, e5core rerank"
    assert rows["prefixes"] == "none: a cross-encoder reads texts as they are"
    assert rows["longest pair"].startswith("64 tokens; ")
    assert not {"pooling", "query prefix", "passage prefix", "longest text"} & rows.keys()


def test_info_of_a_classifier_says_that_it_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tiny_reranker(tmp_path / "classifier", "bert")
    config = read_json_object(folder / "config.json")
    labels = {str(i): f"LABEL_{i}" for i in range(3)}
    write_json(folder / "config.json", {**config, "id2label": labels})
    assert main(["info", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "3; a classifier of 3 labels, which e5core does not run; a reranker has one" in printed


def test_info_tells_the_kernels_and_why_not_faster_ones(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BACKENDS["native"], "unavailable", lambda *_: "there is no compiler")
    for arguments in ([], [str(tiny_folder)]):
        assert main(["info", *arguments]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        lines = [line for line in printed.out.splitlines() if line.startswith("kernels in float32")]
        assert len(lines) == 1
        assert "onednn (native cannot be used: there is no compiler)" in lines[0]
        assert ("versions" in printed.out) == (not arguments)
