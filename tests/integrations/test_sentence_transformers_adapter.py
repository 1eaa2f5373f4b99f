"""The interface of sentence-transformers beside the library itself, on the real model."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from support.models import CHARSMAP

from e5core import E5
from e5core.formats.files import read_json_object, write_json
from e5core.integrations.sentence_transformers import SentenceTransformer
from e5core.parity.samples import QUERIES, SENTENCES, spread, text_of_length
from e5core.parity.tolerances import UNIT_VECTOR_FLOAT32

TEXTS = [*spread([*SENTENCES, *QUERIES], 40), "", "query: with a prefix of its own"]


@pytest.fixture(scope="module")
def theirs(real_folder: Path, oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The library's own model, on the same weights with the tokenizer that it wants."""
    library = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    folder = tmp_path_factory.mktemp("st") / "multilingual-e5-small"
    folder.mkdir()
    for path in real_folder.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    tokenizer = oracle.fast_tokenizer(real_folder, CHARSMAP)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    return library.SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module")
def ours(real_folder: Path) -> SentenceTransformer:
    return SentenceTransformer(real_folder, device="cpu")


def assert_alike(found: Any, expected: Any) -> None:
    """The same type, shape, dtype and, to the bound of exactness, values."""
    assert type(found) is type(expected)
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for left, right in zip(found, expected, strict=True):
            assert_alike(left, right)
        return
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if found.size if isinstance(found, np.ndarray) else found.numel():
        assert abs(found - expected).max() < UNIT_VECTOR_FLOAT32


INPUTS: dict[str, Callable[[], Any]] = {
    "str": lambda: TEXTS[0],
    "list": lambda: TEXTS,
    "one": lambda: TEXTS[:1],
    "tuple": lambda: tuple(TEXTS[:3]),
    "array": lambda: np.array(TEXTS[:3]),
    "empty": list,
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
        {"convert_to_tensor": True, "convert_to_numpy": False},
    ],
    ids=["default", "tensor", "list", "tensor-only"],
)
def test_types_shapes_and_values(
    ours: SentenceTransformer, theirs: Any, kind: str, options: dict[str, Any]
) -> None:
    texts = INPUTS[kind]()
    assert_alike(ours.encode(texts, **options), theirs.encode(texts, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_name": "query"},
        {"prompt_name": "passage"},
        {"prompt": "passage: "},
        {"prompt": "Instruct: find it\nQuery: "},
        {"prompt": ""},
        {"normalize_embeddings": True},
        {"batch_size": 2, "show_progress_bar": False},
    ],
    ids=str,
)
def test_options(ours: SentenceTransformer, theirs: Any, options: dict[str, Any]) -> None:
    assert_alike(ours.encode(TEXTS[:9], **options), theirs.encode(TEXTS[:9], **options))


def test_prompts_change_the_vector(ours: SentenceTransformer) -> None:
    plain, query = ours.encode(TEXTS[0]), ours.encode(TEXTS[0], prompt_name="query")
    assert np.abs(plain - query).max() > 1e-3
    np.testing.assert_array_equal(query, ours.encode("query: " + TEXTS[0]))


def test_queries_and_documents(ours: SentenceTransformer, theirs: Any, real_model: E5) -> None:
    assert_alike(ours.encode_query(TEXTS[:9]), theirs.encode_query(TEXTS[:9]))
    # The library does not know that a document is what this folder calls a passage.
    document = theirs.encode_document(TEXTS[:9], prompt_name="passage")
    assert_alike(ours.encode_document(TEXTS[:9]), document)
    np.testing.assert_array_equal(
        ours.encode_document(TEXTS[0]), real_model.encode(TEXTS[0], input_type="passage")
    )
    prompt = {"prompt": "query: "}
    assert_alike(
        ours.encode_document(TEXTS[0], **prompt), theirs.encode_document(TEXTS[0], **prompt)
    )


def test_lengths(ours: SentenceTransformer, theirs: Any) -> None:
    assert ours.max_seq_length == theirs.max_seq_length == 512
    assert ours.get_embedding_dimension() == theirs.get_embedding_dimension() == 384
    assert ours.get_sentence_embedding_dimension() == 384
    texts = [text_of_length(ours.tokenizer, tokens) for tokens in (511, 512, 513, 600)]
    assert_alike(ours.encode(texts), theirs.encode(texts))
    try:
        ours.max_seq_length = theirs.max_seq_length = 16
        assert_alike(ours.encode(TEXTS), theirs.encode(TEXTS))
    finally:
        ours.max_seq_length = theirs.max_seq_length = 512
    with pytest.raises(ValueError, match="max_seq_length is 513, this model takes 3 to 512"):
        ours.max_seq_length = 513


