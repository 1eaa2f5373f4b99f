"""pytorch_model.bin to safetensors: names, buffers, heads, shards, and files that bring code."""

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.conversions import MEMORY, OPEN, Bomb, content, convert, convert_in_process, refused
from support.models import TINY, tiny_encoder
from torch import Tensor

from e5core import E5, Encoder, EncoderConfig, save_checkpoint
from e5core.checkpoint.names import tensor_names
from e5core.formats.files import read_json_object, write_json
from e5core.parity.samples import SENTENCES, spread_weights

State = dict[str, Tensor]
Make = Callable[..., Path]


def published(dialect: str) -> State:
    """The tensors of the tiny encoder under their published names."""
    state = tiny_encoder(dialect).state_dict()
    return {name: state[ours] for name, ours in tensor_names(TINY[dialect]).items()}


def as_bin(folder: Path, state: Any, **options: Any) -> Path:
    """The folder with its weights in pytorch_model.bin."""
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin", **options)
    return folder


def old_names(state: State) -> State:
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in state.items()
    }
    return {**renamed, "embeddings.position_ids": torch.arange(64)[None]}


def task_model(prefix: str, head: State) -> Callable[[State], State]:
    return lambda state: {**{prefix + name: tensor for name, tensor in state.items()}, **head}


def tied(state: State) -> State:
    """A masked language model: its head is the token table itself, saved once."""
    words = state["embeddings.word_embeddings.weight"]
    head = {"lm_head.decoder.weight": words, "lm_head.bias": torch.zeros(len(words))}
    return task_model("roberta.", head)(state)


def one_storage(state: State) -> State:
    """Every tensor a view of one long vector, the matrices stored column by column."""
    storage = torch.cat([(t.T if t.dim() == 2 else t).reshape(-1) for t in state.values()])
    views, place = {}, 0
    for name, tensor in state.items():
        view = storage[place : place + tensor.numel()].view(tensor.shape[::-1])
        views[name] = view.T if tensor.dim() == 2 else view
        place += tensor.numel()
    return views


