"""e5core info: what a model says of itself, without its weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.models import CPU, TINY, write_tiny_reranker

from e5core import E5
from e5core.cli import info, main
from e5core.encoder import ClassificationHead
from e5core.formats.files import read_json_object, write_json
from e5core.kernels import BACKENDS, BY_NAME, threads, why_not
from e5core.kernels.native import BY_INSTRUCTIONS, library
from e5core.kernels.onednn import has_amx

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


def rows_of_cpu(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    assert main(["info", "--cpu"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    rows = dict(line.split("  ", 1) for line in printed.out.splitlines())
    return {name: value.strip() for name, value in rows.items()}


def test_info_tells_what_each_instruction_set_is_good_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "quota", lambda: 1.5)
    monkeypatch.setattr(threads, "affinity", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    rows = rows_of_cpu(capsys)
    assert rows["threads"].startswith("2; torch is set to 7, the system allows ")
    assert rows["threads"].endswith(" CPUs and the time of 1.5")
    for name in BY_INSTRUCTIONS:
        reason = why_not(BY_NAME[f"native/{name}"], CPU, torch.float32)
        assert rows[f"native/{name}"].startswith(reason or "float32, ")
        if reason is None:  # each dtype is there, and what "auto" takes is one of these
            assert "bfloat16" in rows[f"native/{name}"]
    if why_not(BACKENDS["native"], CPU, torch.float32) is None:
        assert rows["kernels in float32"].startswith("native/")


def test_info_says_why_native_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    library.load.cache_clear()
    rows = rows_of_cpu(capsys)
    library.load.cache_clear()
    missing = "they were not compiled: e5core was installed without g++ or clang++"
    assert rows["native/avx2"] == rows["native/avx512"] == missing
    assert rows["native/neon"] == "they are for aarch64, and this CPU is x86_64"
    assert f"native cannot be used: {missing}" in rows["kernels in float32"]


def test_info_knows_amx(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rows_of_cpu(capsys)["AMX"].startswith("yes" if has_amx() else "no")
    monkeypatch.setattr(info, "has_amx", lambda: True)
    assert rows_of_cpu(capsys)["AMX"] == "yes: bfloat16 takes onednn, which uses it"


def test_info_names_the_cpu(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor : 0\nmodel name\t: A CPU: 3 GHz\n\nmodel name : another\n")
    assert info.model_of_cpu(file) == "A CPU: 3 GHz"
    assert info.model_of_cpu(tmp_path / "none")
