"""Where the tokens of a text stand in it."""

import unicodedata

from e5core.formats.protobuf import fields
from e5core.tokenizer import SentencePieceTokenizer

# Fields of sentencepiece.proto: the pieces of a text, and where a piece starts and ends in it,
# counted in bytes of UTF-8.
_PIECES, _BEGIN, _END = 2, 4, 5

Span = tuple[int, int]


def spans(tokenizer: SentencePieceTokenizer, text: str) -> list[Span] | None:
    """The start and end of each piece of a text in characters, `<s>` and `</s>` left out.

    None if the tokenizer changes texts before SentencePiece sees them, so that nobody knows.

    The spans do not overlap. The blank before a word is left out, as Hugging Face's fast tokenizers
    do. Where one character becomes several pieces (the ligature ﷺ is four words), the last of them
    has it, and those before it are empty.
    """
    if type(tokenizer) is not SentencePieceTokenizer:
        return None
    data = text.encode()
    found = []
    characters = place = 0  # the same place in characters and in bytes
    for piece in _pieces(tokenizer, text):
        edges = []
        for edge in (piece[_BEGIN], piece[_END]):
            characters += len(data[place:edge].decode())
            place = edge
            edges.append(characters)
        start, end = edges
        while start < end and _is_blank(text[start]):
            start += 1
        found.append((start if start < end else edges[0], end))
    return found


def _is_blank(character: str) -> bool:
    """Whether SentencePiece takes a character for a blank, or for nothing: such as U+200C."""
    return character.isspace() or unicodedata.category(character) in ("Cc", "Cf")


def _pieces(tokenizer: SentencePieceTokenizer, text: str) -> list[dict[int, int]]:
    """The numbers that SentencePiece tells of each piece."""
    kind = "text of SentencePiece"
    message = tokenizer._processor.Encode(text, out_type="serialized_proto")
    pieces = [value for number, value, _ in fields(message, kind) if number == _PIECES]
    return [
        {number: value for number, value, _ in fields(piece, kind) if isinstance(value, int)}
        for piece in pieces
        if isinstance(piece, bytes)
    ]
