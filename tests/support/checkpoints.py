"""What tests of checkpoints share: loading, damaging and comparing them."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import TINY, tiny_encoder
from torch import Tensor

from e5core import CheckpointError, Encoder, load_checkpoint
from e5core.batching import pack
from e5core.checkpoint.headers import INDEX_FILE, WEIGHTS_FILE
from e5core.formats.files import read_json_object, write_json
from e5core.parity.tolerances import STORED_FLOAT32

IDS = [[0, 17, 33, 99, 2], [0, 5, 119, 2]]
WORD = "embeddings.word_embeddings.weight"
QUERY = "encoder.layer.0.attention.self.query.weight"
Tensors = dict[str, Tensor]


def load(
    path: Path, dialect: str, dtype: torch.dtype = torch.float32, meta: bool = True
) -> Encoder:
    """A trainable encoder of the plain kernels with the weights at `path`."""
    with torch.device("meta" if meta else "cpu"):
        encoder = Encoder(TINY[dialect], "plain").to(dtype)
    load_checkpoint(encoder, path)
    return encoder.eval()


def states(encoder: Encoder) -> Tensor:
    """The hidden states of two texts."""
    with torch.no_grad():
        return encoder(pack(IDS, encoder.config))


def assert_restored(loaded: Encoder, original: Encoder | None = None) -> None:
    """The very same weights, and the same hidden states.

    Those within rounding: matrix libraries add in another order where memory, here a mapped
    file, is aligned in another way.
    """
    original = original or tiny_encoder(loaded.config.model_type)
    weights = original.state_dict()
    assert loaded.state_dict().keys() == weights.keys()
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == weights[name].dtype, name
        assert torch.equal(tensor, weights[name]), name
    if original.embeddings.word.weight.dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(states(loaded), states(original), atol=STORED_FLOAT32, rtol=0)


def rewrite(folder: Path, change: Callable[[Tensors], Tensors | None]) -> None:
    """Replace the weights of a folder by what `change` makes of them, or does to them."""
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file(change(tensors) or tensors, folder / WEIGHTS_FILE)


def keep_rows(folder: Path, rows: int) -> None:
    """Cut the token table, in the config and in the weights."""
    config = folder / "config.json"
    write_json(config, {**read_json_object(config), "vocab_size": rows})
    rewrite(folder, lambda tensors: tensors | {WORD: tensors[WORD][:rows].clone()})


def split(folder: Path, shards: int = 3) -> dict[str, str]:
    """Turn the one file into several and an index, tensors dealt like cards; the weight_map."""
    tensors = load_file(folder / WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).unlink()
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[number::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_index(folder, {"metadata": {}, "weight_map": weight_map})
    return weight_map


def write_index(folder: Path, content: object) -> None:
    """Say where the tensors lie, rightly or wrongly."""
    (folder / INDEX_FILE).write_text(json.dumps(content))


def refused(path: Path, dialect: str, *says: str, error: type[Exception] = CheckpointError) -> None:
    """Loading fails with this very error, which names all of `says`."""
    with pytest.raises(error) as caught:
        load(path, dialect)
    assert type(caught.value) is error
    for words in says:
        assert words in str(caught.value)


def parts(folder: Path) -> tuple[bytes, bytes]:
    """The header of the weights as JSON, and the tensors' bytes behind it."""
    content = (folder / WEIGHTS_FILE).read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return content[8:end], content[end:]


def write_parts(folder: Path, header: bytes, data: bytes, length: int | None = None) -> None:
    """A weights file of these, whose header may lie about its length."""
    size = struct.pack("<Q", (len(header) if length is None else length) % 2**64)
    (folder / WEIGHTS_FILE).write_bytes(size + header + data)