FORMS: dict[str, Callable[[State], State]] = {
    "as published": lambda state: state,
    "gamma and beta": old_names,
    "roberta.": task_model("roberta.", {"classifier.dense.weight": torch.ones(3, 3)}),
    "bert.": task_model("bert.", {"cls.predictions.bias": torch.ones(3)}),
    "tied": tied,
    "one storage": one_storage,
    "parameters": lambda state: {n: torch.nn.Parameter(t) for n, t in state.items()},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("zipped", [True, False])
def test_every_form_becomes_the_published_one(
    tiny_folder: Path, dialect: str, tmp_path: Path, form: str, zipped: bool
) -> None:
    state = published(dialect)
    before = E5.from_pretrained(tiny_folder, prompts="e5").encode_query(SENTENCES[:4])
    as_bin(tiny_folder, FORMS[form](state), _use_new_zipfile_serialization=zipped)
    convert("pytorch-bin", tiny_folder, tmp_path / "new", "--verify")

    found = load_file(tmp_path / "new" / "model.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    source, target = content(tiny_folder), content(tmp_path / "new")
    del source["pytorch_model.bin"], target["model.safetensors"]
    assert target == source
    after = E5.from_pretrained(tmp_path / "new").encode_query(SENTENCES[:4])
    assert np.array_equal(before, after)


def test_there_and_back_is_the_same_file(tiny_folder: Path, dialect: str, tmp_path: Path) -> None:
    before = (tiny_folder / "model.safetensors").read_bytes()
    as_bin(tiny_folder, published(dialect))
    convert("pytorch-bin", tiny_folder, tmp_path / "new")
    assert (tmp_path / "new" / "model.safetensors").read_bytes() == before


def test_the_pooler_travels_and_heads_are_named(
    make_tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pooler = {
        "bert.pooler.dense.weight": torch.ones(24, 24),
        "bert.pooler.dense.bias": torch.ones(24),
    }
    head = {**pooler, "classifier.weight": torch.ones(2, 24)}
    folder = as_bin(make_tiny(), task_model("bert.", head)(published("bert")))
    convert("pytorch-bin", folder, tmp_path / "new")
    assert "left out, as no part of the encoder: classifier.weight\n" in capsys.readouterr().out
    found = load_file(tmp_path / "new" / "model.safetensors")
    assert torch.equal(found["pooler.dense.weight"], torch.ones(24, 24))
    assert len(found) == len(published("bert")) + 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_stay(make_tiny: Make, tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in published("bert").items()}
    convert("pytorch-bin", as_bin(make_tiny(), state), tmp_path / "new", "--verify")
    found = load_file(tmp_path / "new" / "model.safetensors")
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert {tensor.dtype for tensor in found.values()} == {dtype}


def shard(folder: Path, state: State) -> Path:
    """Three files and their index."""
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number in range(3):
        file = f"pytorch_model-{number + 1:05d}-of-00003.bin"
        part = dict(list(state.items())[number::3])
        torch.save(part, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    write_json(folder / "pytorch_model.bin.index.json", {"weight_map": weight_map})
    return folder


def test_shards(tiny_folder: Path, dialect: str, tmp_path: Path) -> None:
    before = (tiny_folder / "model.safetensors").read_bytes()
    convert("pytorch-bin", shard(tiny_folder, published(dialect)), tmp_path / "new", "--verify")
    assert (tmp_path / "new" / "model.safetensors").read_bytes() == before


def test_the_summary_is_true(
    make_tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert("pytorch-bin", as_bin(make_tiny(), published("bert")), tmp_path / "new", "--verify")
    written = (tmp_path / "new" / "model.safetensors").read_bytes()
    parameters = TINY["bert"].num_parameters
    assert capsys.readouterr().out == (
        "verified: 53 tensors, compared bit by bit\n"
        f"{tmp_path / 'new'}: 53 tensors, {parameters:,} parameters\n"
        f"  model.safetensors: {len(written):,} bytes, "
        f"sha256 {hashlib.sha256(written).hexdigest()}\n"
    )


class Shell(Bomb):
    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("bomb", [Bomb, Shell])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_is_refused_and_not_run(
    make_tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], bomb: type[Bomb], form: str
) -> None:
    folder, trace = make_tiny(), tmp_path / "trace"
    state: Any = {**published("bert"), "x": bomb(trace)}
    if form == "pickle":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(state))
    else:
        as_bin(folder, state, _use_new_zipfile_serialization=form == "zip")
    line = refused("pytorch-bin", capsys, tmp_path / "new", folder, tmp_path / "new")
    assert not trace.exists()
    if form != "pickle":  # no file of torch.save at all: refused before its first object
        wanted = OPEN if bomb is Bomb else "posix.system"
        assert f"wants {wanted}, which is code and no weight; nothing of it was run" in line
    # It is a bomb: unpickled as any pickle is, it does make the file.
    if form == "pickle":
        pickle.loads((folder / "pytorch_model.bin").read_bytes())
    else:
        torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert trace.exists()


def missing(state: State) -> None:
    del state["encoder.layer.1.output.dense.bias"], state["embeddings.LayerNorm.weight"]


def misshapen(state: State) -> None:
    state["embeddings.position_embeddings.weight"] = torch.zeros(63, 24)


def unexpected(state: State) -> None:
    state["encoder.layer.3.output.dense.bias"] = torch.zeros(24)


def quantised(state: State) -> None:
    state["embeddings.word_embeddings.weight"] = torch.ones(120, 24, dtype=torch.int8)


def twice(state: State) -> None:
    state["embeddings.LayerNorm.gamma"] = torch.ones(24)


def not_a_number(state: State) -> None:
    state["encoder.layer.2.output.dense.bias"][3] = torch.nan


def no_tensor(state: Any) -> None:
    state["epoch"] = 3


def sparse(state: State) -> None:
    words = state["embeddings.word_embeddings.weight"]
    state["embeddings.word_embeddings.weight"] = words.to_sparse()


def other_model(state: State) -> None:
    for name in list(state):
        state[f"transformer.{name}"] = state.pop(name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing, "missing: encoder.layer.1.output.dense.bias"),
        (misshapen, "embeddings.position_embeddings.weight is [63, 24], config.json says [64, 24]"),
        (unexpected, "unexpected: encoder.layer.3.output.dense.bias"),
        (quantised, "embeddings.word_embeddings.weight is I8 and its scales are missing"),
        (twice, "pytorch_model.bin are the same tensor; keep one of them"),
        (not_a_number, "encoder.layer.2.output.dense.bias holds a NaN or an infinity"),
        (no_tensor, "pytorch_model.bin holds 'epoch', a int, expected dense tensors"),
        (sparse, "'embeddings.word_embeddings.weight', a torch.sparse_coo, expected dense"),
        (other_model, "this is not a BERT or XLM-RoBERTa checkpoint"),
    ],
)
def test_damage_is_named(
    make_tiny: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Any], None],
    message: str,
) -> None:
    state = published("bert")
    damage(state)
    folder = as_bin(make_tiny(), state)
    assert message in refused("pytorch-bin", capsys, tmp_path / "new", folder, tmp_path / "new")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_anywhere_is_refused(
    make_tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], zipped: bool
) -> None:
    folder = as_bin(make_tiny(), published("bert"), _use_new_zipfile_serialization=zipped)
    file, target = folder / "pytorch_model.bin", tmp_path / "new"
    whole = file.read_bytes()
    for length in (0, 1, 3, 4, 40, 200, 1000, 5000, 20_000, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert "pytorch_model.bin" in refused("pytorch-bin", capsys, target, folder, target)


def test_what_is_no_such_folder(
    make_tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, target = make_tiny(), tmp_path / "new"
    line = refused("pytorch-bin", capsys, target, folder, target)
    assert "has no pytorch_model.bin and no pytorch_model.bin.index.json" in line
    assert "has no config.json" in refused("pytorch-bin", capsys, target, tmp_path / "none", target)
    torch.save([1, 2], folder / "pytorch_model.bin")
    line = refused("pytorch-bin", capsys, target, folder, target)
    assert "pytorch_model.bin is a list, expected names to tensors" in line
    config = read_json_object(folder / "config.json")
    write_json(folder / "config.json", {**config, "model_type": "distilbert"})
    line = refused("pytorch-bin", capsys, target, folder, target)
    assert "model_type is 'distilbert', expected bert or xlm-roberta" in line


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "has no weight_map that names files beside it"),
        ({"weight_map": {"x": "../secret.bin"}}, "expected the name of a file beside the index"),
        ({"weight_map": {"x": "gone.bin"}}, "names gone.bin, which"),
    ],
)
def test_an_index_that_is_wrong(
    make_tiny: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    index: dict[str, Any],
    message: str,
) -> None:
    folder = shard(make_tiny(), published("bert"))
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert message in refused("pytorch-bin", capsys, tmp_path / "new", folder, tmp_path / "new")


