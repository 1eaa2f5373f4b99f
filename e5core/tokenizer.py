"""Text to token ids: SentencePiece with the numbering of fairseq."""

from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from e5core.formats.files import lfs_way_out
from e5core.formats.sentencepiece import read_model

BOS, PAD, EOS, UNKNOWN = 0, 1, 2, 3  # <s>, <pad>, </s>, <unk>

# fairseq puts <pad> before the pieces, so that SentencePiece's piece k has the id k + 1.
# Its three specials stand in another order, and of those only the unknown one is emitted.
FAIRSEQ_OFFSET = 1
SP_UNKNOWN = 0


class SentencePieceTokenizer:
    """The XLM-R tokenizer: `<s> pieces </s>`.

    Text is text: a literal `<s>` or `<mask>` in it is spelled out in ordinary pieces.
    Safe to share between threads.

    >>> tokenizer = SentencePieceTokenizer("sentencepiece.bpe.model")  # doctest: +SKIP
    >>> tokenizer.encode("Hello World!")  # doctest: +SKIP
    [0, 35378, 6661, 38, 2]
    """

    def __init__(self, path: str | Path) -> None:
        """Load `sentencepiece.bpe.model`, or a `tokenizer.json` with the same content.

        Raises FileNotFoundError, or ValueError if the file is not such a tokenizer.
        """
        path = Path(path)
        content = read_model(path)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(content)
            specials = [self._processor.IdToPiece(i) for i in range(3)]
        except (RuntimeError, IndexError, OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} is not a SentencePiece model ({len(content)} bytes); "
                f"{lfs_way_out(path) or 'get it again'}"
            ) from error
        if specials != ["<unk>", "<s>", "</s>"]:
            raise ValueError(
                f"{path} starts with the pieces {specials}, expected '<unk>', '<s>', '</s>': "
                "it is not an XLM-R tokenizer"
            )
        # A special of another type could be found in an ordinary text.
        types = self._processor.IsUnknown(0), *map(self._processor.IsControl, (1, 2))
        if not all(types):
            wrong = specials[types.index(False)]
            raise ValueError(
                f"{path} is damaged: {wrong!r} is not of the type unknown or control that it has "
                "in an XLM-R tokenizer; get it again"
            )

    @property
    def mask_id(self) -> int:
        """`<mask>`, the last id."""
        return self._processor.GetPieceSize() + FAIRSEQ_OFFSET

    @property
    def vocab_size(self) -> int:
        return self.mask_id + 1

    def check_rows(self, rows: int) -> None:
        """Raise ValueError if there are more ids than the token table has rows."""
        if self.vocab_size > rows:
            raise ValueError(
                f"the tokenizer has {self.vocab_size} ids, the token table {rows} rows: they do "
                "not belong together"
            )

    def encode(self, text: str) -> list[int]:
        """The ids of a text of any length, `<s>` and `</s>` included.

        Raises TypeError if it is not a str, ValueError if it holds a lone surrogate.
        """
        return [BOS, *self.encode_pieces(text), EOS]

    def encode_pieces(self, text: str) -> list[int]:
        """The ids of a text without `<s>` and `</s>`."""
        if not isinstance(text, str):
            raise TypeError(f"text is {text!r:.80} of type {type(text).__name__}, expected str")
        try:
            pieces = self._processor.EncodeAsIds(text)
        except (UnicodeEncodeError, RuntimeError, TypeError):  # it depends on the release
            place = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), None)
            if place is None:
                raise
            raise ValueError(
                f"the text holds the lone surrogate U+{ord(text[place]):04X} at character {place}, "
                "which UTF-8 cannot encode; clean it, for example with "
                'text.encode("utf-8", "replace").decode()'
            ) from None
        return [p + FAIRSEQ_OFFSET if p != SP_UNKNOWN else UNKNOWN for p in pieces]

    def piece_numbers(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        """SentencePiece's own numbers of the pieces of several texts, on threads of its own."""
        pieces: list[list[int]] = self._processor.Encode(list(texts), num_threads=threads)
        return pieces

    def count(self, text: str) -> int:
        """The number of tokens of a text, `<s>` and `</s>` included."""
        return len(self.encode_pieces(text)) + 2

    def decode(self, ids: Sequence[int]) -> str:
        """The normalised text of a list of ids; `<s>`, `<pad>`, `</s>` and `<mask>` vanish.

        Raises ValueError for an id outside the vocabulary.
        """
        pieces = []
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"id {i} is outside the vocabulary of 0 to {self.mask_id}")
            if i == UNKNOWN:
                pieces.append(SP_UNKNOWN)
            elif i > UNKNOWN and i != self.mask_id:
                pieces.append(int(i) - FAIRSEQ_OFFSET)
        return str(self._processor.DecodeIds(pieces))
