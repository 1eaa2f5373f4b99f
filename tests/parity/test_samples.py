"""The texts that tests and checks use."""

from collections.abc import Callable
from pathlib import Path

import pytest

from e5core import E5
from e5core.parity.samples import LANGUAGES, QUERIES, SENTENCES, spread, text_of_length

Make = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_small_sample_has_all_languages() -> None:
    sample = spread(SENTENCES + QUERIES, 32)
    assert len(set(sample)) == 32
    languages = {LANGUAGES[SENTENCES.index(text)] for text in sample if text in SENTENCES}
    assert languages == set(LANGUAGES)
    assert set(sample) & set(QUERIES)
    assert sorted(spread(SENTENCES, 1000)) == sorted(SENTENCES)


@pytest.mark.parametrize("prefix", ["", "query: ", "passage: "])
@pytest.mark.parametrize("length", [5, 62, 63, 64, 65])
def test_text_of_length_with_a_tiny_vocabulary(make_tiny: Make, prefix: str, length: int) -> None:
    tokenizer = E5.from_pretrained(make_tiny()).tokenizer
    assert tokenizer.count(prefix + text_of_length(tokenizer, length, prefix)) == length
