"""The heads of cross-encoders: both published layouts, in and out."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import Tensors, rewrite, split
from support.models import TINY, tiny_cross_encoder, tiny_encoder, write_tiny_reranker

from e5core import CheckpointError, Encoder, Reranker, load_checkpoint, save_checkpoint
from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.headers import WEIGHTS_FILE
from e5core.checkpoint.names import head_names, task_name, tensor_names, tensor_shapes
from e5core.encoder import ClassificationHead
from e5core.formats.files import read_json_object, write_json

PAIRS = [("the query", "a passage"), ("the query", "another"), ("one", "the")]
# The first and the second linear of the head, as each dialect names them.
HEADS = {
    "bert": ("bert.pooler.dense", "classifier"),
    "xlm-roberta": ("classifier.dense", "classifier.out_proj"),
}


def scores(folder: Path) -> Any:
    return Reranker.from_pretrained(folder, kernels="plain").score_pairs(PAIRS)


def test_names_and_shapes_are_those_of_transformers(oracle: ModuleType, dialect: str) -> None:
    config = replace(TINY[dialect], num_labels=1)
    published = oracle.transformers.AutoConfig.for_model(**config.to_dict())
    auto = oracle.transformers.AutoModelForSequenceClassification
    with torch.device("meta"):
        theirs = auto.from_config(published).state_dict()
    assert {task_name(name, config): shape for name, shape in tensor_shapes(config).items()} == {
        name: tuple(tensor.shape) for name, tensor in theirs.items()
    }
    with torch.device("meta"):
        ours = ClassificationHead(config).state_dict()
    assert set(head_names(config).values()) == set(ours)
    assert len(tensor_shapes(config)) == len(tensor_names(config)) + 4


def test_an_encoder_has_no_head(dialect: str) -> None:
    config = TINY[dialect]
    assert head_names(config) == {}
    assert all(task_name(name, config) == name for name in tensor_names(config))


def test_transformers_loads_what_is_saved(oracle: ModuleType, tmp_path: Path, dialect: str) -> None:
    encoder, head = tiny_cross_encoder(dialect)
    save_checkpoint(encoder, tmp_path, head)
    auto = oracle.transformers.AutoModelForSequenceClassification
    theirs, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.config.num_labels == 1
    stored = theirs.state_dict()
    for part, names in (
        (encoder, tensor_names(encoder.config)),
        (head, head_names(encoder.config)),
    ):
        for name, ours in names.items():
            assert torch.equal(stored[task_name(name, encoder.config)], part.state_dict()[ours])
    assert {
        name.rsplit(".", 1)[0] for name in stored if "classifier" in name or "pooler" in name
    } == set(HEADS[dialect])


def test_the_way_there_and_back_keeps_every_byte(
    oracle: ModuleType, tmp_path: Path, dialect: str
) -> None:
    torch.manual_seed(3)
    config = replace(TINY[dialect], num_labels=1)
    published = oracle.transformers.AutoConfig.for_model(**config.to_dict())
    theirs = oracle.transformers.AutoModelForSequenceClassification.from_config(published)
    theirs.save_pretrained(tmp_path / "theirs")
    folder = ModelFolder.read(tmp_path / "theirs")
    assert folder.config == config
    with torch.device("meta"):
        encoder = Encoder(config, "plain")
    load_checkpoint(encoder, tmp_path / "theirs")
    save_checkpoint(encoder, tmp_path / "ours", folder.load_head())
    before, after = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("theirs", "ours"))
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name].view(torch.int32), after[name].view(torch.int32))


def test_saving_again_gives_the_same_scores(reranker_folder: Path, tmp_path: Path) -> None:
    folder = ModelFolder.read(reranker_folder)
    encoder = Encoder(folder.config, "plain")
    load_checkpoint(encoder, reranker_folder)
    before = scores(reranker_folder)
    save_checkpoint(encoder, reranker_folder, folder.load_head())
    assert np.array_equal(scores(reranker_folder), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_saving_keeps_the_dtype(tmp_path: Path, dialect: str, dtype: torch.dtype) -> None:
    encoder, head = tiny_cross_encoder(dialect)
    save_checkpoint(encoder.to(dtype), tmp_path, head.to(dtype))
    assert {tensor.dtype for tensor in load_file(tmp_path / WEIGHTS_FILE).values()} == {dtype}
    wide = torch.promote_types(dtype, torch.float32)
    loaded = ModelFolder.read(tmp_path).load_head()
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == wide
        assert torch.equal(tensor, head.state_dict()[name].to(wide))


def test_head_and_config_must_agree(tmp_path: Path, dialect: str) -> None:
    encoder, head = tiny_cross_encoder(dialect)
    with pytest.raises(ValueError, match="counts 1 labels, the head gives 0; pass a cross"):
        save_checkpoint(encoder, tmp_path / "new")
    with pytest.raises(ValueError, match="counts 0 labels, the head gives 1"):
        save_checkpoint(tiny_encoder(dialect), tmp_path / "new", head)
    two = tiny_cross_encoder(dialect, labels=2)[1]
    with pytest.raises(ValueError, match="counts 1 labels, the head gives 2"):
        save_checkpoint(encoder, tmp_path / "new", two)
    assert not (tmp_path / "new").exists()


def test_a_split_file(reranker_folder: Path) -> None:
    before = scores(reranker_folder)
    split(reranker_folder)
    assert np.array_equal(scores(reranker_folder), before)


def test_every_fault_of_head_and_encoder_in_one_error(reranker_folder: Path, dialect: str) -> None:
    first, second = HEADS[dialect]

    def damage(tensors: Tensors) -> None:
        del tensors[f"{first}.bias"]
        tensors[f"{first}.weight"] = tensors[f"{first}.weight"][:7].clone()
        tensors[f"{second}.weight"] = tensors[f"{second}.weight"].to(torch.int32)
        tensors["classifier.norm.weight"] = torch.ones(24)
        encoder = "bert." if dialect == "bert" else "roberta."
        del tensors[encoder + "encoder.layer.1.output.dense.bias"]

    rewrite(reranker_folder, damage)
    with pytest.raises(CheckpointError) as caught:
        Reranker.from_pretrained(reranker_folder)
    says = str(caught.value)
    first = first.removeprefix("bert.")
    assert f"missing: {first}.bias" in says
    assert f"misshapen: {first}.weight is [7, 24], config.json says [24, 24]" in says
    assert f"dtype: {second}.weight is I32" in says
    assert "unexpected: classifier.norm.weight" in says
    assert "missing: encoder.layer.1.output.dense.bias" in says
    assert "(5 faults)" in says


def test_the_head_of_the_other_dialect(tmp_path: Path, dialect: str) -> None:
    folder = write_tiny_reranker(tmp_path / "model", dialect)
    other = "bert" if dialect == "xlm-roberta" else "xlm-roberta"
    names = {
        f"{a}.{p}".removeprefix("bert."): f"{b}.{p}".removeprefix("bert.")
        for a, b in zip(HEADS[dialect], HEADS[other], strict=True)
        for p in ("weight", "bias")
    }
    rewrite(folder, lambda t: {names.get(n.removeprefix("bert."), n): v for n, v in t.items()})
    with pytest.raises(CheckpointError) as caught:
        Reranker.from_pretrained(folder)
    assert f"missing: {HEADS[dialect][1]}.weight" in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_head_with_a_number_that_is_none(
    reranker_folder: Path, dialect: str, value: float
) -> None:
    name = HEADS[dialect][1] + ".weight"

    def damage(tensors: Tensors) -> None:
        tensors[name][0, 3] = value

    rewrite(reranker_folder, damage)
    with pytest.raises(CheckpointError, match=f"{name} holds a NaN or an infinity"):
        Reranker.from_pretrained(reranker_folder)


@pytest.mark.parametrize("labels", [2, 3])
def test_more_than_one_label(tmp_path: Path, dialect: str, labels: int) -> None:
    folder = write_tiny_reranker(tmp_path / "model", dialect, labels=labels)
    with pytest.raises(ValueError, match=f"a head of {labels} labels, a reranker has one of 1"):
        Reranker.from_pretrained(folder)


def test_no_label(reranker_folder: Path) -> None:
    path = reranker_folder / "config.json"
    write_json(path, {**read_json_object(path), "id2label": {}})
    with pytest.raises(ValueError, match="num_labels is 0, expected a whole number from 1 on"):
        Reranker.from_pretrained(reranker_folder)


def test_labels_that_are_not_counted_are_two(reranker_folder: Path) -> None:
    """transformers' default: a config without id2label and num_labels has two."""
    path = reranker_folder / "config.json"
    content = read_json_object(path)
    del content["id2label"]
    write_json(path, content)
    with pytest.raises(CheckpointError, match=r"weight is \[1, 24\], config\.json says \[2, 24\]"):
        Reranker.from_pretrained(reranker_folder)
    write_json(path, {**content, "num_labels": 1})
    assert Reranker.from_pretrained(reranker_folder).config.num_labels == 1


def test_an_older_file_with_a_pooler_that_is_not_used(tmp_path: Path) -> None:
    folder = write_tiny_reranker(tmp_path / "model", "xlm-roberta")
    before = scores(folder)
    pooler = {
        "roberta.pooler.dense.weight": torch.ones(24, 24),
        "roberta.pooler.dense.bias": torch.ones(24),
        "roberta.embeddings.position_ids": torch.arange(66)[None],
    }
    rewrite(folder, lambda tensors: tensors | pooler)
    assert np.array_equal(scores(folder), before)


def test_head_and_encoder_in_files_without_prefix(reranker_folder: Path) -> None:
    """As a library writes that saves the parts by itself."""
    before = scores(reranker_folder)
    tensors = load_file(reranker_folder / WEIGHTS_FILE)
    bare = {n.removeprefix("bert.").removeprefix("roberta."): t for n, t in tensors.items()}
    save_file(bare, reranker_folder / WEIGHTS_FILE)
    assert np.array_equal(scores(reranker_folder), before)
