"""Every adapter takes texts in an order, and names the column where it is given a table."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e5core import E5
from e5core.integrations.sentence_transformers import SentenceTransformer

TEXTS = ["one", "two"]
TABLE = {"title": TEXTS, "body": TEXTS}


def langchain(folder: Path) -> Callable[[Any], Any]:
    return import_module("e5core.integrations.langchain").E5Embeddings(folder).embed_documents


def llama_index(folder: Path) -> Callable[[Any], Any]:
    module = import_module("e5core.integrations.llama_index")
    return module.E5Embedding(folder).get_text_embedding_batch


def sklearn(folder: Path) -> Callable[[Any], Any]:
    module = import_module("e5core.integrations.sklearn")
    return module.E5Transformer(folder, input_type="passage").fit_transform


def sentence_transformers(folder: Path) -> Callable[[Any], Any]:
    model = SentenceTransformer(folder)
    return lambda texts: model.encode_document(texts, normalize_embeddings=True)


def mteb(folder: Path) -> Callable[[Any], Any]:
    module = import_module("e5core.integrations.mteb")
    encoder, kind = module.E5Encoder(folder), module.PromptType.document
    rest = {"task_metadata": None, "hf_split": "", "hf_subset": "", "prompt_type": kind}
    return lambda texts: encoder.encode([{"text": texts}], **rest)


ADAPTERS = {
    "langchain": langchain,
    "llama_index": llama_index,
    "sklearn": sklearn,
    "sentence_transformers": sentence_transformers,
    "mteb": mteb,
}
LIBRARIES = {"langchain": "langchain_core", "llama_index": "llama_index.core"}


@pytest.fixture(params=ADAPTERS)
def encode(request: pytest.FixtureRequest, make_tiny: Callable[..., Path]) -> Callable[[Any], Any]:
    name = request.param
    if name != "sentence_transformers":
        pytest.importorskip(LIBRARIES.get(name, name), reason=f"{name} is not installed")
    return ADAPTERS[name](make_tiny())


def test_texts_in_an_order(encode: Callable[[Any], Any], make_tiny: Callable[..., Path]) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    expected = E5.from_pretrained(make_tiny(name="again")).encode_passage(TEXTS)
    series = pandas.Series(TEXTS, index=[7, 9])
    for texts in (TEXTS, tuple(TEXTS), series, np.array(TEXTS), dict(enumerate(TEXTS)).values()):
        np.testing.assert_array_equal(np.array(encode(texts), np.float32), expected)


def test_scikit_learn_reads_texts_twice(make_tiny: Callable[..., Path]) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    with pytest.raises(ValueError, match="X is a generator, which can be read only once"):
        sklearn(make_tiny())(text for text in TEXTS)


def test_tables_name_the_column(encode: Callable[[Any], Any]) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    polars = pytest.importorskip("polars", reason="polars is not installed")
    for table in (TABLE, pandas.DataFrame(TABLE), polars.DataFrame(TABLE)):
        with pytest.raises(
            (TypeError, ValueError), match=r"""pass \w+(\["text"\])?\[['"]\w+['"]"""
        ):
            encode(table)
    with pytest.raises((TypeError, ValueError), match="set, whose order is chance"):
        encode({"a", "b"})


def test_a_place_without_a_text(encode: Callable[[Any], Any]) -> None:
    for item in (None, float("nan"), 7, b"x"):
        with pytest.raises((TypeError, ValueError), match=r"1 is .*|NoneType|float|int|bytes"):
            encode(["a", item])


def test_one_and_several_are_told_apart(make_tiny: Callable[..., Path]) -> None:
    pytest.importorskip("langchain_core", reason="langchain-core is not installed")
    embeddings = import_module("e5core.integrations.langchain").E5Embeddings(make_tiny())
    with pytest.raises(TypeError, match=r"one str, expected several texts; pass \[text\]"):
        embeddings.embed_documents("a text")
    with pytest.raises(TypeError, match=r"text is .* of type list, expected one str"):
        embeddings.embed_query(["a text"])


def test_a_cache_tells_models_apart(make_tiny: Callable[..., Path]) -> None:
    pytest.importorskip("langchain_core", reason="langchain-core is not installed")
    embeddings = import_module("e5core.integrations.langchain").E5Embeddings
    folder = make_tiny()
    assert embeddings(folder).model_name == str(folder)
    loaded = E5.from_pretrained(folder)
    assert embeddings(loaded, model_name="mine").model_name == "mine"
    assert not hasattr(embeddings(loaded), "model_name")


def test_a_mapping_as_prompts_of_the_transformer(make_tiny: Callable[..., Path]) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from sklearn.base import clone

    transformer = import_module("e5core.integrations.sklearn").E5Transformer
    prompts = {"query": "q: ", "passage": "p: "}
    ours = clone(transformer(str(make_tiny()), prompts=prompts, input_type="passage"))
    expected = E5.from_pretrained(make_tiny(name="again"), prompts=prompts).encode_passage(TEXTS)
    np.testing.assert_array_equal(ours.fit_transform(TEXTS), expected)


@pytest.mark.parametrize("name", ["langchain", "llama_index", "mteb", "sklearn", "ray"])
def test_an_integration_without_its_extra_names_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = {"ray": "pyarrow", "langchain": "langchain_core"}.get(name, name)
    module = f"e5core.integrations.{name}"
    import sys

    for loaded in [key for key in sys.modules if key == module or key.startswith(library)]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, library, None)  # as if it was not installed
    extra = name.replace("_", "-")
    with pytest.raises(ImportError, match=rf"{module} needs .*; pip install 'e5core\[{extra}\]'"):
        import_module(module)


