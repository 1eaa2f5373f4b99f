"""fairseq checkpoints, as old and newer releases save them, in the layout of Hugging Face."""

import argparse
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.conversions import MEMORY, OPEN, Bomb, content, convert, convert_in_process, refused
from support.models import CHARSMAP, TINY, tiny_vocabulary
from torch import Tensor

from e5core import E5, Encoder, EncoderConfig, SentencePieceTokenizer
from e5core.checkpoint.names import tensor_names
from e5core.formats.sentencepiece import unigram_model
from e5core.parity.samples import SENTENCES, spread_weights
from e5core.parity.tolerances import UNIT_VECTOR_FLOAT32

State = dict[str, Tensor]
PIECES = tiny_vocabulary()
# A row for each piece and for <mask>; as published, more rows would be refused.
CONFIG = replace(TINY["xlm-roberta"], vocab_size=len(PIECES) + 1)


def encoder(config: EncoderConfig = CONFIG) -> Encoder:
    model = spread_weights(Encoder(config), 0)
    torch.nn.init.zeros_(model.embeddings.token_type.weight)  # fairseq has none
    return model


def published(config: EncoderConfig = CONFIG) -> State:
    state = encoder(config).state_dict()
    return {name: state[ours] for name, ours in tensor_names(config).items()}


def newer(state: State) -> State:
    """The names of fairseq's current release, written down independently of the package's."""
    rules = (
        (r"^embeddings\.word_embeddings", "embed_tokens"),
        (r"^embeddings\.position_embeddings", "embed_positions"),
        (r"^embeddings\.LayerNorm", "layernorm_embedding"),
        (r"^encoder\.layer\.", "layers."),
        (r"attention\.self\.query", "self_attn.q_proj"),
        (r"attention\.self\.key", "self_attn.k_proj"),
        (r"attention\.self\.value", "self_attn.v_proj"),
        (r"attention\.output\.dense", "self_attn.out_proj"),
        (r"attention\.output\.LayerNorm", "self_attn_layer_norm"),
        (r"intermediate\.dense", "fc1"),
        (r"output\.dense", "fc2"),
        (r"output\.LayerNorm", "final_layer_norm"),
    )
    renamed = {}
    for name, tensor in state.items():
        if "token_type" not in name:
            for pattern, name_there in rules:
                name = re.sub(pattern, name_there, name)
            renamed[f"encoder.sentence_encoder.{name}"] = tensor
    words = renamed["encoder.sentence_encoder.embed_tokens.weight"]
    return {
        **renamed,
        "encoder.sentence_encoder.version": torch.tensor([3.0]),
        "encoder.lm_head.weight": words,
        "encoder.lm_head.bias": torch.zeros(len(words)),
        "classification_heads.mnli.dense.weight": torch.ones(3, 3),
    }


def older(state: State) -> State:
    """The encoder is the decoder, its LayerNorm has another name, q, k and v are one tensor."""
    names = newer(state)
    joined = {}
    for name in list(names):
        if found := re.fullmatch(r"(.*self_attn\.)q_proj\.(weight|bias)", name):
            parts = [names.pop(f"{found[1]}{p}_proj.{found[2]}") for p in "qkv"]
            joined[f"{found[1]}in_proj_{found[2]}"] = torch.cat(parts)
    return {
        name.replace("encoder.", "decoder.", 1).replace("layernorm_embedding", "emb_layer_norm")
        if name.startswith("encoder.")
        else name: tensor
        for name, tensor in {**names, **joined}.items()
    }


def arguments(config: EncoderConfig = CONFIG) -> argparse.Namespace:
    return argparse.Namespace(
        arch="roberta_base",
        encoder_layers=config.num_hidden_layers,
        encoder_embed_dim=config.hidden_size,
        encoder_ffn_embed_dim=config.intermediate_size,
        encoder_attention_heads=config.num_attention_heads,
        dropout=0.1,
        attention_dropout=0.1,
        activation_fn="gelu",
        max_positions=config.max_length,
        task="multilingual_masked_lm",
        update_freq=[1],
    )


# What the checkpoint holds beside the weights, by release.
FORMS: dict[str, Callable[[State], dict[str, Any]]] = {
    "args": lambda state: {"args": arguments(), "model": older(state)},
    "cfg of a Namespace": lambda state: {
        "args": None,
        "cfg": {"_name": None, "model": arguments()},
        "model": newer(state),
    },
    "cfg of a dict": lambda state: {
        "cfg": {"model": {"_name": "roberta_base", **vars(arguments())}},
        "model": newer(state),
    },
}


