"""Where tokens stand in a text, beside what Hugging Face's fast tokenizers say."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import write_tiny_model

from e5core import E5, SentencePieceTokenizer
from e5core.formats.sentencepiece import read_model
from e5core.formats.tokenizer_json import tokenizer_json
from e5core.parity.samples import QUERIES, SENTENCES
from e5core.texts.spans import spans


@pytest.fixture(scope="module")
def tokenizer(real_folder: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(real_folder / "sentencepiece.bpe.model")


def test_spans_are_those_of_a_fast_tokenizer(
    tokenizer: SentencePieceTokenizer, real_folder: Path
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    content = read_model(real_folder / "sentencepiece.bpe.model")
    fast = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(content)))
    compared = 0
    for text in SENTENCES + QUERIES:
        theirs = fast.encode(text, add_special_tokens=False)
        ours = spans(tokenizer, text)
        assert ours is not None
        assert len(ours) == len(theirs.offsets)
        for piece, own, other in zip(theirs.tokens, ours, theirs.offsets, strict=True):
            # A blank that is a piece of its own has the next letter there.
            if piece != "▁":
                assert own == other, (text, piece)
                compared += 1
    assert compared > 2000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello world", ["hell", "o", "world"]),
        ("\n\n a", ["a"]),
        ("ﬁne ½", ["ﬁne", "½"]),  # normalised to "fine 1⁄2"
        ("a\u200bb", ["a", "b"]),
        ("ﷺ x", ["", "", "", "ﷺ", "x"]),
        ("😀😀 𝒳語", ["😀", "😀", "𝒳", "語"]),
        (" ", []),
    ],
)
def test_spans_count_characters_of_the_text_as_it_came(
    tokenizer: SentencePieceTokenizer, text: str, words: list[str]
) -> None:
    found = spans(tokenizer, text)
    assert found is not None
    assert [text[start:end] for start, end in found] == words


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_every_piece_has_its_span(tokenizer: SentencePieceTokenizer, text: str) -> None:
    found = spans(tokenizer, text)
    assert found is not None
    assert len(found) == len(tokenizer.encode_pieces(text))
    ends = [0, *(edge for span in found for edge in span), len(text)]
    assert ends == sorted(ends)


def test_a_tokenizer_with_steps_of_its_own_tells_none(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny", "xlm-roberta")
    config = folder / "sentence_bert_config.json"
    settings: Any = json.loads(config.read_text()) if config.is_file() else {}
    config.write_text(json.dumps({**settings, "do_lower_case": True}))
    tokenizer = E5.from_pretrained(folder).tokenizer
    assert type(tokenizer) is not SentencePieceTokenizer
    assert spans(tokenizer, "A text") is None
