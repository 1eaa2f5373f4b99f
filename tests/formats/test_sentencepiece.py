"""SentencePiece files written by hand, and tokenizer.json read as one."""

import base64
import json

import pytest
import sentencepiece
from support.models import CHARSMAP, tiny_vocabulary

from e5core import SentencePieceTokenizer
from e5core.formats.sentencepiece import unigram_model
from e5core.parity.samples import SENTENCES


@pytest.fixture
def tokenizer_json(tmp_path):
    """A tokenizer.json as Hugging Face writes it, with the tiny vocabulary."""
    charsmap = base64.b64encode(CHARSMAP.read_bytes()).decode()
    content = {
        "added_tokens": [],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Precompiled", "precompiled_charsmap": charsmap},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
            ],
        },
        "model": {
            "type": "Unigram",
            "unk_id": 3,
            "vocab": [[piece, score] for piece, score in [*tiny_vocabulary(), ("<mask>", 0.0)]],
        },
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_sentencepiece_reads_what_is_written():
    processor = sentencepiece.SentencePieceProcessor()
    vocabulary = tiny_vocabulary()
    processor.LoadFromSerializedProto(unigram_model(vocabulary, CHARSMAP.read_bytes()))
    assert processor.GetPieceSize() == len(vocabulary) - 1  # no <pad>
    for piece, score in vocabulary[4:]:
        assert processor.GetScore(processor.PieceToId(piece)) == pytest.approx(score, rel=1e-6)
    assert (processor.unk_id(), processor.bos_id(), processor.eos_id()) == (0, 1, 2)
    # nmt_nfkc: full-width forms fold, runs of white space shrink.
    assert processor.EncodeAsIds("ＡＢ  c") == processor.EncodeAsIds("AB c")


def test_the_order_of_the_special_tokens_is_checked():
    with pytest.raises(ValueError, match=r"starts with .*'<unk>'.*expected \('<s>'"):
        unigram_model([("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("a", -1.0)], b"")


def test_tokenizer_json_gives_the_same_ids(tokenizer_json, tmp_path):
    path = tmp_path / "sentencepiece.bpe.model"
    path.write_bytes(unigram_model(tiny_vocabulary(), CHARSMAP.read_bytes()))
    from_model, from_json = SentencePieceTokenizer(path), SentencePieceTokenizer(tokenizer_json)
    assert from_json.vocab_size == from_model.vocab_size
    ids = [from_model.encode(text) for text in SENTENCES[:40]]
    assert [from_json.encode(text) for text in SENTENCES[:40]] == ids
    assert len({len(text) for text in ids}) > 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].update(type="BPE"), "'BPE' tokenizer, expected 'Unigram'"),
        (lambda c: c.pop("model"), "expected 'Unigram'"),
        (lambda c: c["model"].pop("vocab"), "lacks a vocabulary"),
        (lambda c: c.pop("normalizer"), "lacks a vocabulary or a precompiled charsmap"),
        (lambda c: c["model"]["vocab"].pop(0), "starts with"),
        (lambda c: c["model"].update(vocab=[["a"]]), "lacks a vocabulary"),
    ],
)
def test_a_tokenizer_json_of_another_kind(tokenizer_json, change, message):
    content = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    change(content)
    tokenizer_json.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        SentencePieceTokenizer(tokenizer_json)
    assert "tokenizer.json" in str(caught.value)
