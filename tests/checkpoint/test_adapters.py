"""LoRA adapters: merged as peft merges them, or refused by name."""

import json
import shutil
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapters import TARGETS, write_adapter
from support.conversions import convert
from support.models import write_tiny_model

from e5core import E5, Encoder, load_checkpoint
from e5core.checkpoint.folder import ModelFolder
from e5core.formats.files import read_json_object, write_json
from e5core.parity.tolerances import UNIT_VECTOR_FLOAT32

TEXTS = ["the query", "日本 é passage", "a " * 40]


def merged(base: Path, adapter: Path, target: Path, scale: float) -> Path:
    """The whole model that the two stand for."""
    shutil.copytree(base, target)
    tensors, low = (
        load_file(base / "model.safetensors"),
        load_file(adapter / "adapter_model.safetensors"),
    )
    for module in TARGETS:
        up, down = (low[f"base_model.model.{module}.lora_{x}.weight"] for x in "BA")
        tensors[f"{module}.weight"] += up @ down * scale
    save_file(tensors, target / "model.safetensors")
    return target


def vectors(folder: Path, **options: Any) -> np.ndarray:
    return E5.from_pretrained(folder, **options).encode(TEXTS, input_type=None)


@pytest.fixture
def base(tmp_path: Path, dialect: str) -> Path:
    return write_tiny_model(tmp_path / "base", dialect)


def beside(base: Path, tmp_path: Path, **config: Any) -> Path:
    """Adapter and whole weights in one folder, which names itself as the base or nothing."""
    folder = shutil.copytree(base, tmp_path / "beside")
    return write_adapter(folder, None, **config)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 6 / sqrt(3)),
        ({"lora_alpha": 9.0, "lora_dropout": 0.1, "target_modules": ["query"]}, 3.0),
        ({"alpha_pattern": {"query": 12, "value": 12, "dense": 12}}, 4.0),
        ({"r": 5, "rank_pattern": {"query|value|dense": 3}}, 2.0),
    ],
)
def test_an_adapter_is_merged(base: Path, tmp_path: Path, config: Any, scale: float) -> None:
    adapter = write_adapter(tmp_path / "adapter", base, **config)
    expected = vectors(merged(base, adapter, tmp_path / "merged", scale))
    assert np.abs(expected - vectors(base)).max() > 0.05
    np.testing.assert_allclose(vectors(adapter), expected, atol=UNIT_VECTOR_FLOAT32, rtol=0)
    np.testing.assert_allclose(
        vectors(beside(base, tmp_path, **config)), expected, atol=UNIT_VECTOR_FLOAT32, rtol=0
    )
    for name, options in (("dtype", ("--dtype", "float32")), ("sentence-transformers", ())):
        convert(name, adapter, tmp_path / name, *options)
        assert not (tmp_path / name / "adapter_config.json").exists()
        np.testing.assert_allclose(
            vectors(tmp_path / name), expected, atol=UNIT_VECTOR_FLOAT32, rtol=0
        )


def test_an_adapter_of_a_base_in_half_precision(tmp_path: Path) -> None:
    """What it changes is added in float32: bfloat16 would lose it."""
    tiny = write_tiny_model(tmp_path / "tiny", "bert")
    convert("dtype", tiny, tmp_path / "base", "--dtype", "bfloat16")
    adapter = write_adapter(tmp_path / "adapter", tmp_path / "base")
    convert("dtype", tmp_path / "base", tmp_path / "wide", "--dtype", "float32")
    expected = vectors(merged(tmp_path / "wide", adapter, tmp_path / "merged", 2.0))
    np.testing.assert_allclose(vectors(adapter), expected, atol=UNIT_VECTOR_FLOAT32, rtol=0)


def test_what_an_adapter_does_not_say_its_base_does(base: Path, tmp_path: Path) -> None:
    write_json(base / "tokenizer_config.json", {"model_max_length": 17})
    adapter = write_adapter(tmp_path / "adapter", base)
    folder = ModelFolder.open(adapter)
    assert (folder.max_length, folder.pooling) == (17, "mean")
    assert folder.prompts == ModelFolder.read(base).prompts
    assert folder.tokenizer_file == base / "sentencepiece.bpe.model"


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