@pytest.mark.exhaustive(sample=0)
def test_memory_is_that_of_the_largest_tensor(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    config = EncoderConfig("bert", 20_000, 512, 12, 8, 2048, 64, 0, 2, 1e-12)
    folder = tmp_path / "large"
    save_checkpoint(spread_weights(Encoder(config), 0), folder)
    state = load_file(folder / "model.safetensors")
    largest = max(tensor.nbytes for tensor in state.values())
    size = sum(tensor.nbytes for tensor in state.values())
    as_bin(folder, state)
    del state
    done = convert_in_process("pytorch-bin", folder, tmp_path / "new", "--verify", wrapper=MEMORY)
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout.split("grown by")[1])
    measured(
        f"pytorch-bin --verify: {size / 1e6:.0f} MB of weights, largest tensor "
        f"{largest / 1e6:.0f} MB: memory grew by {grown / 1e6:.0f} MB"
    )
    # Verifying holds two tensors, and a tenth of the file is for reading it.
    assert grown < 2 * largest + 20e6 < size / 1.5


def test_transformers_loads_the_result(
    tiny_folder: Path, dialect: str, tmp_path: Path, oracle: Any
) -> None:
    state = published(dialect)
    as_bin(tiny_folder, old_names(state))
    convert("pytorch-bin", tiny_folder, tmp_path / "new")
    reference = oracle.load_reference(tmp_path / "new").state_dict()
    assert all(torch.equal(reference[name], tensor) for name, tensor in state.items())
