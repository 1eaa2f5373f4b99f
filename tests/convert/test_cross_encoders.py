"""Conversions of cross-encoders: the head travels, and scores are compared before a result is in
place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import Tensors, rewrite
from support.conversions import content, convert, refused, run_convert
from support.models import write_tiny_reranker

from e5core import Reranker
from e5core.checkpoint.folder import ModelFolder
from e5core.convert import dtype as dtype_conversion
from e5core.convert import to_onnx
from e5core.formats.files import read_json_object, write_json
from e5core.parity.pairs import rank_correlation, sample_pairs, score, score_bound, score_ids
from e5core.parity.rerankers import reranker_ids

PAIRS = sample_pairs(40)
HEADS = {
    "bert": ("bert.pooler.dense", "classifier"),
    "xlm-roberta": ("classifier.dense", "classifier.out_proj"),
}


def scores(folder: Path, **options: Any) -> Any:
    return score(Reranker.from_pretrained(folder, **options), PAIRS)


def head_of(folder: Path, dialect: str) -> Tensors:
    stored = load_file(folder / "model.safetensors")
    return {name: t for name, t in stored.items() if name.startswith(HEADS[dialect])}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_precision(
    reranker_folder: Path,
    tmp_path: Path,
    dialect: str,
    dtype: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    new = tmp_path / "new"
    convert("dtype", reranker_folder, new, "--dtype", dtype, "--verify")
    out = capsys.readouterr().out
    assert "rank correlation" in out
    assert "left out" not in out
    stored = ModelFolder.read(new)
    assert stored.config.num_labels == 1
    assert stored.stored_dtype == getattr(torch, dtype)
    # The prefix of the task stays, so that transformers finds its tensors.
    names = {name.removesuffix("_scale") for name in load_file(new / "model.safetensors")}
    assert names == set(load_file(reranker_folder / "model.safetensors"))
    before, after = head_of(reranker_folder, dialect), head_of(new, dialect)
    assert len(before) == 4
    kept = torch.float32 if dtype == "int8" else getattr(torch, dtype)
    assert all(torch.equal(after[name], tensor.to(kept)) for name, tensor in before.items())
    assert rank_correlation(scores(new), scores(reranker_folder)) > 0.97


def test_from_int8_to_floats_and_back(reranker_folder: Path, tmp_path: Path) -> None:
    convert("dtype", reranker_folder, tmp_path / "int8", "--dtype", "int8")
    convert("dtype", tmp_path / "int8", tmp_path / "floats", "--dtype", "float32", "--verify")
    expected = scores(tmp_path / "int8", dtype="float32")
    assert np.array_equal(scores(tmp_path / "floats"), expected)
    with pytest.raises(ValueError, match="e5core-int8"):
        __import__("transformers").AutoConfig.from_pretrained(tmp_path / "int8")


def test_transformers_loads_a_result(oracle: Any, reranker_folder: Path, tmp_path: Path) -> None:
    convert("dtype", reranker_folder, tmp_path / "new", "--dtype", "bfloat16")
    auto = oracle.transformers.AutoModelForSequenceClassification
    _, info = auto.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_a_copy_whose_order_has_changed_is_refused(
    reranker_folder: Path,
    tmp_path: Path,
    dialect: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    to_dtype = dtype_conversion.to_dtype

    def turned(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        rounded = to_dtype(name, tensor, dtype)
        output = "classifier.weight" if dialect == "bert" else "classifier.out_proj.weight"
        return -rounded if name == output else rounded

    monkeypatch.setattr(dtype_conversion, "to_dtype", turned)
    line = fails(
        "dtype", capsys, reranker_folder, tmp_path / "new", "--dtype", "float16", "--verify"
    )
    assert "in float16 the outputs are too far from the source's" in line


def fails(
    name: str, capsys: pytest.CaptureFixture[str], source: Path, target: Path, *options: str
) -> str:
    """The line that a conversion prints that fails after it has printed others."""
    assert run_convert(name, source, target, *options) == 2
    assert not target.exists()
    return capsys.readouterr().err


def test_vocabulary(
    reranker_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the query\na passage\nsitting\n", encoding="utf-8")
    convert("trim-vocabulary", reranker_folder, tmp_path / "new", "--corpus", corpus, "--verify")
    out = capsys.readouterr().out
    assert "verified: 3 texts that are cut alike, scores compared bit by bit" in out
    assert "left out, as no part" not in out
    pairs = [("the query", "a passage"), ("sitting", "the passage")]
    before, after = (
        Reranker.from_pretrained(folder).score_pairs(pairs)
        for folder in (reranker_folder, tmp_path / "new")
    )
    assert np.array_equal(before, after)
    assert not (tmp_path / "new" / "config_sentence_transformers.json").exists()


def test_pytorch_bin(reranker_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "bin"
    reranker_folder.rename(source)
    expected = scores(source)
    state = load_file(source / "model.safetensors")
    torch.save(state, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    convert("pytorch-bin", source, tmp_path / "new", "--verify")
    found = load_file(tmp_path / "new" / "model.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert np.array_equal(scores(tmp_path / "new"), expected)


def test_sentence_transformers(
    reranker_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    measured: Callable[[str], None],
) -> None:
    library = pytest.importorskip("sentence_transformers")
    write_json(
        reranker_folder / "config_sentence_transformers.json",
        {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.linear.Identity"},
    )
    target = tmp_path / "new"
    convert("sentence-transformers", reranker_folder, target, "--verify")
    out = capsys.readouterr().out
    measured(next(line for line in out.splitlines() if "CrossEncoder" in line))
    assert "no prompts" not in out
    model = library.CrossEncoder(str(target), device="cpu")
    assert type(model.activation_fn).__name__ == "Identity"  # as the source has it
    expected = scores(reranker_folder)
    found = model.predict(PAIRS, show_progress_bar=False)
    assert np.abs(found - expected).max() <= score_bound(expected)
    # Longer than the limit, and both ways of cutting.
    long = [("the query " * 5, "a passage " * 90), ("the query " * 90, "a passage " * 90)]
    reranker = Reranker.from_pretrained(target)
    assert np.abs(model.predict(long) - score(reranker, long)).max() <= score_bound(expected)
    assert np.array_equal(scores(target), expected)


def test_sentence_transformers_finds_a_difference(
    reranker_folder: Path,
    tmp_path: Path,
    dialect: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("sentence_transformers")
    from e5core.convert import to_sentence_transformers as module

    verify = module.verify_vectors

    def spoilt(source: ModelFolder, target: Path) -> None:
        def change(tensors: Tensors) -> None:
            tensors[HEADS[dialect][1] + ".bias"] += 0.01

        rewrite(target, change)
        verify(source, target)

    monkeypatch.setattr(module, "verify_vectors", spoilt)
    new = tmp_path / "new"
    line = fails("sentence-transformers", capsys, reranker_folder, new, "--verify")
    assert "sentence-transformers' logits differ from e5core's by 1.0e-02" in line


@pytest.mark.parametrize("name", ["sentence-transformers", "onnx"])
@pytest.mark.parametrize("option", [("--prompts", "e5"), ("--task", "Find it")])
def test_prompts_are_refused(
    reranker_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    option: tuple[str, str],
) -> None:
    new = tmp_path / "new"
    line = refused(name, capsys, new, reranker_folder, new, *option)
    assert "a cross-encoder reads texts as they are; leave out --prompts and --task" in line


def test_a_name_that_tells_of_e5_gives_no_prompts(tmp_path: Path) -> None:
    source = write_tiny_reranker(tmp_path / "multilingual-e5-small-reranker", "bert")
    assert ModelFolder.read(source).prompts is None
    convert("dtype", source, tmp_path / "new", "--dtype", "float32")
    assert not (tmp_path / "new" / "config_sentence_transformers.json").exists()


# ---- ONNX

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


def session(folder: Path) -> Any:
    return onnxruntime.InferenceSession(
        str(folder / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"]
    )


def test_onnx(
    reranker_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    measured: Callable[[str], None],
) -> None:
    convert("onnx", reranker_folder, tmp_path / "new", "--verify")
    measured(capsys.readouterr().out.splitlines()[0].removeprefix("verified: "))
    path = tmp_path / "new" / "onnx" / "model.onnx"
    onnx.checker.check_model(path, full_check=True)
    graph = onnx.load(path).graph
    assert [entry.name for entry in graph.input] == ["input_ids", "attention_mask"]
    assert [entry.name for entry in graph.output] == ["logits"]
    axes = graph.output[0].type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in axes] == ["batch", 1]
    assert sorted(name for name in content(tmp_path / "new") if "/" not in name) == [
        "config.json",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    model, exported = Reranker.from_pretrained(reranker_folder), session(tmp_path / "new")
    ids = reranker_ids(model, [*PAIRS, ("the " * 99, "a " * 99), ("", "")])
    expected = score_ids(model, ids, 64)
    for left in (False, True):
        (found,) = exported.run(None, to_onnx.pad(ids, left))
        assert found.shape == (len(ids), 1)
        assert np.abs(found[:, 0] - expected).max() <= score_bound(expected)


def test_onnx_of_int8_and_with_token_types(reranker_folder: Path, tmp_path: Path) -> None:
    convert("dtype", reranker_folder, tmp_path / "int8", "--dtype", "int8")
    convert("onnx", tmp_path / "int8", tmp_path / "new", "--verify", "--token-type-ids")
    inputs = [entry.name for entry in session(tmp_path / "new").get_inputs()]
    assert inputs == ["input_ids", "attention_mask", "token_type_ids"]


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("parameter", ["weight", "bias"])
def test_onnx_finds_a_difference_in_the_head(
    reranker_folder: Path,
    tmp_path: Path,
    dialect: str,
    part: int,
    parameter: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = f"{HEADS[dialect][part]}.{parameter}".removeprefix("bert.")
    check_finite = to_onnx.check_finite

    def changed(found: str, tensor: torch.Tensor) -> torch.Tensor:
        tensor = check_finite(found, tensor)
        if found == name:
            tensor = tensor.clone()
            tensor.view(-1)[0] += 0.1
        return tensor

    monkeypatch.setattr(to_onnx, "check_finite", changed)
    new = tmp_path / "new"
    line = refused("onnx", capsys, new, reranker_folder, new, "--verify")
    assert "ONNX Runtime's logits of" in line


def test_a_head_with_a_number_that_is_none(
    reranker_folder: Path, tmp_path: Path, dialect: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = HEADS[dialect][0] + ".weight"
    tensors = load_file(reranker_folder / "model.safetensors")
    tensors[name][3, 4] = float("nan")
    save_file(tensors, reranker_folder / "model.safetensors")
    new = tmp_path / "new"
    line = refused("dtype", capsys, new, reranker_folder, new, "--dtype", "float32")
    assert f"{name} holds a NaN" in line
    assert read_json_object(reranker_folder / "config.json")["id2label"] == {"0": "LABEL_0"}
