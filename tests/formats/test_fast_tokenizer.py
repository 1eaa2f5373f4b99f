"""Text steps and added tokens: the ids of the tokenizers library, or a refusal by name."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.models import tiny_vocabulary

from e5core.checkpoint.tokenizers import FastTokenizer, load_tokenizer, steps_of
from e5core.formats.fast_tokenizer import NO_STEPS, read_head, read_text_steps, vocabulary_text
from e5core.formats.sentencepiece import CHARSMAP, unigram_model
from e5core.formats.tokenizer_json import tokenizer_json, write_fast_tokenizer

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

MODEL = unigram_model(tiny_vocabulary(), CHARSMAP.read_bytes())
TEXTS = 400  # of each tokenizer; 4,000 of each were compared without a difference (2026-11)
PARTS = [
    *("the ", "The", "query", "PASSAGE", " ", "  ", "\t", "newtok", "NEWTOK", "<new>", "<New>"),
    *("NewTok", "zwei wort", "zwei  wort", "[X]", "ing", "er", "the", "<l>", "<r>", "<b>", "ab"),
    *(
        "abc",
        "bcd",
        "abcd",
        "Ａｂ",
        "ﬁ",
        "fi",
        "É",
        "é",
        "e\u0301",
        "İ",
        "Σ",
        "ß",
        "日本",
        "\u3000",
    ),
    *("я", "Я", "1", "2", "\u00a0", "\n", ",", "K", "\u200b", "ſ", "Å"),
]

Change = Callable[[Any], object]


def normalizers(*steps: Any, after: bool = False) -> Change:
    """Steps of the library's names, each with its arguments, around the own one."""

    def change(tokenizer: Any) -> None:
        library = tokenizers.normalizers
        made = [getattr(library, name)(*arguments) for name, *arguments in steps]
        own = [tokenizer.normalizer]
        tokenizer.normalizer = library.Sequence(own + made if after else made + own)

    return change


def add(*contents: str, special: bool = False, **flags: bool) -> Change:
    def change(tokenizer: Any) -> None:
        tokens = [tokenizers.AddedToken(content, **flags) for content in contents]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(tokens)

    return change


def each(*changes: Change) -> Change:
    return lambda tokenizer: [change(tokenizer) for change in changes]


SAME: dict[str, Change] = {
    "nothing": lambda tokenizer: None,
    "Lowercase": normalizers(("Lowercase",)),
    "Lowercase at the end": normalizers(("Lowercase",), after=True),
    "StripAccents": normalizers(("NFD",), ("StripAccents",)),
    "NFKD and NFC at the end": normalizers(("NFKD",), ("StripAccents",), ("NFC",), after=True),
    "Replace": normalizers(("Replace", "e", "é")),
    "Replace at the end": normalizers(("Replace", "a", "b"), after=True),
    "words": add("newtok", "<new>", "zwei wort"),
    "special": add("[X]", "ing", special=True),
    "single words": add("er", "the", single_word=True),
    "white space before": add("<l>", lstrip=True),
    "white space behind": add("<r>", rstrip=True),
    "white space around": add("<b>", lstrip=True, rstrip=True, normalized=False),
    "one in another": add("ab", "abc", "bcd"),
    "lowered ones": each(normalizers(("Lowercase",)), add("NewTok", "<New>")),
    "normalised ones": add("Ａｂ", "ﬁ"),
    "both kinds": each(add("Ａｂ", normalized=False), add("ﬁ")),
    "a piece of the vocabulary": add("▁query", "日"),
}


def write(folder: Path, change: Change) -> Any:
    """A tokenizer.json that the library has written; returns the library's tokenizer."""
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(MODEL)))
    change(tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


@pytest.mark.parametrize("name", SAME)
def test_ids_are_those_of_the_library(tmp_path: Path, name: str) -> None:
    theirs = write(tmp_path, SAME[name])
    ours = load_tokenizer(tmp_path, tmp_path / "tokenizer.json", lower_case=False)
    assert isinstance(ours, FastTokenizer) == (name != "nothing")
    # What is written anew says the same.
    write_fast_tokenizer(MODEL, tmp_path, 64, steps_of(ours))
    again = load_tokenizer(tmp_path, tmp_path / "tokenizer.json", lower_case=False)
    chance = random.Random(name)
    for _ in range(TEXTS):
        text = "".join(chance.choice(PARTS) for _ in range(chance.randint(0, 8)))
        assert ours.encode(text) == theirs.encode(text).ids, text
        assert again.encode(text) == ours.encode(text), text


def test_text_that_is_none_is_named(tmp_path: Path) -> None:
    write(tmp_path, SAME["words"])
    ours = load_tokenizer(tmp_path, tmp_path / "tokenizer.json", lower_case=True)
    with pytest.raises(ValueError, match=r"lone surrogate U\+D800 at character 4"):
        ours.encode("the \ud800")
    with pytest.raises(TypeError, match="text is None"):
        ours.encode(None)  # type: ignore[arg-type]
    assert ours.encode("the") == ours.encode("THE")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(normalizer={"type": "Nmt"}), "normalizer 'Nmt'"),
        (lambda t: t.update(pre_tokenizer=None), r"pre_tokenizer \[\]"),
        (lambda t: t.update(pre_tokenizer={"type": "ByteLevel"}), "pre_tokenizer 'ByteLevel'"),
        (
            lambda t: t["pre_tokenizer"]["pretokenizers"][1].update(prepend_scheme="never"),
            "Metaspace",
        ),
        (lambda t: t["pre_tokenizer"]["pretokenizers"][1].update(split=False), "Metaspace"),
        (
            lambda t: t["post_processor"].update(single=t["post_processor"]["pair"]),
            "post_processor 'TemplateProcessing'",
        ),
        (lambda t: t["added_tokens"][0].update(id=7), "the id 7 of '<s>'"),
        (lambda t: t["added_tokens"].append({"id": 111, "content": ""}), "has no text or no id"),
        (lambda t: t["model"].update(type="BPE"), "holds a 'BPE' tokenizer, expected 'Unigram'"),
    ],
)
def test_what_is_not_done_is_named(tmp_path: Path, change: Change, message: str) -> None:
    content = tokenizer_json(MODEL)
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_text_steps(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_vocabulary_is_passed_over(tmp_path: Path, indent: int | None, reverse: bool) -> None:
    """In whatever order and layout the file is written."""
    content = tokenizer_json(MODEL)
    order = sorted(content, key=lambda key: key == "model", reverse=reverse)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({key: content[key] for key in order}, indent=indent), "utf-8-sig")
    head = read_head(path)
    assert all(head[key] == content[key] for key in content if key != "model")
    assert (head["model"]["type"], head["model"]["unk_id"]) == ("Unigram", 3)
    assert list(vocabulary_text(path)) == [piece for piece, _ in content["model"]["vocab"]]
    assert read_text_steps(path) == NO_STEPS


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model": {"vocab"', '{"a" 1}', "{}"])
def test_a_damaged_file_is_an_error_of_one_kind(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        read_text_steps(path)
