"""config.json in and out: the published models, and every setting that must be refused."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support.models import TINY

from e5core import Encoder, EncoderConfig

# name: (dialect, layers, hidden, heads, feed-forward, vocabulary, position rows, types, eps),
# as the models' own config.json say it.
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "multilingual-e5-small": ("bert", 12, 384, 12, 1536, 250037, 512, 2, 1e-12),
    "multilingual-e5-base": ("xlm-roberta", 12, 768, 12, 3072, 250002, 514, 1, 1e-5),
    "multilingual-e5-large": ("xlm-roberta", 24, 1024, 16, 4096, 250002, 514, 1, 1e-5),
}


def published_config(name: str) -> dict[str, Any]:
    kind, layers, hidden, heads, inner, vocabulary, rows, types, eps = PUBLISHED[name]
    return {
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": rows,
        "type_vocab_size": types,
        "layer_norm_eps": eps,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "attention_probs_dropout_prob": 0.1,
        "hidden_dropout_prob": 0.1,
        "pad_token_id": 0 if kind == "bert" else 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "torch_dtype": "float32",
        "use_cache": True,
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(oracle: ModuleType, name: str) -> None:
    config = EncoderConfig.from_dict(published_config(name))
    assert config.first_position == (0 if name.endswith("small") else 2)
    assert config.max_length == 512
    assert config.head_size == (32 if name.endswith("small") else 64)
    model = oracle.transformers.AutoModel  # imported now: torch 2.6 cannot import all on "meta"
    with torch.device("meta"):
        ours = Encoder(config)
        theirs = model.from_config(
            oracle.transformers.AutoConfig.for_model(**published_config(name)),
            add_pooling_layer=False,
        )
    assert config.num_parameters == sum(p.numel() for p in ours.parameters())
    assert config.num_parameters == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_round_trip_keeps_what_was_published(name: str) -> None:
    published = published_config(name)
    config = EncoderConfig.from_dict(published)
    written = config.to_dict()
    assert EncoderConfig.from_dict(written) == config
    assert {key: written[key] for key in written if key in published} == {
        key: published[key] for key in written if key in published
    }


def test_dropouts_survive_the_round_trip(dialect: str) -> None:
    published = TINY[dialect].to_dict() | {
        "hidden_dropout_prob": 0,
        "attention_probs_dropout_prob": 0.25,
    }
    config = EncoderConfig.from_dict(published)
    assert (config.hidden_dropout, config.attention_dropout) == (0.0, 0.25)
    assert EncoderConfig.from_dict(config.to_dict()) == config


def test_what_is_left_out_is_what_transformers_assumes(oracle: ModuleType, dialect: str) -> None:
    left_out = ("layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob")
    published = TINY[dialect].to_dict()
    for name in (*left_out, "pad_token_id"):
        del published[name]
    config = EncoderConfig.from_dict(published)
    theirs = oracle.transformers.AutoConfig.for_model(**published)
    found = (config.layer_norm_eps, config.hidden_dropout, config.attention_dropout)
    assert found == tuple(getattr(theirs, name) for name in left_out)
    if dialect == "xlm-roberta":
        assert config.first_position == theirs.pad_token_id + 1


def refused(content: object, path: Path, *says: str) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        EncoderConfig.from_file(path)
    assert str(caught.value).count(str(path)) == 1
    for words in says:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "kind", ["gpt2", "deberta-v2", "roberta", "XLM-RoBERTa", None, 1, ["bert"]]
)
def test_another_architecture(tmp_path: Path, kind: object) -> None:
    """Named first: such a file may lack or contradict everything else."""
    other = {"model_type": kind, "n_embd": 768, "hidden_act": "gelu_new", "pad_token_id": None}
    refused(other, tmp_path / "config.json", f"model_type is {kind!r}", "bert or xlm-roberta")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_act", "gelu_new"),
        ("hidden_act", "relu"),
        ("hidden_act", None),
        ("position_embedding_type", "relative_key"),
        ("position_embedding_type", "relative_key_query"),
        ("is_decoder", True),
        ("add_cross_attention", True),
    ],
)
def test_other_arithmetic(tmp_path: Path, dialect: str, name: str, value: object) -> None:
    content = TINY[dialect].to_dict() | {name: value}
    refused(content, tmp_path / "config.json", f"{name} is {value!r}", "computes")


WHOLE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)
FRACTIONS = ("layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob")


@pytest.mark.parametrize("value", ["12", None, -1, 0, 12.0, 12.5, True, [12], {}, float("inf")])
@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers(tmp_path: Path, dialect: str, name: str, value: object) -> None:
    content = TINY[dialect].to_dict() | {name: value}
    refused(content, tmp_path / "config.json", f"{name} is {value!r}", "a whole number from 1 on")


@pytest.mark.parametrize("name", WHOLE)
def test_dimensions_must_be_there(tmp_path: Path, dialect: str, name: str) -> None:
    content = TINY[dialect].to_dict()
    del content[name]
    refused(content, tmp_path / "config.json", f"{name} is None")


@pytest.mark.parametrize("value", ["1e-5", None, -1e-9, 1, 1.5, True, float("nan"), float("inf")])
@pytest.mark.parametrize("name", FRACTIONS)
def test_fractions(tmp_path: Path, dialect: str, name: str, value: object) -> None:
    content = TINY[dialect].to_dict() | {name: value}
    refused(content, tmp_path / "config.json", f"{name} is {value!r}", "from 0 to below 1")


@pytest.mark.parametrize("value", ["1", None, -1, 1.0, True])
def test_pad_token_id_counts_for_xlm_roberta_alone(tmp_path: Path, value: object) -> None:
    content = TINY["xlm-roberta"].to_dict() | {"pad_token_id": value}
    refused(content, tmp_path / "config.json", f"pad_token_id is {value!r}")
    bert = TINY["bert"].to_dict() | {"pad_token_id": value}
    assert EncoderConfig.from_dict(bert) == TINY["bert"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": 25}, "hidden_size 25 does not divide into 4 attention heads"),
        ({"max_position_embeddings": 2}, "expected room for at least 3"),
    ],
)
def test_numbers_that_do_not_fit(
    tmp_path: Path, dialect: str, changes: dict[str, int], says: str
) -> None:
    refused(TINY[dialect].to_dict() | changes, tmp_path / "config.json", says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[1, 2]", "holds a JSON list, expected an object"),
        ('"bert"', "holds a JSON str"),
        ("[" * 99999, "not valid JSON"),
    ],
    ids=["empty", "cut", "list", "string", "deep"],
)
def test_not_a_config(tmp_path: Path, text: str, says: str) -> None:
    refused(text, tmp_path / "config.json", says)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        EncoderConfig.from_file(tmp_path / "config.json")


@pytest.mark.parametrize(("kind", "first"), [("bert", 2), ("xlm-roberta", 0)])
def test_what_no_config_can_say_is_not_written(kind: str, first: int) -> None:
    config = EncoderConfig(kind, 120, 24, 3, 4, 40, 66, first, 2, 1e-12)
    with pytest.raises(ValueError, match=f"first_position is {first} in a {kind} config"):
        config.to_dict()
