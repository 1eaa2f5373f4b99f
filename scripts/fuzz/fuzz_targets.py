"""Readers of files and of text, which scripts/fuzz and tests/programs/test_hard_use.py feed bytes.

Each target takes any bytes and returns whether they were accepted. It raises on what must never
happen: another error than the documented one, or a result that an independent reading of the
bytes does not confirm.
"""

import json
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch

from e5core import E5, CheckpointError, Encoder, EncoderConfig, SentencePieceTokenizer
from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.load import load_checkpoint
from e5core.checkpoint.names import tensor_names
from e5core.checkpoint.save import save_checkpoint
from e5core.formats.files import write_json
from e5core.formats.sentencepiece import CHARSMAP, FAIRSEQ_SPECIALS, unigram_model
from e5core.model import Vectors
from e5core.parity.samples import spread_weights
from e5core.parity.tolerances import BATCH_INVARIANCE_FLOAT32
from e5core.texts.cutting import cut
from e5core.texts.windows import windows
from e5core.tokenizer import BOS, EOS, UNKNOWN

# The smallest encoder with every tensor; its file is 4 KB.
CONFIG = EncoderConfig("bert", 12, 6, 1, 2, 8, 9, 0, 2, 1e-12)
DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
PREFIXES = ("", "roberta.", "bert.")
MAX_LENGTH = 16  # of the texts' model, so that short texts are long ones


@cache
def scratch() -> Path:
    """A folder of this process, in memory where the system has such files."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="e5core-fuzz-", dir=memory if memory.is_dir() else None))


def valid_checkpoint() -> bytes:
    folder = scratch() / "valid"
    save_checkpoint(spread_weights(Encoder(CONFIG, "plain")), folder)
    return (folder / "model.safetensors").read_bytes()


def vocabulary() -> list[tuple[str, float]]:
    pieces = [
        "▁",
        "▁the",
        "▁query",
        ":",
        "e",
        "t",
        "a",
        "s",
        "日",
        "本",
        "é",
        "я",
        "ガ",
        "▁quer",
        "y",
    ]
    scored = [(piece, -1.0 - i / 4) for i, piece in enumerate(pieces)]
    return [*((name, 0.0) for name in FAIRSEQ_SPECIALS), *scored]


def valid_tokenizer(charsmap: bytes = b"") -> bytes:
    return unigram_model(vocabulary(), charsmap)


def checkpoint(data: bytes) -> bool:
    """A weights file: CheckpointError that names it, or the very numbers that the file holds.

    Both ways of loading decide alike, the one for training and the one for inference.
    """
    folder = scratch() / "checkpoint"
    if not folder.is_dir():
        folder.mkdir()
        write_json(folder / "config.json", CONFIG.to_dict())
    path = folder / "model.safetensors"
    path.write_bytes(data)
    trained = empty_encoder()
    try:
        load_checkpoint(trained, path)
    except CheckpointError as error:
        ensure(path.name in str(error), f"the file is not named: {error}")
        ensure(all(p.is_meta for p in trained.parameters()), "what is refused was half loaded")
        refuse(folder, data)
        return False
    empty_encoder.cache_clear()  # it is filled
    inferred = ModelFolder.read(folder).load_encoder(kernels="plain", device="cpu")
    stored = read_independently(data)
    for published, ours in tensor_names(CONFIG).items():
        expected = stored[published]
        for encoder in (trained, inferred):
            found = encoder.state_dict()[ours]
            ensure(torch.equal(found, expected.float()), f"{published} is not what the file holds")
        ensure(bool(expected.isfinite().all()), f"{published} is not finite")
    return True


@cache
def empty_encoder() -> Encoder:
    with torch.device("meta"):
        return Encoder(CONFIG, "plain")


def refuse(folder: Path, data: bytes) -> None:
    """Loading for inference refuses as well, but for a number in the token table that is none,
    which it reads when its token occurs."""
    try:
        ModelFolder.read(folder).load_encoder(kernels="plain", device="cpu")
    except CheckpointError:
        return
    words = read_independently(data)["embeddings.word_embeddings.weight"]
    ensure(not words.float().isfinite().all(), "refused for training, taken for inference")


def read_independently(data: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file under their published names, by its format's description
    (huggingface/safetensors, README): u64 length, a JSON header, the data."""
    end = 8 + struct.unpack("<Q", data[:8])[0]
    tensors = {}
    for name, entry in json.loads(data[8:end]).items():
        if name == "__metadata__":
            continue
        start, stop = entry["data_offsets"]
        content = bytearray(data[end + start : end + stop])
        if entry["dtype"] in DTYPES and content:
            flat = torch.frombuffer(content, dtype=DTYPES[entry["dtype"]])
            tensors[name] = flat.reshape(entry["shape"])
    word = "embeddings.word_embeddings.weight"
    prefix = next(prefix for prefix in PREFIXES if prefix + word in tensors)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def tokenizer_file(data: bytes) -> bool:
    """A SentencePiece file: ValueError that names it, or a tokenizer whose ids are ids."""
    path = scratch() / "sentencepiece.bpe.model"
    path.write_bytes(data)
    try:
        tokenizer = SentencePieceTokenizer(path)
    except ValueError as error:
        ensure(path.name in str(error), f"the file is not named: {error}")
        return False
    for text in ("", "query: the tea é я 日本", "ｶﾞ Ａ\u0308 \x00\u200d\ufeff"):
        check_ids(tokenizer, text)
    return True


