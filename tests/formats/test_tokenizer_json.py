"""tokenizer.json from a SentencePiece model beside what transformers saves for the same one."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sentencepiece
from support.models import CHARSMAP, write_tiny_model

from e5core import SentencePieceTokenizer
from e5core.formats.files import read_json, read_json_object
from e5core.formats.sentencepiece import model_from_tokenizer_json, read_charsmap
from e5core.formats.tokenizer_json import tokenizer_json, write_fast_tokenizer
from e5core.parity.samples import LANGUAGES, QUERIES, SENTENCES

FILE = "sentencepiece.bpe.model"


@pytest.fixture(scope="module", params=["tiny", "real"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, real_folder: Path
) -> Path:
    if request.param == "real":
        return real_folder
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny", "bert")


@pytest.fixture(scope="module")
def written(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_fast_tokenizer((model / FILE).read_bytes(), folder, 512)
    return folder


def test_it_is_what_transformers_saves(
    model: Path, written: Path, oracle: ModuleType, tmp_path: Path
) -> None:
    theirs = oracle.fast_tokenizer(model, CHARSMAP)
    theirs.model_max_length = 512
    theirs.save_pretrained(tmp_path)
    assert read_json(written / "tokenizer.json") == read_json(tmp_path / "tokenizer.json")
    settings = read_json_object(tmp_path / "tokenizer_config.json")
    assert settings.pop("backend") == "tokenizers"
    assert read_json(written / "tokenizer_config.json") == settings


def test_it_gives_the_same_ids(model: Path, written: Path, oracle: ModuleType) -> None:
    auto: Any = oracle.transformers.AutoTokenizer
    theirs, ours = auto.from_pretrained(written), SentencePieceTokenizer(model / FILE)
    assert len(set(LANGUAGES)) > 10
    texts = [*SENTENCES, *QUERIES, "", " ", "a  b\tc", "query: ﬁne ½ ①", "long " * 600]
    # Cut by the limit that the files say.
    found = theirs(texts, truncation=True)["input_ids"]
    expected = [ours.encode(text) for text in texts]
    assert len(expected[-1]) > 512
    assert found == [ids if len(ids) <= 512 else [*ids[:511], 2] for ids in expected]
    assert (theirs.pad_token_id, theirs.mask_token_id) == (1, ours.mask_id)
    assert theirs.model_max_length == 512


def test_there_and_back_is_the_same_model(model: Path, written: Path) -> None:
    assert model_from_tokenizer_json(written / "tokenizer.json") == (model / FILE).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": 2}, r"are \[2, 0, 0, 1, 1, 1\], those of XLM-R are \[1, 0, 0, 1, 1, 1\]"),
        ({"add_dummy_prefix": False}, r"are \[1, 0, 0, 0, 1, 1\]"),
        ({"treat_whitespace_as_suffix": True}, r"are \[1, 0, 1, 1, 1, 1\]"),
        ({"byte_fallback": True}, "of the kind 6; those of XLM-R are|0, 1, 0, 1, 1, 1"),
        ({"user_defined_symbols": ["abc"]}, "'abc', is of the kind 4; those of XLM-R"),
    ],
)
def test_what_such_a_file_cannot_say_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """Models that SentencePiece itself trains, each with another setting."""
    (tmp_path / "corpus").write_text("\n".join(SENTENCES), "utf-8")
    kind = "bpe" if change.pop("model_type", 1) == 2 else "unigram"
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus"),
        model_prefix=str(tmp_path / "trained"),
        model_type=kind,
        vocab_size=2500,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **change,
    )
    with pytest.raises(ValueError, match=message):
        tokenizer_json((tmp_path / "trained.model").read_bytes())


def test_an_ordinary_trained_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "corpus").write_text("\n".join(SENTENCES), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus"),
        model_prefix=str(tmp_path / "trained"),
        vocab_size=2500,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        minloglevel=2,
        num_threads=1,
    )
    content = (tmp_path / "trained.model").read_bytes()
    assert read_charsmap(content) == b""
    assert tokenizer_json(content)["normalizer"] is None
