"""Ids, cutting and the inputs that break tokenizer ports."""

import threading
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import CHARSMAP, tiny_vocabulary

from e5core import SentencePieceTokenizer
from e5core.formats.sentencepiece import CONTROL, NORMAL, UNKNOWN, unigram_model
from e5core.parity.samples import LANGUAGES, QUERIES, SENTENCES
from e5core.texts.cutting import cut
from e5core.texts.windows import windows

# From transformers' test_tokenization_xlm_roberta.py, where they hold for xlm-roberta-base.
PUBLISHED_IDS = {
    "Hello World!": [0, 35378, 6661, 38, 2],
    "The quick brown fox jumps over the lazy dog.": [
        *(0, 581, 63773, 119455, 6, 147797, 88203, 7, 645, 70, 21, 3285, 10269, 5, 2)
    ],
}


@pytest.fixture(scope="module")
def tokenizer(real_folder):
    return SentencePieceTokenizer(real_folder / "sentencepiece.bpe.model")


@pytest.mark.parametrize("text", PUBLISHED_IDS)
def test_published_ids(tokenizer, text):
    assert tokenizer.encode(text) == PUBLISHED_IDS[text]


def test_sizes(tokenizer):
    assert (tokenizer.vocab_size, tokenizer.mask_id) == (250002, 250001)


@pytest.fixture(scope="module")
def fast(oracle, real_folder):
    return oracle.fast_tokenizer(real_folder, CHARSMAP)


def test_ids_of_sentences_equal_the_fast_tokenizer(tokenizer, fast):
    texts = SENTENCES + QUERIES
    assert len(set(LANGUAGES)) == 12
    assert [tokenizer.encode(text) for text in texts] == fast(texts)["input_ids"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\t\n \u3000",
        "\x00",
        "a\x00b",
        "a\x1fb",
        "\ufeffstart",
        "soft\u00adhyphen",
        "zero\u200bwidth\u200djoiner",
        "👩‍👩‍👧‍👦 family",
        "ﬁne ＡＢＣ １２３",
        "▁ a▁b ▁▁",
        "한국어 각",
        "e\u0301le\u0300ve",
        "\u202bמימין\u202c",
        "मुझे क्षत्रिय",
        "query: passage:  two  spaces ",
        "x" * 3000,
    ],
    ids=lambda text: ascii(text)[:24],
)
def test_difficult_texts_equal_the_fast_tokenizer(tokenizer, fast, text):
    assert tokenizer.encode(text) == fast(text)["input_ids"]


def test_unknown_characters_become_the_unknown_id(tokenizer):
    # A Linear B syllable; model id 3, never SentencePiece's own 0, which is <s> here.
    assert tokenizer.encode("\U00010000") == [0, 6, 3, 2]


@pytest.mark.parametrize("special", ["<s>", "</s>", "<pad>", "<unk>", "<mask>"])
def test_literal_special_tokens_are_text(tokenizer, special):
    ids = tokenizer.encode(f"a {special} b")
    assert ids[0] == 0
    assert ids[-1] == 2
    assert not {0, 1, 2, 250001} & set(ids[1:-1])
    assert special in tokenizer.decode(ids)


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["list"]])
def test_what_is_no_text_is_refused(tokenizer, text):
    with pytest.raises(TypeError, match=f"of type {type(text).__name__}, expected str"):
        tokenizer.encode(text)


def test_lone_surrogate_is_named(tokenizer):
    with pytest.raises(ValueError, match=r"lone surrogate U\+D800 at character 2.*replace"):
        tokenizer.encode("ab\ud800c")


@settings(max_examples=300)
@given(text=st.text())
def test_any_text_has_valid_ids_and_the_same_count(tokenizer, text):
    ids = tokenizer.encode(text)
    assert (ids[0], ids[-1]) == (0, 2)
    assert all(3 <= i < 250001 for i in ids[1:-1])
    assert tokenizer.count(text) == len(ids)


@pytest.mark.parametrize("text", SENTENCES[::7])
def test_decode_gives_the_normalised_text_back(tokenizer, text):
    # The normaliser is NFKC with a few changes, which these sentences do not touch.
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFKC", text)


@pytest.mark.parametrize("bad", [-1, 250002])
def test_decode_names_an_id_outside_the_vocabulary(tokenizer, bad):
    with pytest.raises(ValueError, match=f"id {bad} is outside"):
        tokenizer.decode([0, bad, 2])


def test_decode_shows_unknown_and_drops_specials(tokenizer):
    assert tokenizer.decode([0, 35378, 3, 1, 250001, 2]) == "Hello ⁇ "


