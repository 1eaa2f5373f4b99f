"""A model against outputs that others have published for it."""

from collections.abc import Iterator
from functools import partial

import torch

from e5core import E5, pack
from e5core.checkpoint.folder import ModelFolder
from e5core.parity.cases import Case, at_most, worst
from e5core.parity.published import (
    FirstNumbers,
    LastNumbers,
    Scores,
    Similarities,
    published_outputs,
)
from e5core.parity.rerankers import reranker_against_published
from e5core.parity.vectors import Vectors, load

VectorOutput = LastNumbers | FirstNumbers | Similarities


def against_published(
    name: str, published_as: str | None = None, dtype: str = "float32"
) -> Iterator[Case]:
    expectations = published_outputs(published_as or name)
    folder = ModelFolder.open(name)
    scores = [expected for expected in expectations if isinstance(expected, Scores)]
    if scores:  # the model is a cross-encoder, or loading it says that it is none
        return reranker_against_published(folder, scores, dtype)
    model = load(folder, dtype=dtype, device="cpu")
    return (
        published_case(model, expected)
        for expected in expectations
        if not isinstance(expected, Scores)
    )


def published_case(model: E5, expected: VectorOutput) -> Case:
    """Compare the numbers under the setting in which they come nearest."""
    differences = {
        setting: worst(numbers, expected.numbers)
        for setting, numbers in outputs(model, expected).items()
    }
    nearest = min(differences, key=lambda setting: differences[setting])
    note = f" ({nearest})"
    return at_most(expected.source, expected.tolerance, differences[nearest], note)


def outputs(model: E5, expected: VectorOutput) -> dict[str, Vectors]:
    """The model's own numbers for the published ones, by the name of each possible setting."""
    encode = partial(model.encode, input_type=None, show_progress=False)
    if isinstance(expected, LastNumbers):
        with torch.inference_mode():
            states = model.encoder(pack([expected.ids], model.config))  # [tokens, hidden_size]
        return {"last numbers of the hidden states": states[:, -1].float().numpy()}
    if isinstance(expected, FirstNumbers):
        first = encode([expected.text], normalize=False)[0, : len(expected.numbers)]
        return {"first numbers of the vector": first}
    found = {}
    for setting in expected.settings:
        queries = encode([setting.query + text for text in expected.queries])
        passages = encode([setting.passage + text for text in expected.passages])
        name = f"{len(expected.numbers)} similarities, {setting.name}"
        found[name] = (queries @ passages.T).ravel() * expected.scale
    return found
