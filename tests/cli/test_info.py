"""e5core info: what a model says of itself, without its weights."""

from pathlib import Path

import pytest

from e5core import E5
from e5core.cli import main


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