def test_a_million_characters(tokenizer):
    text = "Ein langer Satz. " * 60_000
    assert tokenizer.count(text) == 60_000 * (tokenizer.count("Ein langer Satz.") - 2) + 2


def test_threads_share_a_tokenizer(tokenizer):
    expected = [tokenizer.encode(text) for text in SENTENCES]
    results: dict[int, list[list[int]]] = {}

    def work(thread: int) -> None:
        results[thread] = [tokenizer.encode(text) for text in SENTENCES]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[i] for i in range(8)] == [expected] * 8


def test_cut_keeps_the_frame():
    assert cut([0, 5, 6, 7, 8, 2], 4) == [0, 5, 6, 2]
    assert cut([0, 5, 2], 3) == [0, 5, 2]


@given(
    pieces=st.lists(st.integers(4, 99), max_size=60),
    prefix=st.lists(st.integers(4, 9), max_size=3),
    max_length=st.integers(6, 12),
)
def test_windows_hold_every_piece_once_behind_the_prefix(pieces, prefix, max_length):
    found = windows([0, *prefix, *pieces, 2], max_length, prefix)
    lead = [0, *prefix]
    assert all(3 <= len(w) <= max_length or len(found) == 1 for w in found)
    assert all(w[: len(lead)] == lead and w[-1] == 2 for w in found)
    assert [piece for w in found for piece in w[len(lead) : -1]] == pieces


def test_windows_without_room_for_text_are_refused():
    with pytest.raises(ValueError, match=r"prefix has 4 tokens.*windows of 6"):
        windows([0, 4, 5, 6, 7, 8, 2], 6, [4, 5, 6, 7])


def test_a_prefix_that_merged_with_the_text_is_not_repeated():
    assert windows([0, 9, 8, 7, 2], 4, [5]) == [[0, 9, 8, 2], [0, 7, 2]]


@pytest.mark.parametrize(
    "content",
    [b"", b"not a model", b"\x0a\x05ab", b"\x00" * 100],
    ids=["empty", "text", "cut", "0"],
)
def test_a_file_that_is_no_tokenizer(tmp_path, content):
    path = tmp_path / "sentencepiece.bpe.model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"sentencepiece\.bpe\.model"):
        SentencePieceTokenizer(path)


@pytest.mark.parametrize("special", ["<unk>", "<s>", "</s>"])
def test_a_special_piece_of_another_type_is_named(tmp_path, special):
    """SentencePiece would let it come out of a text."""
    content = bytearray(unigram_model(tiny_vocabulary(), b""))

    def set_type(piece, old, new):
        place = content.index(piece.encode()) + len(piece.encode()) + len(b"\x15\0\0\0\0\x18")
        assert content[place] == old
        content[place] = new

    set_type(special, UNKNOWN if special == "<unk>" else CONTROL, NORMAL)
    if special == "<unk>":  # there has to be one
        set_type("▁query", NORMAL, UNKNOWN)
    path = tmp_path / "sentencepiece.bpe.model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"sentencepiece\.bpe\.model is damaged: '{special}'"):
        SentencePieceTokenizer(path)


def test_a_special_piece_that_is_not_utf_8(tmp_path):
    path = tmp_path / "sentencepiece.bpe.model"
    content = unigram_model(tiny_vocabulary(), b"")
    path.write_bytes(content.replace(b"<unk>", b"<un\xe1>"))
    with pytest.raises(ValueError, match=r"sentencepiece\.bpe\.model is not a SentencePiece model"):
        SentencePieceTokenizer(path)
    path.write_bytes(content)
    assert SentencePieceTokenizer(path).encode("a")


def test_a_truncated_tokenizer_file(tmp_path, real_folder):
    content = (real_folder / "sentencepiece.bpe.model").read_bytes()
    path = tmp_path / "sentencepiece.bpe.model"
    # Whole pieces may be left, so that the rest parses; the normaliser at the end is gone.
    for length in (len(content) // 3, len(content) - 1000, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"sentencepiece\.bpe\.model"):
            SentencePieceTokenizer(path)


def test_a_missing_tokenizer_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.model"):
        SentencePieceTokenizer(tmp_path / "none.model")


def test_a_sentencepiece_model_with_other_specials(tmp_path):
    import sentencepiece

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(SENTENCES), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "other"),
        vocab_size=600,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        minloglevel=9,
    )
    with pytest.raises(ValueError, match="not an XLM-R tokenizer"):
        SentencePieceTokenizer(tmp_path / "other.model")
