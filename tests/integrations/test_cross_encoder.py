"""The interface of CrossEncoder beside the library itself, on tiny models of both dialects."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from support.models import CHARSMAP, write_tiny_reranker

from e5core import E5, Reranker
from e5core.formats.files import read_json_object, write_json
from e5core.integrations.sentence_transformers import CrossEncoder

QUERY = "the query"
# Several over the limit of 64 tokens, by the query, by the passage and by both.
LONG = "a b c é " * 40
PASSAGES = ["a passage", "日本 é ß", "", LONG, "the " * 70, "z y x"]
PAIRS = [*((QUERY, passage) for passage in PASSAGES), (LONG, "short"), (LONG, LONG), ("", "")]

# Logits lie tens apart, the sums of the two libraries' products some 1e-5 of that.
CLOSE = 2e-3


@pytest.fixture
def folder(tmp_path: Path, dialect: str, oracle: ModuleType) -> Path:
    """A folder that both libraries load."""
    folder = write_tiny_reranker(tmp_path / "reranker", dialect)
    tokenizer = oracle.fast_tokenizer(folder, CHARSMAP)
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def theirs() -> Callable[..., Any]:
    library = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    return lambda folder, **options: library.CrossEncoder(str(folder), device="cpu", **options)


def assert_alike(found: Any, expected: Any, bound: float = CLOSE) -> None:
    """The same type, shape, dtype and, within rounding, values."""
    assert type(found) is type(expected)
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for left, right in zip(found, expected, strict=True):
            assert_alike(left, right, bound)
        return
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=bound, rtol=0)


INPUTS: dict[str, Any] = {
    "pairs": PAIRS,
    "lists": [list(pair) for pair in PAIRS[:3]],
    "one pair": PAIRS[0],
    "one list": list(PAIRS[0]),
    "pairs of one": PAIRS[:1],
    "array": np.array(PAIRS[:3]),
    "array of one pair": np.array(PAIRS[0]),
    "empty": [],
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"convert_to_tensor": True},
    {"convert_to_numpy": False},
    {"activation_fn": torch.nn.Identity()},
    {"activation_fn": torch.tanh, "convert_to_tensor": True},
    {"apply_softmax": True, "batch_size": 2, "show_progress_bar": False},
]


def test_predict(folder: Path, theirs: Callable[..., Any]) -> None:
    """Types, shapes and values for all inputs and options."""
    ours, library = CrossEncoder(folder), theirs(folder)
    for inputs in INPUTS.values():
        for options in OPTIONS:
            assert_alike(ours.predict(inputs, **options), library.predict(inputs, **options))
    logits = ours.predict(PAIRS, activation_fn=torch.nn.Identity())
    assert np.ptp(logits) > 1
    np.testing.assert_array_equal(logits, ours.model.score_pairs(PAIRS, truncate="longest"))


def test_rank(folder: Path, theirs: Callable[..., Any]) -> None:
    ours, library = CrossEncoder(folder), theirs(folder)
    for options in (
        {"activation_fn": torch.nn.Identity()},
        {"activation_fn": torch.nn.Identity(), "top_k": 2, "return_documents": True},
        {"activation_fn": torch.neg, "return_documents": True},
        {"activation_fn": torch.nn.Identity(), "batch_size": 2},
    ):
        found = ours.rank(QUERY, PASSAGES, **options)
        expected = library.rank(QUERY, PASSAGES, **options)
        assert [list(one) for one in found] == [list(one) for one in expected]
        for left, right in zip(found, expected, strict=True):
            assert left["score"] == pytest.approx(right["score"], abs=CLOSE)
            assert type(left["score"]) is type(right["score"])
            assert {**left, "score": 0} == {**right, "score": 0}
    assert ours.rank(QUERY, []) == library.rank(QUERY, []) == []


def test_scores_that_tie_are_ordered_by_their_logits(folder: Path) -> None:
    ours = CrossEncoder(folder)
    with torch.no_grad():
        ours.model.head.output.bias.add_(1000)
    ours.model.head.prepare(ours.model.encoder.kernels)
    ranked = ours.rank(QUERY, PASSAGES)
    assert {one["score"] for one in ranked} == {1.0}
    expected = ours.model.rank(QUERY, PASSAGES, truncate="longest").indices.tolist()
    assert [one["corpus_id"] for one in ranked] == expected


IDENTITY = "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("config_sentence_transformers.json", {"activation_fn": IDENTITY}),
        ("config.json", {"sentence_transformers": {"activation_fn": IDENTITY}}),
        ("config.json", {"sbert_ce_default_activation_function": IDENTITY}),
    ],
    ids=["6", "4", "before"],
)
def test_the_folder_names_the_activation(
    folder: Path, theirs: Callable[..., Any], file: str, settings: dict[str, Any]
) -> None:
    """As mmarco-mMiniLMv2-L12-H384-v1 does, in the ways of three generations."""
    if file != "config.json":  # the library reads it beside its list of modules alone
        theirs(folder).save_pretrained(str(folder))
        before = read_json_object(folder / file)["activation_fn"]
        assert before.endswith("Sigmoid")
        assert_alike(CrossEncoder(folder).predict(PAIRS), theirs(folder).predict(PAIRS))
    path = folder / file
    write_json(path, {**read_json_object(path), **settings})
    ours = CrossEncoder(folder)
    logits = ours.model.score_pairs(PAIRS, truncate="longest")
    assert_alike(ours.predict(PAIRS), logits, 0)
    assert_alike(theirs(folder).predict(PAIRS), logits)
    sigmoid = CrossEncoder(folder, activation_fn=torch.nn.Sigmoid()).predict(PAIRS)
    assert_alike(sigmoid, theirs(folder, activation_fn=torch.nn.Sigmoid()).predict(PAIRS))


@pytest.mark.parametrize("named", ["torch.nn.modules.activation.GELU", "my.module.Sigmoid", "x"])
def test_an_activation_that_is_not_known(folder: Path, named: str) -> None:
    write_json(folder / "config_sentence_transformers.json", {"activation_fn": named})
    with pytest.raises(ValueError, match=f"'{named}', expected one of.*; pass activation_fn="):
        CrossEncoder(folder)
    assert CrossEncoder(folder, activation_fn=torch.nn.Identity()).predict([]).shape == (0,)


def test_max_length(folder: Path, theirs: Callable[..., Any]) -> None:
    ours, library = CrossEncoder(folder, max_length=20), theirs(folder, max_length=20)
    assert ours.max_seq_length == library.max_seq_length == 20
    assert_alike(ours.predict(PAIRS), library.predict(PAIRS))
    ours.max_seq_length = 64
    assert ours.max_length == ours.model.max_length == 64
    with pytest.raises(ValueError, match="max_seq_length is 65, this model takes 6 to 64"):
        ours.max_seq_length = 65


def test_a_loaded_model_and_options_of_loading(folder: Path) -> None:
    model = CrossEncoder(folder, model_kwargs={"kernels": "plain", "dtype": "float64"})
    assert model.model.encoder.kernels.name == "plain"
    assert model.model.encoder.dtype == torch.float64
    loaded = Reranker.from_pretrained(folder)
    same = CrossEncoder(loaded, device=None)
    assert (same.model, str(same.device), same.num_labels) == (loaded, "cpu", 1)
    expected = loaded.score_pairs(PAIRS[:2], truncate="longest", normalize=True)
    assert_alike(same.predict(PAIRS[:2]), expected, 1e-6)
    with pytest.raises(TypeError, match="loaded already, dtype cannot change it"):
        CrossEncoder(loaded, model_kwargs={"dtype": "bfloat16"})


def test_an_embedding_model_is_refused(folder: Path, make_tiny: Callable[..., Path]) -> None:
    embedder = make_tiny()
    with pytest.raises(ValueError, match=r"no classification head.*E5.from_pretrained"):
        CrossEncoder(embedder)
    with pytest.raises(TypeError, match="of type E5, expected a folder, a hub id or a loaded Rer"):
        CrossEncoder(E5.from_pretrained(embedder))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.predict(PAIRS, batch_size=0), ValueError, "batch_size is 0, expected 1 or"),
        (lambda m: m.predict("text"), TypeError, "inputs is one str, expected several"),
        (lambda m: m.predict(None), TypeError, "inputs is a NoneType, expected a str or several"),
        (lambda m: m.predict([("a", None)]), TypeError, "passage 0 is None of type NoneType"),
        (lambda m: m.predict([("a", "b", "c")]), TypeError, r"pair 0 is .*, expected \(query, pas"),
        (lambda m: m.predict({"a": "b"}), TypeError, "inputs is a dict with"),
        (lambda m: m.predict(PAIRS, prompt="p: "), TypeError, "no prompt='p: '; .* before the que"),
        (lambda m: m.predict(PAIRS, pool={}), TypeError, "takes no pool={}; one process uses all"),
        (lambda m: m.predict(PAIRS, nonsense=1), TypeError, "CrossEncoder takes no nonsense=1"),
        (lambda m: m.predict(PAIRS, device="meta"), TypeError, r"with CrossEncoder\(.*device="),
        (lambda m: m.rank(QUERY, "text"), TypeError, "documents is one str, expected several"),
        (lambda m: m.rank(None, ["a"]), TypeError, "query 0 is None of type NoneType"),
        (lambda m: m.rank(QUERY, ["a", 3]), TypeError, "passage 1 is 3 of type int"),
        (lambda m: m.fit([]), TypeError, "e5core's CrossEncoder has no fit; use e5core.train"),
        (lambda m: m.save_pretrained("x"), TypeError, "CrossEncoder has no save_pretrained"),
        (lambda m: m.train(), TypeError, "CrossEncoder has no fit"),
        (lambda m: m.encode(["a"]), AttributeError, "CrossEncoder has no attribute 'encode'"),
        (lambda m: CrossEncoder(m.model, num_labels=3), TypeError, "num_labels=3; a reranker has"),
        (lambda m: CrossEncoder(m.model, backend="onnx"), TypeError, "takes no backend='onnx'"),
        (lambda m: CrossEncoder(m.model, prompts={"q": "x"}), TypeError, "takes no prompts="),
    ],
)
def test_what_cannot_be_done(
    tmp_path: Path, call: Callable[[CrossEncoder], Any], error: type[Exception], message: str
) -> None:
    model = CrossEncoder(write_tiny_reranker(tmp_path / "reranker", "bert"))
    with pytest.raises(error, match=message):
        call(model)


def test_what_asks_for_nothing_is_taken(tmp_path: Path) -> None:
    model = CrossEncoder(
        write_tiny_reranker(tmp_path / "reranker", "bert"),
        num_labels=1,
        prompts=None,
        backend="torch",
        trust_remote_code=False,
        keep_in_fp32_modules=None,
    )
    expected = model.predict(PAIRS[:2])
    assert model.eval().to("cpu").cpu() is model
    assert_alike(model.predict(sentences=PAIRS[:2], pool=None, chunk_size=None), expected, 0)
    assert_alike(model.predict(iter(PAIRS[:2]), prompt=None), expected, 0)


def test_batch_size_bounds_the_tokens_of_a_pass(tmp_path: Path) -> None:
    model = CrossEncoder(write_tiny_reranker(tmp_path / "reranker", "bert"))
    sizes = []
    model.model.encoder.register_forward_hook(
        lambda module, arguments, output: sizes.append(len(arguments[0].input_ids))
    )
    model.predict([(QUERY, LONG)] * 6, batch_size=2)
    assert sizes == [128] * 3