# --- what code calls on a SentenceTransformer ------------------------------------------------


@pytest.fixture
def model(make_tiny: Callable[..., Path]) -> SentenceTransformer:
    return SentenceTransformer(make_tiny())


def test_calls_that_change_nothing_are_done(model: SentenceTransformer) -> None:
    assert model.to("cpu") is model.to() is model.eval() is model.train(False) is model.cpu()
    plain = model.encode(["a"])
    options = {"precision": "float32", "output_value": "sentence_embedding", "device": "cpu"}
    np.testing.assert_array_equal(model.encode(["a"], pool=None, **options), plain)
    assert model.similarity_fn_name == "cosine"


def test_pairwise_similarity(model: SentenceTransformer) -> None:
    left, right = model.encode(["a", "b c"]), model.encode(["b", "c d"])
    expected = model.similarity(left, right).diagonal()
    np.testing.assert_allclose(model.similarity_pairwise(left, right), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"pairs need as many rows in both"):
        model.similarity_pairwise(left, right[:1])


def test_tokenize(model: SentenceTransformer) -> None:
    found = model.tokenize(["a", "the query passage"])
    lengths = [model.tokenizer.count(text) for text in ("a", "the query passage")]
    assert found["attention_mask"].sum(1).tolist() == lengths
    assert found["input_ids"].shape == (2, max(lengths))
    assert found["input_ids"][0, lengths[0] :].tolist() == [1] * (max(lengths) - lengths[0])


@pytest.mark.parametrize(
    ("call", "way"),
    [
        (lambda model: model.encode_multi_process(["a"], None), "embed_files"),
        (lambda model: model.start_multi_process_pool(), "workers=N"),
        (lambda model: model.encode(["a"], device=["cuda:0", "cuda:1"]), "workers=N"),
        (lambda model: model.encode(["a"], device="cuda"), "load it there"),
        (lambda model: model.to("cuda"), "load it there"),
        (lambda model: model.cuda(), "load it there"),
        (lambda model: model.half(), "dtype"),
        (lambda model: model.train(), "e5core train"),
        (lambda model: model.fit([]), "e5core train"),
        (lambda model: model.save("x"), "save_checkpoint"),
        (lambda model: model.encode(["a"], precision="binary"), "quantize_vectors"),
        (lambda model: model.encode(["a"], output_value="token_embeddings"), "encoder"),
        (lambda model: model.encode(["a"], nonsense=1), "takes no nonsense=1"),
        (lambda model: SentenceTransformer("x", backend="onnx"), "kernels"),
        (lambda model: SentenceTransformer("x", device=["cuda:0"]), "workers=N"),
        (lambda model: SentenceTransformer("x", trust_remote_code=True), "leave it out"),
    ],
)
def test_calls_that_are_not_done_name_the_way(
    model: SentenceTransformer, call: Callable[[Any], Any], way: str
) -> None:
    with pytest.raises(TypeError, match=way):
        call(model)


def test_attributes_that_nobody_has(model: SentenceTransformer) -> None:
    assert not hasattr(model, "nonsense")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = model.nonsense


def test_a_surrogate_is_placed_in_the_text(model: SentenceTransformer) -> None:
    with pytest.raises(ValueError, match=r"text 1: .* at character 1,"):
        model.encode(["a", "b\ud800"], prompt="a long prompt: ")


@pytest.mark.parametrize("kind", ["numpy", "pandas"])
def test_batch_formats_of_ray(make_tiny: Callable[..., Path], kind: str) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    embedder = import_module("e5core.integrations.ray").Embedder(make_tiny(), input_type="query")
    expected = embedder.model.encode_query(TEXTS)
    rows: Any = {"text": np.array(TEXTS, dtype=object), "n": np.arange(2)}
    if kind == "pandas":
        rows = pytest.importorskip("pandas", reason="pandas is not installed").DataFrame(rows)
    found = embedder(rows)
    assert list(found) == ["text", "n", "vector"]
    assert list(rows) == ["text", "n"]
    np.testing.assert_array_equal(np.stack(list(found["vector"])), expected)
    with pytest.raises(ValueError, match="a column 'vector' already"):
        embedder(found)
    with pytest.raises(ValueError, match="no column 'text'"):
        embedder({"body": rows["text"]})


def test_the_size_of_vectors_is_an_attribute_that_can_be_set(make_tiny: Any) -> None:
    """As on the library's models; what it cannot be is refused wherever it is said."""
    folder = make_tiny()
    model = SentenceTransformer(folder)
    assert model.truncate_dim is None
    model.truncate_dim = 8
    assert model.get_embedding_dimension() == 8
    assert model.encode(["a text", "another"]).shape == (2, 8)
    model.truncate_dim = None
    assert model.encode("a text").shape == (24,)
    for size in (0, 25, "8"):
        with pytest.raises(ValueError, match=rf"truncate_dim is {size!r}, .*pass 1 to 24"):
            model.truncate_dim = size  # type: ignore[assignment]
        with pytest.raises(ValueError, match=rf"truncate_dim is {size!r}, .*pass 1 to 24"):
            SentenceTransformer(folder, truncate_dim=size)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=rf"truncate_dim is {size!r}, .*pass 1 to 24"):
            model.encode("a text", truncate_dim=size)  # type: ignore[arg-type]