def text(data: bytes) -> bool:
    """A text, with what is no UTF-8 as lone surrogates: ValueError that names one of those, or
    valid ids, and the same vector alone, with others and in every way to take a long text."""
    string = data.decode("utf-8", "surrogateescape")
    model = text_model()
    try:
        ids = check_ids(model.tokenizer, string)
    except ValueError as error:
        ensure("lone surrogate U+DC" in str(error), str(error))
        ensure(any("\udc80" <= c <= "\udcff" for c in string), "there is no lone surrogate")
        return False
    alone = model.encode(string, input_type=None)
    among = model.encode(["the", string, "a tea", string], input_type=None)
    ensure(abs(np.linalg.norm(alone) - 1) < 1e-5, "the vector has no unit length")
    ensure(close(among[1], alone), "the vector depends on the other texts")
    windowed = model.embed(string, input_type=None, truncate="window")
    ensure(windowed.token_counts.tolist() == [len(ids)], "the tokens are counted otherwise")
    if len(ids) <= MAX_LENGTH:
        ensure(close(windowed.vectors, alone), "a short text has another vector in windows")
    ensure(len(cut(ids, MAX_LENGTH)) == min(len(ids), MAX_LENGTH), "the cut is not at the limit")
    parts = windows(ids, MAX_LENGTH)
    ensure([i for part in parts for i in part[1:-1]] == ids[1:-1], "the windows lost a piece")
    return True


@cache
def text_model() -> E5:
    """A tiny model with the real normaliser's table."""
    path = scratch() / "text.model"
    path.write_bytes(valid_tokenizer(CHARSMAP.read_bytes()))
    tokenizer = SentencePieceTokenizer(path)
    config = EncoderConfig("bert", tokenizer.vocab_size, 8, 1, 2, 12, MAX_LENGTH, 0, 2, 1e-12)
    return E5(spread_weights(Encoder(config, "plain")).eval(), tokenizer, prompts="e5")


def check_ids(tokenizer: SentencePieceTokenizer, string: str) -> list[int]:
    ids = tokenizer.encode(string)
    ensure((ids[0], ids[-1]) == (BOS, EOS), f"the frame is missing: {ids}")
    inside = all(UNKNOWN <= i < tokenizer.mask_id for i in ids[1:-1])
    ensure(inside, f"ids out of range: {ids}")
    ensure(tokenizer.count(string) == len(ids), "the count is another")
    ensure(tokenizer.encode(string) == ids, "the ids are others the second time")
    tokenizer.decode(ids)
    return ids


def close(a: Vectors, b: Vectors) -> bool:
    return bool(np.abs(a - b).max() < BATCH_INVARIANCE_FLOAT32)


def ensure(condition: bool, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)


TARGETS: dict[str, Callable[[bytes], bool]] = {
    "checkpoint": checkpoint,
    "tokenizer-file": tokenizer_file,
    "text": text,
}
