"""SentencePiece model files: writing one from pieces and scores, and cutting one down.

The sentencepiece package only runs such files; changing one needs its protobuf schema, of
which a Unigram tokenizer fills in a dozen fields. Coding those by hand spares a dependency.
Field numbers: sentencepiece_model.proto of google/sentencepiece.
"""

import base64
import binascii
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e5core.formats.files import read_json_object
from e5core.formats.protobuf import Value, field, fields

# The normalisation table that every XLM-R tokenizer holds; data/README.md says where it is from.
CHARSMAP = Path(__file__).parent / "data" / "nmt_nfkc.charsmap"

NORMAL, UNKNOWN, CONTROL = 1, 2, 3  # ModelProto.SentencePiece.Type; 4 to 6 are rare
_UNIGRAM = 1  # TrainerSpec.ModelType
_PIECES, _TRAINER_SPEC, _NORMALIZER_SPEC, _SELF_TEST_DATA = 1, 2, 3, 4  # fields of ModelProto
# Fields of TrainerSpec.
_MODEL_TYPE, _VOCAB_SIZE, _WHITESPACE_SUFFIX, _BYTE_FALLBACK = 3, 4, 24, 35

# These four pieces open a vocabulary in fairseq's order. SentencePiece has no <pad> and another
# order. It neither scores these pieces nor finds them in a text.
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
    trainer_spec = field(_MODEL_TYPE, _UNIGRAM) + field(_VOCAB_SIZE, len(vocabulary))
    specs = field(_TRAINER_SPEC, trainer_spec)
    specs += field(_NORMALIZER_SPEC, _normalizer_spec(charsmap))
    return b"".join(vocabulary) + specs


def read_pieces(content: bytes) -> list[Piece]:
    """The vocabulary of a SentencePiece model in the order of its ids.

    Raises ValueError if the content is not such a model, or only the beginning of one.
    """
    pieces = []
    for number, value, _ in _fields(content):
        if number == _PIECES:
            # A piece without a kind is NORMAL, and one without a score has 0.
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
    # A setting that the file leaves out has the value given here.
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


def without_charsmap(content: bytes) -> bytes:
    """A SentencePiece model that takes texts as they are, but for white space."""
    return _with_normalizer(content, _normalizer_spec(b""))


def charsmap_model(charsmap: bytes) -> bytes:
    """A SentencePiece model that only normalises: no white space is added, dropped or escaped."""
    pieces = [(special, 0.0) for special in FAIRSEQ_SPECIALS] + [("a", 0.0)]
    return _with_normalizer(unigram_model(pieces, b""), _normalizer_spec(charsmap, spaces=0))


def _with_normalizer(content: bytes, spec: bytes) -> bytes:
    parts = (
        field(number, spec) if number == _NORMALIZER_SPEC else raw
        for number, _, raw in _fields(content)
    )
    return b"".join(parts)


def _normalizer_spec(charsmap: bytes, spaces: int = 1) -> bytes:
    """A table to normalise by, and what happens to white space: as in XLM-R, or nothing."""
    # add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces
    flags = (field(number, spaces) for number in (3, 4, 5))
    return field(1, b"nmt_nfkc") + field(2, charsmap) + b"".join(flags)


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
            spec = b"".join(settings) + field(_VOCAB_SIZE, len(kept))
            parts.append(field(_TRAINER_SPEC, spec))
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
    return field(1, field(1, piece.encode()) + field(2, float(score)) + field(3, kind))


def _fields(message: bytes) -> Iterator[tuple[int, Value, bytes]]:
    return fields(message, "SentencePiece model")


def _message(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError(f"it is not a SentencePiece model: {value!r} where a message should be")
    return value
