"""Writing a SentencePiece model file from pieces and scores.

The sentencepiece package reads such files; writing one needs its protobuf schema, of which
a Unigram tokenizer fills in a dozen fields. Encoding those by hand spares a dependency.
Field numbers: sentencepiece_model.proto of google/sentencepiece.
Wire format: protobuf.dev, "Encoding".
"""

import base64
import binascii
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from e5core.files import read_json_object

_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3  # ModelProto.SentencePiece.Type
_UNIGRAM = 1  # TrainerSpec.ModelType
_VARINT, _BYTES, _FLOAT = 0, 2, 5  # wire types

# The four that open a vocabulary in fairseq's order; SentencePiece has no <pad> and
# another order, and neither scores nor matches them.
FAIRSEQ_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")


def unigram_model(pieces: Sequence[tuple[str, float]], charsmap: bytes) -> bytes:
    """Serialise a Unigram model as `sentencepiece.bpe.model` of XLM-R holds it.

    pieces    (piece, log probability) in model-id order: `<s>`, `<pad>`, `</s>`, `<unk>`,
              then the vocabulary, without `<mask>`
    charsmap  the normaliser's compiled table; XLM-R's is nmt_nfkc of SentencePiece 0.1.83

    Raises ValueError if the four special tokens do not come first.
    """
    found = tuple(piece for piece, _ in pieces[: len(FAIRSEQ_SPECIALS)])
    if found != FAIRSEQ_SPECIALS:
        raise ValueError(f"the vocabulary starts with {found}, expected {FAIRSEQ_SPECIALS}")
    vocabulary = [
        _piece("<unk>", 0.0, _UNKNOWN),
        _piece("<s>", 0.0, _CONTROL),
        _piece("</s>", 0.0, _CONTROL),
        *(_piece(piece, score, _NORMAL) for piece, score in pieces[len(FAIRSEQ_SPECIALS) :]),
    ]
    trainer_spec = _field(3, _UNIGRAM) + _field(4, len(vocabulary))
    normalizer_spec = (
        _field(1, b"nmt_nfkc")
        + _field(2, charsmap)
        + _field(3, 1)  # add_dummy_prefix
        + _field(4, 1)  # remove_extra_whitespaces
        + _field(5, 1)  # escape_whitespaces
    )
    return b"".join(vocabulary) + _field(2, trainer_spec) + _field(3, normalizer_spec)


def model_from_tokenizer_json(path: Path) -> bytes:
    """Rebuild the SentencePiece model from a Hugging Face `tokenizer.json`.

    Newer repositories publish only that file; it holds the same pieces, scores and table.
    Raises ValueError if it is not a Unigram tokenizer of the XLM-R kind.
    """
    content = read_json_object(path)
    model = content.get("model") or {}
    if model.get("type") != "Unigram":
        raise ValueError(f"{path} holds a {model.get('type')!r} tokenizer, expected 'Unigram'")
    try:
        pieces = [(str(piece), float(score)) for piece, score in model["vocab"]]
        tables = list(_charsmaps(content.get("normalizer")))
        charsmap = base64.b64decode(tables[0], validate=True)
    except (KeyError, TypeError, ValueError, IndexError, binascii.Error) as error:
        raise ValueError(f"{path} lacks a vocabulary or a precompiled charsmap") from error
    if pieces and pieces[-1][0] == "<mask>":
        pieces.pop()
    try:
        return unigram_model(pieces, charsmap)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _charsmaps(normalizer: Any) -> Iterator[str]:
    """The tables of a tokenizer.json normaliser, which may be a sequence of others."""
    if isinstance(normalizer, dict):
        if normalizer.get("type") == "Precompiled":
            yield normalizer["precompiled_charsmap"]
        for part in normalizer.get("normalizers", ()):
            yield from _charsmaps(part)


def _piece(piece: str, score: float, kind: int) -> bytes:
    return _field(1, _field(1, piece.encode()) + _field(2, float(score)) + _field(3, kind))


def _field(number: int, value: int | float | bytes) -> bytes:
    """One protobuf field: a float as 4 bytes, bytes with their length, an int as a varint."""
    if isinstance(value, bytes):
        return _varint(number << 3 | _BYTES) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | _FLOAT) + struct.pack("<f", value)
    return _varint(number << 3 | _VARINT) + _varint(value)


def _varint(value: int) -> bytes:
    """Seven bits a byte, lowest first; the top bit says that more follow."""
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
