"""Texts to ids, slice by slice: on a CPU one by one, beside a GPU on SentencePiece's threads."""

import numpy as np
import pytest
import torch

from e5core import SentencePieceTokenizer, TextError
from e5core.parity.samples import QUERIES, SENTENCES
from e5core.texts import tokenizing
from e5core.texts.cutting import cut, cut_all
from e5core.texts.tokenizing import tokenized
from e5core.texts.windows import windows

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TEXTS = [*SENTENCES, "", " ", "\u0001 \ue000 𓀀", "a" * 3000, *QUERIES]


@pytest.fixture(scope="module")
def tokenizer(real_folder):
    return SentencePieceTokenizer(real_folder / "sentencepiece.bpe.model")


@pytest.mark.parametrize("prefix", ["query: ", ""])
def test_ids_are_the_same_beside_a_gpu(tokenizer, prefix, monkeypatch):
    monkeypatch.setattr(tokenizing, "CHARACTERS", (50, 4000))
    wanted = [ids for some in tokenized(tokenizer, CPU, TEXTS, prefix) for ids in some]
    assert wanted == [tokenizer.encode(prefix + text) for text in TEXTS]
    sizes = []
    found = []
    for some in tokenized(tokenizer, GPU, iter(TEXTS), prefix):
        sizes.append(len(some))
        assert all(isinstance(ids, np.ndarray) for ids in some) == (len(some) >= tokenizing.FEWEST)
        found += [[int(i) for i in ids] for ids in some]
    assert found == wanted
    # Few texts are tokenized one by one, the others all at once.
    assert sizes[0] < tokenizing.FEWEST < max(sizes)


@pytest.mark.parametrize("place", [3, 100])
def test_an_error_names_its_text(tokenizer, place, monkeypatch):
    monkeypatch.setattr(tokenizing, "CHARACTERS", (50, 4000))
    texts = [*TEXTS[:place], "a\ud800b", *TEXTS[place:]]
    for device in (CPU, GPU):
        with pytest.raises(TextError, match=r"lone surrogate U\+D800 at character 1") as caught:
            list(tokenized(tokenizer, device, texts, "query: "))
        assert caught.value.indices == (place,)
        with pytest.raises(TypeError, match=f"text {place} is None"):
            list(tokenized(tokenizer, device, [*TEXTS[:place], None, *TEXTS[place:]], ""))


def test_arrays_are_cut_like_lists():
    texts = [[0, *range(5, 5 + n), 2] for n in (3, 8, 9)]
    arrays = [np.array(ids) for ids in texts]
    found = cut_all(arrays, 10)
    assert all(isinstance(ids, np.ndarray) for ids in found)
    assert [ids.tolist() for ids in found] == cut_all(texts, 10) == [cut(ids, 10) for ids in texts]
    assert [windows(ids, 6, [5]) for ids in arrays] == [windows(ids, 6, [5]) for ids in texts]
    assert isinstance(windows(arrays[2], 6)[0][1], int)