def test_similarity(ours: SentenceTransformer, theirs: Any) -> None:
    vectors = ours.encode(TEXTS[:5])
    for left, right in [
        (vectors, vectors[:2]),
        (vectors[0], vectors),
        (vectors[0], vectors[1]),
        (torch.from_numpy(vectors), 3 * vectors),
        (list(torch.from_numpy(vectors)), list(vectors)),
    ]:
        found, expected = ours.similarity(left, right), theirs.similarity(left, right)
        assert_alike(found, expected)


def test_without_the_step_normalize(tiny_folder: Path, ours: SentenceTransformer) -> None:
    """A folder's modules.json says whether vectors have unit length; without it they do not."""
    raw = SentenceTransformer(tiny_folder).encode(["a text"])
    expected = E5.from_pretrained(tiny_folder).encode(["a text"], input_type=None, normalize=False)
    np.testing.assert_array_equal(raw, expected)
    assert abs(np.linalg.norm(raw) - 1) > 0.1
    unit = SentenceTransformer(tiny_folder).encode(["a text"], normalize_embeddings=True)
    assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-6)
    assert np.linalg.norm(ours.encode("a text")) == pytest.approx(1, abs=1e-6)


def test_prompts_of_ones_own(tiny_folder: Path) -> None:
    model = SentenceTransformer(
        tiny_folder, prompts={"title": "title: "}, default_prompt_name="title"
    )
    plain = E5.from_pretrained(tiny_folder)
    expected = plain.encode("title: a", input_type=None, normalize=False)
    np.testing.assert_array_equal(model.encode("a"), expected)
    np.testing.assert_array_equal(model.encode("a", "title"), expected)
    query = plain.encode_query("a", normalize=False)
    np.testing.assert_array_equal(model.encode("a", prompt_name="query"), query)
    assert set(model.prompts) == {"query", "document", "passage", "title"}


def test_prompts_that_are_not_there(tiny_folder: Path) -> None:
    message = r"no prompt named 'titel', the names are \['document', 'passage', 'query'\]; pass"
    with pytest.raises(ValueError, match=message):
        SentenceTransformer(tiny_folder).encode("a", prompt_name="titel")
    with pytest.raises(ValueError, match=message):
        SentenceTransformer(tiny_folder, default_prompt_name="titel")


def test_a_folder_that_says_no_prompts(tiny_folder: Path) -> None:
    """The library embeds its queries without one, silently."""
    (tiny_folder / "config_sentence_transformers.json").unlink()
    model = SentenceTransformer(tiny_folder)
    with pytest.raises(ValueError, match="no prompt named 'query'"):
        model.encode_query("a")
    assert model.encode("a").shape == (24,)


def test_an_instruction_is_asked_for(tiny_folder: Path) -> None:
    path = tiny_folder / "config_sentence_transformers.json"
    prompts = {"query": "Instruct: {task}\nQuery: ", "passage": ""}
    write_json(path, read_json_object(path) | {"prompts": prompts})
    model = SentenceTransformer(tiny_folder)
    with pytest.raises(ValueError, match="the prompt 'query' starts with an instruction; pass it"):
        model.encode_query("a")
    expected = model.model.encode_query("a", task="find", normalize=False)
    found = model.encode_query("a", prompt="Instruct: find\nQuery: ")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (["a"], {"batch_size": 0}, ValueError, "batch_size is 0, expected 1 or more"),
        ([["a", 3]], {"prompt": "x: "}, TypeError, "text 1 is 3 of type int"),
        (["a"], {"precision": "int8"}, TypeError, "precision"),
    ],
)
def test_bad_arguments(
    tiny_folder: Path, arguments: list[Any], options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        SentenceTransformer(tiny_folder).encode(*arguments, **options)


def test_a_loaded_model_and_options_of_loading(tiny_folder: Path) -> None:
    model = SentenceTransformer(tiny_folder, model_kwargs={"kernels": "plain", "dtype": "float64"})
    assert model.model.encoder.kernels.name == "plain"
    assert model.model.encoder.dtype == torch.float64
    loaded = E5.from_pretrained(tiny_folder)
    same = SentenceTransformer(loaded)
    assert same.model is loaded
    assert str(same.device) == "cpu"
    np.testing.assert_array_equal(same.encode_query("a"), loaded.encode_query("a"))


def test_batch_size_bounds_the_tokens_of_a_pass(tiny_folder: Path) -> None:
    model = SentenceTransformer(tiny_folder)
    sizes = []
    model.model.encoder.register_forward_hook(
        lambda module, arguments, output: sizes.append(len(arguments[0].input_ids))
    )
    text = text_of_length(model.tokenizer, 64)
    model.encode([text] * 6, batch_size=2)
    assert sizes == [128] * 3
