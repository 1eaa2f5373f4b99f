"""`e5core check` against published outputs, and that these are as their sources have them."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import CHARSMAP

from e5core import E5
from e5core.checkpoint.folder import ModelFolder
from e5core.parity.against_published import published_case
from e5core.parity.published import (
    PUBLISHED,
    Expectation,
    FirstNumbers,
    LastNumbers,
    Scores,
    Similarities,
    published_outputs,
)
from e5core.parity.vectors import load

Make = Callable[..., Path]
Run = Callable[..., tuple[int, dict[str, str], str]]

pytestmark = pytest.mark.usefixtures("one_thread")


# The same numbers once more, as a person copied them.
SPELLED = {
    "xlm-roberta-base": (
        "-0.0101 0.1218 -0.0803 0.0801 0.1327 0.0776 -0.1215 0.2383 0.3338 0.3106 0.0300 0.0252"
    ),
    "xlm-roberta-large": (
        "-0.0699 -0.0318 0.0705 -0.1241 0.0999 -0.0520 0.1004 -0.1838 -0.4704 0.1437 0.0821 0.0126"
    ),
    "multilingual-e5-base": ".79078 .87654 .85599 .86601",
    "multilingual-e5-large": "0.4544 -0.0968 0.1054 -1.3753 0.1500 .76823 .87257 .8288 .83204",
    "multilingual-e5-large-instruct": (
        ".79779 .89875 .85599 .85365 "
        "91.92852783203125 67.580322265625 70.3814468383789 92.1330795288086"
    ),
    "bge-reranker-base": "0.87891 0.99609 0.99609 0.05029",
    "bge-reranker-large": "-1.5263671875 -5.60546875 5.76171875 0.69922 1.0 0.97266 0.81641",
    "bge-reranker-v2-m3": "-5.65234375 -8.1875 5.26171875 0.01855 1.0 0.78906 0.98828",
    "mmarco-mMiniLMv2-L12-H384-v1": "-3.28125 10.1875 3.4375 7.46875",
    "bge-reranker-v2-m3-ko": "0.00711 1.0 0.96484 1.0",
    "japanese-bge-reranker-v2-m3-v1": "0.04077 0.99609 0.82031 0.98438",
    "bge-reranker-v2-m3-en-ru": "0.01855 1.0 0.78906 0.98828",
    "bge-reranker-v2-m3-turkish-triplet": "0.01453 0.99609 0.625 0.96875",
}
# The models of vectors among them; tests/parity/test_check_rerankers.py has the others.
EMBEDDERS = {
    name: outputs
    for name, outputs in PUBLISHED.items()
    if not any(isinstance(expected, Scores) for expected in outputs)
}


@pytest.mark.parametrize("name", SPELLED)
def test_published_numbers(name: str) -> None:
    numbers = [number for expected in published_outputs(name) for number in expected.numbers]
    assert numbers == [float(number) for number in SPELLED[name].split()]


def test_published_settings() -> None:
    outputs = {model.split("/")[1]: outputs for model, outputs in PUBLISHED.items()}
    assert set(outputs) == set(SPELLED)
    for size in ("base", "large"):
        (states,) = outputs[f"xlm-roberta-{size}"]
        ids = "0 581 10269 83 99942 136 60742 23 70 80583 18276 2"
        assert " ".join(map(str, states.ids)) == ids
        assert states.tolerance == 0.001
    assert outputs["multilingual-e5-large"][0].text == "hello world"
    assert outputs["multilingual-e5-large"][0].tolerance == 0.001
    for name, prefixes in {
        "multilingual-e5-base": ["", "query: "],
        "multilingual-e5-large": ["", "query: "],
        "multilingual-e5-large-instruct": [
            "",
            "query: ",
            "Instruct: Given a web search query, retrieve relevant passages that answer the query\n"
            "Query: ",
        ],
    }.items():
        planets = next(e for e in outputs[name] if isinstance(e, Similarities))
        assert [setting.query for setting in planets.settings] == prefixes
        assert [setting.passage for setting in planets.settings] == ["", "passage: ", ""][
            : len(prefixes)
        ]
        assert (planets.tolerance, planets.scale) == (0.01, 1)
        assert planets.queries == ("Which planet is known as the Red Planet?",)
        assert [text.split()[0] for text in planets.passages] == [
            *("Venus", "Mars,", "Jupiter,", "Saturn,")
        ]
    card = outputs["multilingual-e5-large-instruct"][1]
    assert (card.tolerance, card.scale, len(card.settings)) == (0.1, 100, 1)
    assert card.queries == ("how much protein should a female eat", "南瓜的家常做法")
    assert [hashlib.sha256(text.encode()).hexdigest()[:16] for text in card.passages] == [
        *("5a7f55afa6f34efe", "db3e5aadb85fc27b")
    ]


@pytest.mark.parametrize("outputs", PUBLISHED.values(), ids=PUBLISHED)
def test_every_expectation_has_a_source_and_as_many_numbers_as_it_says(
    outputs: tuple[Expectation, ...],
) -> None:
    for expected in outputs:
        assert expected.source
        assert expected.tolerance > 0
        if isinstance(expected, LastNumbers):
            assert len(expected.numbers) == len(expected.ids) == 12
        elif isinstance(expected, FirstNumbers):
            assert len(expected.numbers) == 5
        elif isinstance(expected, Scores):
            assert len(expected.numbers) == len(expected.pairs)
        else:
            assert len(expected.numbers) == len(expected.queries) * len(expected.passages) == 4


def from_transformers(oracle: Any, folder: Path, expected: Any) -> Any:
    """The expectation with the numbers that transformers computes for this model."""
    reference = oracle.load_reference(folder)
    if isinstance(expected, LastNumbers):
        expected = dataclasses.replace(expected, ids=tuple(i % 115 for i in expected.ids))
        states = oracle.reference_hidden_states(reference, [expected.ids])[0]
        return dataclasses.replace(expected, numbers=tuple(states[:, -1].tolist()))
    fast = oracle.fast_tokenizer(folder, CHARSMAP)
    if isinstance(expected, FirstNumbers):
        states = oracle.reference_hidden_states(reference, fast([expected.text])["input_ids"])[0]
        return dataclasses.replace(expected, numbers=tuple(states.mean(dim=0)[:5].tolist()))
    texts = [expected.settings[-1].query + text for text in expected.queries]
    texts += [expected.settings[-1].passage + text for text in expected.passages]
    ids = fast(texts, truncation=True, max_length=64)["input_ids"]
    vectors = oracle.reference_vectors(reference, ids)
    queries, passages = np.split(vectors, [len(expected.queries)])
    numbers = (expected.scale * queries @ passages.T).ravel()
    return dataclasses.replace(expected, numbers=tuple(numbers.tolist()))


@pytest.mark.parametrize("outputs", EMBEDDERS.values(), ids=EMBEDDERS)
def test_right_numbers_hold_and_a_change_of_any_one_breaks(
    oracle: Any, make_tiny: Make, outputs: tuple[Expectation, ...]
) -> None:
    folder = make_tiny("xlm-roberta")
    model = load(ModelFolder.read(folder), device="cpu")
    for template in outputs:
        expected = from_transformers(oracle, folder, template)
        case = published_case(model, expected)
        assert case.ok
        assert case.name == template.source
        if isinstance(expected, Similarities):
            assert expected.settings[-1].name in case.measured
            # Under other prefixes a tiny model's cosines are nearly the same.
            expected = dataclasses.replace(expected, settings=expected.settings[-1:])
        for index, number in enumerate(expected.numbers):
            for change in (-1.5 * expected.tolerance, 1.5 * expected.tolerance):
                numbers = list(expected.numbers)
                numbers[index] = number + change
                changed = dataclasses.replace(expected, numbers=tuple(numbers))
                assert not published_case(model, changed).ok


def test_the_setting_that_fits_is_found_wherever_it_stands(oracle: Any, make_tiny: Make) -> None:
    folder = make_tiny("xlm-roberta")
    model = load(ModelFolder.read(folder), device="cpu")
    template = PUBLISHED["intfloat/multilingual-e5-large-instruct"][0]
    assert isinstance(template, Similarities)
    for setting in template.settings:
        alone = dataclasses.replace(template, settings=(setting,))
        numbers = from_transformers(oracle, folder, alone).numbers
        case = published_case(model, dataclasses.replace(template, numbers=numbers))
        assert case.ok
        assert case.measured.endswith(f", {setting.name})")


def test_published_outputs_through_the_command(
    oracle: Any, run: Run, make_tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny("xlm-roberta")
    name = "intfloat/multilingual-e5-large"
    right = tuple(from_transformers(oracle, folder, expected) for expected in PUBLISHED[name])
    monkeypatch.setitem(PUBLISHED, name, right)
    options = ("--against", "published", "--published-as", "multilingual-e5-large")
    code, verdicts, _ = run(folder, *options)
    assert (code, list(verdicts.values())) == (0, ["ok", "ok"])
    monkeypatch.setitem(PUBLISHED, name, (right[0], dataclasses.replace(right[1], scale=1.1)))
    code, verdicts, _ = run(folder, *options)
    assert (code, list(verdicts.values())) == (1, ["ok", "FAIL"])


def test_another_model_does_not_pass_for_any_published_one(real_model: E5) -> None:
    """e5-small is of the same family, so that its similarities come near."""
    for outputs in EMBEDDERS.values():
        for expected in outputs:
            assert not published_case(real_model, expected).ok, expected.source


def test_a_model_without_published_outputs(run: Run, make_tiny: Make) -> None:
    code, _, err = run(make_tiny(), "--against", "published")
    assert (code, err.count("\n")) == (2, 1)
    assert all(name in err for name in (*PUBLISHED, "--published-as"))