def write(folder: Path, checkpoint: Any, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(checkpoint, folder / "model.pt", **options)
    lines = [f"{piece} {1000 - i}" for i, (piece, _) in enumerate(PIECES[4:])]
    (folder / "dict.txt").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "sentencepiece.bpe.model").write_bytes(unigram_model(PIECES, CHARSMAP.read_bytes()))
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", FORMS["args"](published()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("zipped", [True, False])
def test_every_form_becomes_the_published_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, zipped: bool
) -> None:
    state, target = published(), tmp_path / "new"
    source = write(tmp_path / "source", FORMS[form](state), _use_new_zipfile_serialization=zipped)
    convert("fairseq", source, target, "--verify")
    found = load_file(target / "model.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    printed = capsys.readouterr().out
    assert f"{len(state)} tensors, {CONFIG.num_parameters:,} parameters" in printed
    assert "left out, as no part of the encoder: classification_heads.mnli.dense.weight" in printed

    model = E5.from_pretrained(target, prompts="none")
    assert model.config == CONFIG
    ours = SentencePieceTokenizer(source / "sentencepiece.bpe.model")
    built = E5(encoder().prepare_for_inference(), ours, prompts="none")
    texts = SENTENCES[:8]
    assert np.array_equal(model.encode_query(texts), built.encode_query(texts))


def test_transformers_computes_the_same_with_the_result(
    source: Path, tmp_path: Path, oracle: Any
) -> None:
    """Its model and its tokenizer, both from the folder by their own readers."""
    target = tmp_path / "new"
    convert("fairseq", source, target)
    reference = oracle.load_reference(target)
    tokenizer = oracle.transformers.AutoTokenizer.from_pretrained(target)
    texts = [*SENTENCES[:20], "query: the"]
    ids = tokenizer(texts, truncation=True)["input_ids"]
    expected = oracle.reference_vectors(reference, ids)
    found = E5.from_pretrained(target, prompts="none").encode_query(texts)
    assert abs(found - expected).max() < UNIT_VECTOR_FLOAT32
    assert (reference.config.max_position_embeddings, reference.config.pad_token_id) == (66, 1)
    assert reference.config.layer_norm_eps == 1e-5


def test_published_dimensions_give_514_positions(tmp_path: Path) -> None:
    config = replace(CONFIG, max_position_embeddings=514)
    checkpoint = {"args": arguments(config), "model": newer(published(config))}
    assert checkpoint["args"].max_positions == 512
    convert("fairseq", write(tmp_path / "source", checkpoint), tmp_path / "new")
    model = E5.from_pretrained(tmp_path / "new", prompts="none")
    assert (model.max_length, model.config.first_position) == (512, 2)


class Foreign:
    pass


def test_code_is_refused_and_not_run(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, trace = tmp_path / "new", tmp_path / "trace"
    for bomb, named in ((Bomb(trace), OPEN), (Foreign(), f"{__name__}.Foreign")):
        # In the settings, where something else than tensors is expected.
        settings = argparse.Namespace(**vars(arguments()), criterion=bomb)
        write(source, {"args": settings, "model": older(published())})
        line = refused("fairseq", capsys, target, source, target)
        assert f"wants {named}, which is code and no weight; nothing of it was run" in line
        assert not trace.exists()
    write(source, {"args": argparse.Namespace(x=Bomb(trace))})
    torch.load(source / "model.pt", weights_only=False)
    assert trace.exists()  # it is a bomb


def without(name: str) -> Callable[[dict[str, Any]], None]:
    def damage(checkpoint: dict[str, Any]) -> None:
        del checkpoint["model"][f"decoder.sentence_encoder.{name}"]

    return damage


def with_tensor(name: str, *shape: int) -> Callable[[dict[str, Any]], None]:
    def damage(checkpoint: dict[str, Any]) -> None:
        checkpoint["model"][f"decoder.sentence_encoder.{name}"] = torch.ones(*shape)

    return damage


def with_setting(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda checkpoint: setattr(checkpoint["args"], name, value)


DAMAGES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (without("layers.1.fc2.bias"), "missing: encoder.layer.1.output.dense.bias"),
    (without("layers.0.self_attn.in_proj_bias"), "layer.0.attention.self.query.bias; missing"),
    (without("embed_tokens.weight"), "it is no checkpoint of RoBERTa or XLM-R"),
    (without("embed_positions.weight"), "no learned positions"),
    (with_tensor("layer_norm.weight", 24), "as XLM-R XL and XXL have"),
    (with_tensor("layers.0.self_attn.in_proj_weight", 73, 24), "73 rows, which are not query"),
    (with_tensor("layers.0.fc1.weight", 24, 40), "dense.weight is [24, 40], config.json says [40,"),
    (with_tensor("segment_embeddings.weight", 2, 24), "decoder.sentence_encoder.segment_embed"),
    (with_tensor("embed_positions.weight", 65, 24), "65 rows, expected 2 more than max_positions"),
    (with_tensor("embed_tokens.weight", 113, 24), "embed_tokens 113 rows; expected are"),
    (with_tensor("layers.3.fc1.bias", 40), "unexpected: decoder.sentence_encoder.layers.3.fc1"),
    (with_setting("activation_fn", "gelu_accurate"), "'gelu_accurate', expected 'gelu'"),
    (with_setting("encoder_layers", 2), "unexpected: decoder.sentence_encoder.layers.2."),
    (with_setting("encoder_attention_heads", 5), "does not divide into 5 attention heads"),
    (lambda checkpoint: checkpoint.pop("args"), "has neither args nor cfg"),
    (lambda checkpoint: checkpoint.pop("model"), "model is a NoneType, expected names to tensors"),
    (lambda c: delattr(c["args"], "encoder_layers"), "does not say encoder_layers"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damage_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[dict[str, Any]], Any],
    message: str,
) -> None:
    checkpoint = FORMS["args"](published())
    damage(checkpoint)
    source, target = write(tmp_path / "source", checkpoint), tmp_path / "new"
    assert message in refused("fairseq", capsys, target, source, target)


def test_a_dictionary_of_another_model_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, file = tmp_path / "new", source / "dict.txt"
    lines = file.read_text("utf-8").split("\n")
    file.write_text("\n".join([lines[1], lines[0], *lines[2:]]), "utf-8")
    line = refused("fairseq", capsys, target, source, target)
    assert "line 1 of dict.txt is '▁query', piece 3 of sentencepiece.bpe.model is '▁'" in line
    file.write_text("\n".join(lines[:-2]) + "\n", "utf-8")
    line = refused("fairseq", capsys, target, source, target)
    assert (
        f"dict.txt has {len(PIECES) - 5} lines, sentencepiece.bpe.model {len(PIECES) - 4}" in line
    )
    (source / "sentencepiece.bpe.model").write_bytes(b"nothing of the kind")
    assert "sentencepiece.bpe.model: it is not" in refused(
        "fairseq", capsys, target, source, target
    )


@pytest.mark.parametrize("name", ["model.pt", "dict.txt", "sentencepiece.bpe.model"])
def test_an_incomplete_archive(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    target = tmp_path / "new"
    (source / name).unlink()
    assert f"has no {name}; unpack the" in refused("fairseq", capsys, target, source, target)


def test_a_file_cut_anywhere_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (source / "model.pt").read_bytes()
    for length in (0, 4, 300, 5000, len(whole) // 2, len(whole) - 1):
        (source / "model.pt").write_bytes(whole[:length])
        line = refused("fairseq", capsys, tmp_path / "new", source, tmp_path / "new")
        assert "is not a whole file of torch.save" in line


def test_an_existing_target_needs_force(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new"
    convert("fairseq", source, target)
    before = content(target)
    assert "pass --force" in refused("fairseq", capsys, target, source, target)
    convert("fairseq", source, target, "--force")
    assert content(target) == before


@pytest.mark.exhaustive(sample=0)
def test_memory_is_that_of_the_largest_tensor(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    config = EncoderConfig("xlm-roberta", CONFIG.vocab_size, 1024, 4, 8, 4096, 66, 2, 1, 1e-5)
    state = published(config)
    size, largest = sum(t.nbytes for t in state.values()), max(t.nbytes for t in state.values())
    source = write(tmp_path / "source", {"args": arguments(config), "model": older(state)})
    del state
    done = convert_in_process("fairseq", source, tmp_path / "new", "--verify", wrapper=MEMORY)
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout.split("grown by")[1])
    measured(
        f"fairseq --verify: {size / 1e6:.0f} MB of weights, largest tensor "
        f"{largest / 1e6:.0f} MB: memory grew by {grown / 1e6:.0f} MB"
    )
    assert grown < 2 * largest + 20e6 < size / 1.5
