"""What headers tell: whole files, all faults in one error, none read into memory."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import (
    QUERY,
    WORD,
    Tensors,
    parts,
    refused,
    rewrite,
    split,
    write_index,
    write_parts,
)
from support.models import TINY

from e5core import CheckpointError, Encoder, EncoderConfig, load_checkpoint
from e5core.checkpoint.headers import INDEX_FILE, WEIGHTS_FILE

# ---- files that are not there or not whole


def test_no_weights(folder: Path, dialect: str) -> None:
    (folder / WEIGHTS_FILE).unlink()
    refused(folder, dialect, str(folder), WEIGHTS_FILE, "download", error=FileNotFoundError)
    refused(folder / "nowhere", dialect, "nowhere does not exist", error=FileNotFoundError)


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.marker,)


def test_a_pickle_is_never_opened(folder: Path, dialect: str) -> None:
    marker = folder / "executed"
    (folder / WEIGHTS_FILE).unlink()
    bomb = folder / "pytorch_model.bin"
    bomb.write_bytes(pickle.dumps(Bomb(marker)))
    refused(folder, dialect, "pytorch_model.bin", "convert it", error=FileNotFoundError)
    refused(bomb, dialect, "pytorch_model.bin", "not a whole safetensors file")
    bomb.rename(folder / WEIGHTS_FILE)
    refused(folder, dialect, "not a whole safetensors file")
    assert not marker.exists()
    pickle.loads((folder / WEIGHTS_FILE).read_bytes())
    assert marker.exists()  # the bomb works


@pytest.mark.parametrize("length", [0, 4, 7, 8, 9, 1000, -40000, -5, -1])
def test_truncated(folder: Path, dialect: str, length: int) -> None:
    content = (folder / WEIGHTS_FILE).read_bytes()[:length]
    (folder / WEIGHTS_FILE).write_bytes(content)
    refused(folder, dialect, f"{WEIGHTS_FILE} ({len(content)} bytes)", "download it again")


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**62, -1])
def test_header_length_lies(make_folder: Path, length: int) -> None:
    write_parts(make_folder, *parts(make_folder), length)
    refused(make_folder, "bert", "not a whole safetensors file")


@pytest.mark.parametrize(
    "header", [b"", b"hello", b"[]", b"7", b'{"a":1}', b'{"\xff":1}', b"[" * 9999]
)
def test_header_is_no_header(make_folder: Path, header: bytes) -> None:
    write_parts(make_folder, header, parts(make_folder)[1])
    refused(make_folder, "bert", "not a whole safetensors file")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shape", [24, 23]),
        ("shape", [24, 24, 1, 2]),
        ("shape", [2**62, 24]),
        ("shape", [-24, -24]),
        ("data_offsets", [0, 10**12]),
        ("data_offsets", [0, 2304]),
        ("data_offsets", [2304, 0]),
        ("dtype", "F16"),
        ("dtype", "F99"),
    ],
)
def test_header_lies(make_folder: Path, field: str, value: object) -> None:
    header, data = parts(make_folder)
    content = json.loads(header)
    content[QUERY][field] = value
    write_parts(make_folder, json.dumps(content).encode(), data)
    refused(make_folder, "bert", "not a whole safetensors file")


# test_hard_use.py has every byte of the header, every length, and random damage.


# ---- content that is not the encoder's


def test_many_faults_are_a_few_lines(folder: Path, dialect: str) -> None:
    """As those of a config of another model are."""

    def rename(tensors: Tensors) -> None:
        for name in [name for name in tensors if "encoder.layer" in name]:
            tensors[name.replace("layer.", "layer.7")] = tensors.pop(name)

    rewrite(folder, rename)
    with pytest.raises(CheckpointError, match=r"missing: .*; … \(96 faults\)") as caught:
        load_checkpoint(Encoder(TINY[dialect]), folder)
    assert len(str(caught.value)) < 2000


def test_all_faults_in_one_error(folder: Path, dialect: str) -> None:
    def damage(tensors: Tensors) -> None:
        del tensors["encoder.layer.1.output.dense.bias"]
        tensors["encoder.layer.9.output.dense.bias"] = torch.zeros(24)
        tensors["embeddings.extra"] = torch.zeros(1)
        tensors[QUERY] = torch.zeros(24, 25)
        tensors["embeddings.position_embeddings.weight"] = torch.zeros(60, 24)
        tensors["encoder.layer.2.intermediate.dense.weight"] = torch.zeros(40, 24, dtype=torch.int8)
        # The headers are checked before any value: this one stays unseen.
        tensors[WORD].fill_(float("nan"))

    rewrite(folder, damage)
    rows = TINY[dialect].max_position_embeddings
    refused(
        folder,
        dialect,
        str(folder),
        "(6 faults)",
        "missing: encoder.layer.1.output.dense.bias",
        "unexpected: encoder.layer.9.output.dense.bias",
        "unexpected: embeddings.extra",
        f"misshapen: {QUERY} is [24, 25], config.json says [24, 24]",
        f"embeddings.position_embeddings.weight is [60, 24], config.json says [{rows}, 24]",
        "dtype: encoder.layer.2.intermediate.dense.weight is I8",
    )


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("num_hidden_layers", 2, "unexpected: encoder.layer.2.attention.self.query.weight"),
        ("num_hidden_layers", 4, "missing: encoder.layer.3.attention.self.query.weight"),
        ("hidden_size", 28, f"misshapen: {WORD} is [120, 24], config.json says [120, 28]"),
        ("intermediate_size", 41, "intermediate.dense.bias is [40], config.json says [41]"),
        ("vocab_size", 121, f"misshapen: {WORD}"),
        ("max_position_embeddings", 99, "misshapen: embeddings.position_embeddings.weight"),
        ("type_vocab_size", 3, "misshapen: embeddings.token_type_embeddings.weight"),
    ],
)
def test_config_and_weights_disagree(
    folder: Path, dialect: str, field: str, value: int, says: str
) -> None:
    content = TINY[dialect].to_dict() | {field: value}
    with torch.device("meta"):
        encoder = Encoder(EncoderConfig.from_dict(content))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(encoder, folder)
    assert says in str(caught.value)


def test_another_architecture(folder: Path, dialect: str) -> None:
    save_file({"wte.weight": torch.zeros(3, 4)}, folder / WEIGHTS_FILE)
    refused(folder, dialect, WORD, "roberta. or bert.", "wte.weight", "not a BERT")
    save_file({}, folder / WEIGHTS_FILE)
    refused(folder, dialect, WORD)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int32", "int64", "float8_e4m3fn"])
def test_quantised_tensors(folder: Path, dialect: str, dtype: str) -> None:
    rewrite(folder, lambda tensors: tensors | {QUERY: tensors[QUERY].to(getattr(torch, dtype))})
    refused(folder, dialect, f"dtype: {QUERY} is", "expected F16/BF16/F32/F64", "(1 faults)")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("embeddings.LayerNorm.weight", "embeddings.LayerNorm.gamma"),
        (QUERY, f"roberta.{QUERY}"),
    ],
)
def test_one_tensor_under_two_names(folder: Path, dialect: str, old: str, new: str) -> None:
    """Whichever won, half of such files would load as a wrong model."""

    def twice(tensors: Tensors) -> Tensors:
        tensors |= {new: tensors[old] + 1}
        if new.startswith("roberta."):
            tensors["roberta." + WORD] = tensors.pop(WORD)
        return tensors

    rewrite(folder, twice)
    refused(folder, dialect, old, new, "same tensor")


# ---- shards


def test_a_shard_is_missing(folder: Path, dialect: str) -> None:
    split(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(folder, dialect, INDEX_FILE, "model-00002-of-00003", error=FileNotFoundError)


def test_a_shard_is_truncated(folder: Path, dialect: str) -> None:
    split(folder)
    file = folder / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    refused(folder, dialect, file.name, "not a whole safetensors file")


@pytest.mark.parametrize(
    "outside", ["../other.safetensors", "/other.safetensors", "a/b", "", 7, []]
)
def test_an_index_cannot_leave_its_folder(folder: Path, dialect: str, outside: object) -> None:
    """Even where the file is there and good."""
    weight_map = split(folder)
    file = folder / weight_map[QUERY]
    file.rename(folder.parent / "other.safetensors")
    leading = {n: outside if f == file.name else f for n, f in weight_map.items()}
    if outside == "/other.safetensors":
        leading = {n: str(folder.parent) + f if f == outside else f for n, f in leading.items()}
    write_index(folder, {"weight_map": leading})
    refused(folder, dialect, INDEX_FILE, "expected the name of a file beside the index")


@pytest.mark.parametrize(
    "content", [{}, {"weight_map": None}, {"weight_map": {}}, {"weight_map": [1]}]
)
def test_an_index_without_a_map(folder: Path, dialect: str, content: object) -> None:
    split(folder)
    write_index(folder, content)
    refused(folder, dialect, INDEX_FILE, "has no weight_map")


@pytest.mark.parametrize(
    ("text", "says"), [("[1]", "list"), ("{", "not valid JSON"), ("[" * 99999, "JSON")]
)
def test_an_index_that_is_no_object(folder: Path, dialect: str, text: str, says: str) -> None:
    split(folder)
    (folder / INDEX_FILE).write_text(text)
    refused(folder, dialect, INDEX_FILE, says)


def test_a_tensor_lies_in_another_shard(folder: Path, dialect: str) -> None:
    weight_map = split(folder)
    other = next(file for file in weight_map.values() if file != weight_map[QUERY])
    write_index(folder, {"weight_map": weight_map | {QUERY: other}})
    refused(folder, dialect, QUERY, weight_map[QUERY], other, INDEX_FILE)


def test_a_tensor_in_two_shards(folder: Path, dialect: str) -> None:
    weight_map = split(folder)
    other = next(file for file in weight_map.values() if file != weight_map[QUERY])
    # Not in the index under that name, so that only the double is at fault.
    save_file(load_file(folder / other) | {QUERY: torch.zeros(24, 24)}, folder / other)
    write_index(folder, {"weight_map": {n: f for n, f in weight_map.items() if n != QUERY}})
    refused(folder, dialect, QUERY, weight_map[QUERY], other, "same tensor")