FIRST = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "use_dora True"),
        ({"modules_to_save": ["pooler"]}, r"modules_to_save \['pooler'\]"),
        ({"bias": "all"}, "bias 'all'"),
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out True"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"something_new": 3}, "something_new 3"),
    ],
)
def test_other_adapters_are_refused(base: Path, tmp_path: Path, config: Any, message: str) -> None:
    adapter = write_adapter(tmp_path / "adapter", base, **config)
    with pytest.raises(ValueError, match=message + ".*merge it first"):
        E5.from_pretrained(adapter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(FIRST), "has one of lora_A and lora_B for encoder.layer.0.attention"),
        (lambda t: t.update({"base_model.model.x.weight": torch.ones(1)}), "holds .*merge it"),
        (lambda t: t.update({FIRST: torch.ones(3, 9)}), "whose weight is"),
        (
            lambda t: t.update({FIRST.replace("layer.0", "layer.9"): torch.ones(3, 24)}),
            "changes encoder.layer.9.attention.self.query, which is no linear of this model",
        ),
        (lambda t: t.clear(), "holds no tensors"),
    ],
)
def test_adapters_that_do_not_fit(base: Path, tmp_path: Path, change: Any, message: str) -> None:
    adapter = write_adapter(tmp_path / "adapter", base)
    change_tensors(adapter, change)
    with pytest.raises(ValueError, match=message):
        E5.from_pretrained(adapter)


def test_layouts_that_nothing_tells_apart_are_refused(base: Path, tmp_path: Path) -> None:
    """Whole weights beside an adapter of a model that is not here may be merged already."""
    folder = shutil.copytree(base, tmp_path / "both")
    write_adapter(folder, "intfloat/multilingual-e5-small")
    with pytest.raises(ValueError, match=r"whole weights and an adapter.*merge it first"):
        E5.from_pretrained(folder)
    deeper = shutil.copytree(base, tmp_path / "deeper")
    write_adapter(deeper / "lora", base)
    with pytest.raises(ValueError, match=r"lora holds an adapter.*merge it first"):
        E5.from_pretrained(deeper)
    alone = write_adapter(tmp_path / "alone", None)
    with pytest.raises(ValueError, match=r"nor the name of its base model.*merge it first"):
        E5.from_pretrained(alone)
    pickled = write_adapter(tmp_path / "pickled", base)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no adapter_model\.safetensors.*merge it first"):
        E5.from_pretrained(pickled)


def test_adapters_of_adapters_are_refused(base: Path, tmp_path: Path) -> None:
    """One of the two would be lost, and a circle of them would never end."""
    first = write_adapter(tmp_path / "first", base)
    second = write_adapter(tmp_path / "second", first)
    with pytest.raises(ValueError, match=r"first, which holds an adapter itself; merge that one"):
        E5.from_pretrained(second)
    write_adapter(first, second)
    with pytest.raises(ValueError, match="which holds an adapter itself"):
        E5.from_pretrained(second)


@pytest.mark.parametrize("patterns", [[1], {"(": 3}, {"query": "3"}])
@pytest.mark.parametrize("name", ["rank_pattern", "alpha_pattern"])
def test_patterns_that_are_none(tmp_path: Path, name: str, patterns: Any) -> None:
    base = write_tiny_model(tmp_path / "base", "bert")
    adapter = write_adapter(tmp_path / "adapter", base, **{name: patterns})
    with pytest.raises(ValueError, match=r"adapter_config\.json: .*expected (a )?number"):
        E5.from_pretrained(adapter)


def test_a_base_that_is_missing_is_named_with_its_adapter(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", tmp_path / "gone")
    with pytest.raises(OSError, match=r"the base model of the adapter in .*adapter: .*gone"):
        E5.from_pretrained(adapter)


def test_loading_weights_alone_does_not_forget_an_adapter(base: Path, tmp_path: Path) -> None:
    folder = beside(base, tmp_path)
    encoder = Encoder(ModelFolder.read(base).config)
    with pytest.raises(ValueError, match="adapter"):
        load_checkpoint(encoder, folder)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"target_modules": "all-linear"}])
def test_peft_gives_the_same_vectors(tmp_path: Path, options: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    library = pytest.importorskip("sentence_transformers")
    tiny = write_tiny_model(tmp_path / "tiny", "xlm-roberta")
    convert("sentence-transformers", tiny, tmp_path / "base")
    model = library.SentenceTransformer(str(tmp_path / "base"), device="cpu")
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value", "dense"], **options}
    model.add_adapter(peft.LoraConfig(**settings))
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.eval().save(str(tmp_path / "adapter"))
    expected = library.SentenceTransformer(str(tmp_path / "adapter"), device="cpu").encode(TEXTS)
    assert np.abs(expected - vectors(tmp_path / "base")).max() > 0.02
    np.testing.assert_allclose(
        vectors(tmp_path / "adapter"), expected, atol=UNIT_VECTOR_FLOAT32 * 2, rtol=0
    )
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert read_json_object(tmp_path / "base" / "config.json")
