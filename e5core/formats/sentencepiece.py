"""SentencePiece model files: writing one from pieces and scores, and cutting one down.

The sentencepiece package only runs such files; changing one needs its protobuf schema, of
which a Unigram tokenizer fills in a dozen fields. Coding those by hand spares a dependency.
Field numbers: sentencepiece_model.proto of google/sentencepiece.
Wire format: protobuf.dev, "Encoding".
"""

import base64
import binascii
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e5core.formats.files import read_json_object

# The normalisation table that every XLM-R tokenizer holds; data/README.md says where it is from.
CHARSMAP = Path(__file__).parent / "data" / "nmt_nfkc.charsmap"

NORMAL, UNKNOWN, CONTROL = 1, 2, 3  # ModelProto.SentencePiece.Type; 4 to 6 are rare
_UNIGRAM = 1  # TrainerSpec.ModelType
_PIECES, _TRAINER_SPEC, _NORMALIZER_SPEC, _SELF_TEST_DATA = 1, 2, 3, 4  # fields of ModelProto
# Fields of TrainerSpec.
_MODEL_TYPE, _VOCAB_SIZE, _WHITESPACE_SUFFIX, _BYTE_FALLBACK = 3, 4, 24, 35
_VARINT, _FIXED64, _BYTES, _FLOAT = 0, 1, 2, 5  # wire types

# The four that open a vocabulary in fairseq's order; SentencePiece has no <pad> and
# another order, and neither scores nor matches them.
FAIRSEQ_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")


@dataclass(frozen=True)
class Piece:
    """An entry of the vocabulary; `kind` is NORMAL, UNKNOWN, CONTROL or one of the rare ones."""

    text: str
    score: float
    kind: int


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
        _piece("<unk>", 0.0, UNKNOWN),
        _piece("<s>", 0.0, CONTROL),
        _piece("</s>", 0.0, CONTROL),
        *(_piece(piece, score, NORMAL) for piece, score in pieces[len(FAIRSEQ_SPECIALS) :]),
    ]
    trainer_spec = _field(_MODEL_TYPE, _UNIGRAM) + _field(_VOCAB_SIZE, len(vocabulary))
    normalizer_spec = (
        _field(1, b"nmt_nfkc")
        + _field(2, charsmap)
        + _field(3, 1)  # add_dummy_prefix
        + _field(4, 1)  # remove_extra_whitespaces
        + _field(5, 1)  # escape_whitespaces
    )
    specs = _field(_TRAINER_SPEC, trainer_spec) + _field(_NORMALIZER_SPEC, normalizer_spec)
    return b"".join(vocabulary) + specs


def read_pieces(content: bytes) -> list[Piece]:
    """The vocabulary of a SentencePiece model in the order of its ids.

    Raises ValueError if the content is not such a model, or only the beginning of one.
    """
    pieces = []
    for number, value, _ in _fields(content):
        if number == _PIECES:
            # A kind that is left out is NORMAL, a score 0.
            entry: dict[int, Any] = {1: b"", 2: 0.0, 3: NORMAL}
            entry.update({inner: content for inner, content, _ in _fields(_message(value))})
            pieces.append(Piece(_message(entry[1]).decode(), float(entry[2]), int(entry[3])))
    if not pieces:
        raise ValueError("it is not a SentencePiece model: it has no pieces")
    return pieces


def read_charsmap(content: bytes) -> bytes:
    """The normaliser's compiled table; empty if the model normalises nothing.

    Raises ValueError if the model is of another kind than XLM-R's: not Unigram, spelling
    unknown characters out in bytes, or treating white space in another way.
    """
    # What is left out has these values.
    trainer: dict[int, Any] = {_MODEL_TYPE: _UNIGRAM, _BYTE_FALLBACK: 0, _WHITESPACE_SUFFIX: 0}
    normalizer: dict[int, Any] = {2: b"", 3: 1, 4: 1, 5: 1}  # as unigram_model writes them
    expected = [*trainer.values(), 1, 1, 1]
    for number, value, _ in _fields(content):
        if number in (_TRAINER_SPEC, _NORMALIZER_SPEC):
            settings = trainer if number == _TRAINER_SPEC else normalizer
            inner = {n: v for n, v, _ in _fields(_message(value)) if n in settings}
            settings.update(inner)
    charsmap = _message(normalizer.pop(2))
    if [*trainer.values(), *normalizer.values()] != expected:
        raise ValueError(
            "its model_type, byte_fallback, treat_whitespace_as_suffix, add_dummy_prefix, "
            "remove_extra_whitespaces and escape_whitespaces are "
            f"{[*trainer.values(), *normalizer.values()]}, those of XLM-R are {expected}"
        )
    return charsmap


def keep_pieces(content: bytes, kept: Collection[int]) -> bytes:
    """A SentencePiece model with some of the pieces, in their order, and all its settings.

    content  a model as its file holds it
    kept     ids of pieces; what is not among them is left out

    Pieces, normalisation table and settings keep their bytes; only the trainer's vocab_size
    says the new number. A self-test is left out: SentencePiece loads no model that fails its
    own, and the sentences in it may be cut otherwise now.
    """
    parts, found = [], 0
    for number, value, raw in _fields(content):
        if number == _PIECES:
            if found in kept:
                parts.append(raw)
            found += 1
        elif number == _TRAINER_SPEC:
            settings = (r for inner, _, r in _fields(_message(value)) if inner != _VOCAB_SIZE)
            spec = b"".join(settings) + _field(_VOCAB_SIZE, len(kept))
            parts.append(_field(_TRAINER_SPEC, spec))
        elif number != _SELF_TEST_DATA:
            parts.append(raw)
    return b"".join(parts)


def read_model(path: Path) -> bytes:
    """The SentencePiece model in a file: its own, or a `tokenizer.json` with the same content."""
    return model_from_tokenizer_json(path) if path.suffix == ".json" else path.read_bytes()


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


def _fields(message: bytes) -> Iterator[tuple[int, int | float | bytes, bytes]]:
    """The fields of a message: number, value, and all its bytes, to be written as they are."""
    place = 0
    while place < len(message):
        start = place
        key, place = _read_varint(message, place)
        value: int | float | bytes
        if key & 7 == _VARINT:
            value, place = _read_varint(message, place)
        else:
            if key & 7 == _BYTES:
                size, place = _read_varint(message, place)
            elif key & 7 in (_FIXED64, _FLOAT):
                size = 8 if key & 7 == _FIXED64 else 4
            else:
                raise ValueError(f"it is not a SentencePiece model: wire type {key & 7}")
            value = message[place : place + size]
            place += size
            if place > len(message):
                raise ValueError(f"it is not a whole SentencePiece model: {len(message)} bytes")
            if key & 7 == _FLOAT:
                (value,) = struct.unpack("<f", value)
        yield key >> 3, value, message[start:place]


def _read_varint(message: bytes, place: int) -> tuple[int, int]:
    """The number that starts at a place, and the place after it."""
    value = shift = 0
    while place < len(message):
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
    raise ValueError(f"it is not a whole SentencePiece model: {len(message)} bytes")


def _message(value: int | float | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError(f"it is not a SentencePiece model: {value!r} where a message should be")
    return value
