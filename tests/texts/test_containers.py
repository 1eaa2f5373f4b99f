"""Containers of texts: those in an order work, and whatever iterates by key names the column."""

from collections import ChainMap, Counter, OrderedDict, UserDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e5core import E5, TextError
from e5core.texts.containers import is_blank, several

TEXTS = ["a text", "another one"]
ROWS = {"title": TEXTS, "body": TEXTS}


@pytest.fixture
def model(make_tiny: Callable[..., Path]) -> E5:
    return E5.from_pretrained(make_tiny())


def of(module: str, make: Callable[[Any], Any]) -> Any:
    return make(pytest.importorskip(module, reason=f"{module} is not installed"))


def array_of_strings() -> Any:
    if not hasattr(np.dtypes, "StringDType"):
        pytest.skip("numpy has strings of its own from 2.0 on")
    return np.array(TEXTS, np.dtypes.StringDType())


ORDERED: dict[str, Callable[[], Any]] = {
    "list": lambda: TEXTS,
    "tuple": lambda: tuple(TEXTS),
    "deque": lambda: deque(TEXTS),
    "generator": lambda: (text for text in TEXTS),
    "iterator": lambda: iter(TEXTS),
    "keys": lambda: dict.fromkeys(TEXTS).keys(),
    "values": lambda: dict(enumerate(TEXTS)).values(),
    "array": lambda: np.array(TEXTS),
    "array of objects": lambda: np.array(TEXTS, dtype=object),
    "array of numpy's strings": array_of_strings,
    "numpy strings": lambda: [np.str_(text) for text in TEXTS],
    "column of an array": lambda: np.array([TEXTS, TEXTS]).T[:, 0],
    "pandas Series": lambda: of("pandas", lambda pd: pd.Series(TEXTS, index=["columns", "x"])),
    "pandas Index": lambda: of("pandas", lambda pd: pd.Index(TEXTS)),
    "pandas Categorical": lambda: of("pandas", lambda pd: pd.Categorical(TEXTS)),
    "pandas strings": lambda: of("pandas", lambda pd: pd.array(TEXTS, dtype="string")),
    "polars Series": lambda: of("polars", lambda pl: pl.Series("x", TEXTS)),
    "arrow array": lambda: of("pyarrow", lambda pa: pa.array(TEXTS)),
    "arrow column": lambda: of("pyarrow", lambda pa: pa.chunked_array([TEXTS[:1], TEXTS[1:]])),
    "datasets column": lambda: of("datasets", lambda d: d.Dataset.from_dict(ROWS)["body"]),
}

NO_TEXTS: dict[str, Callable[[], Any]] = {
    "groups": lambda: of("pandas", lambda pd: pd.DataFrame(ROWS).groupby("title")),
    "rows": lambda: of("pandas", lambda pd: pd.DataFrame(ROWS).itertuples()),
    "items": lambda: ROWS.items(),
    "pairs": lambda: list(zip(TEXTS, TEXTS, strict=True)),
    "several indexes": lambda: of("pandas", lambda pd: pd.MultiIndex.from_arrays([TEXTS, TEXTS])),
    "numbers": lambda: range(3),
    "a place": lambda: Path("a.txt"),
}

KEYED: dict[str, Callable[[], Any]] = {
    "dict": lambda: ROWS,
    "OrderedDict": lambda: OrderedDict(ROWS),
    "UserDict": lambda: UserDict(ROWS),
    "ChainMap": lambda: ChainMap(ROWS),
    "structured array": lambda: np.array([("a", "b")], dtype=[("title", "U1"), ("body", "U1")]),
    "recarray": lambda: np.rec.fromarrays([TEXTS, TEXTS], names="title,body"),
    "pandas DataFrame": lambda: of("pandas", lambda pd: pd.DataFrame(ROWS)),
    "pandas DataFrame of one": lambda: of("pandas", lambda pd: pd.DataFrame({"title": TEXTS})),
    "polars DataFrame": lambda: of("polars", lambda pl: pl.DataFrame(ROWS)),
    "polars LazyFrame": lambda: of("polars", lambda pl: pl.LazyFrame(ROWS).select("title")),
    "arrow table": lambda: of("pyarrow", lambda pa: pa.table(ROWS)),
    "arrow batch": lambda: of("pyarrow", lambda pa: pa.record_batch(ROWS)),
    "datasets Dataset": lambda: of("datasets", lambda d: d.Dataset.from_dict(ROWS)),
    "columns of a Dataset": lambda: of("datasets", lambda d: d.Dataset.from_dict(ROWS)[:]),
    "datasets stream": lambda: of(
        "datasets", lambda d: d.Dataset.from_dict(ROWS).to_iterable_dataset()
    ),
    "datasets splits": lambda: of(
        "datasets", lambda d: d.DatasetDict({"title": d.Dataset.from_dict(ROWS)})
    ),
}


@pytest.mark.parametrize("kind", ORDERED)
def test_texts_in_an_order_are_embedded(model: E5, kind: str) -> None:
    expected = model.encode_passage(TEXTS)
    np.testing.assert_array_equal(model.encode_passage(ORDERED[kind]()), expected)


@pytest.mark.filterwarnings("ignore:Determining .* a LazyFrame")
@pytest.mark.parametrize("kind", KEYED)
def test_what_iterates_by_key_names_the_column(model: E5, kind: str) -> None:
    for call in (model.encode_query, model.encode_passage):
        with pytest.raises(
            TypeError, match=r"texts is a \w+ with .*'title'.*pass texts\['title'\]"
        ):
            call(KEYED[kind]())
    with pytest.raises(TypeError, match=r"pass texts\['title'\]"):
        model.embed(KEYED[kind](), input_type=None, truncate="none")


@pytest.mark.parametrize("texts", [{"a", "b"}, frozenset("ab"), np.array("a"), np.array([["a"]])])
def test_what_has_no_order_or_another_shape(model: E5, texts: Any) -> None:
    with pytest.raises(
        TypeError, match=r"pass (a list, such as sorted|one column, |texts\.tolist)"
    ):
        model.encode_query(texts)


def test_counters_and_bytes() -> None:
    with pytest.raises(TypeError, match="texts is a Counter with the columns or keys 'a'"):
        several(Counter("a"))
    for kind in (bytes, bytearray, memoryview):
        with pytest.raises(TypeError, match=f"texts is a {kind.__name__}"):
            several(kind(b"text"))


@pytest.mark.parametrize(
    "item", [None, float("nan"), 7, 1.5, b"bytes", np.float32(1), np.bytes_(b"x"), ["a"], ("a",)]
)
def test_an_item_that_is_no_text_is_named_with_its_place(model: E5, item: Any) -> None:
    for truncate in ("end", "none", "window"):
        with pytest.raises(TypeError, match=r"text 2 is .* of type \w+, expected str"):
            model.encode_query(["a", "b", item], truncate=truncate)


def test_missing_values_of_tables(model: E5) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    for series in (
        pandas.Series(["a", None], dtype=object),
        pandas.Series(["a", pandas.NA], dtype="string"),
        pandas.DataFrame({"text": ["a", np.nan]})["text"],
    ):
        with pytest.raises(TypeError, match=r"text 1 is .* expected str"):
            model.encode_query(series)


def test_rows_among_texts_name_a_field(model: E5) -> None:
    with pytest.raises(TypeError, match=r"text 0 is .* dict, .*\[row\['title'\] for row in rows\]"):
        model.encode_query([{"title": "a"}])


BLANK = [
    "",
    " ",
    "\t\n",
    "\u00a0",
    "\u3000",
    "\u200b",
    "\ufeff",
    "\u200d\u200c",
    "\u2060",
    "\u00ad",
]
BLANK += ["\u2800", "\u3164", "\ufe0f", "\u034f", "\x00\x1f", " \u200b \u2028", "\U000e0020"]


def test_what_is_blank() -> None:
    assert [text for text in BLANK if not is_blank(text)] == []
    seen = ["a", " . ", "\u200ba", "日", "🇩🇪", "́", "0", "_", "क्‍", "\ufffd", "\ud800"]
    assert [text for text in seen if is_blank(text)] == []
    assert is_blank("\u200b\u3164 " * 1000)
    assert not is_blank("\u200b\u3164 " * 1000 + "a")


def test_blank_texts_are_told_in_the_result(model: E5) -> None:
    texts = ["a", *BLANK, "b"]
    for given in (texts, iter(texts)):
        result = model.embed(given, input_type="passage")
        assert result.blank.dtype == np.bool_
        assert result.blank.tolist() == [False, *[True] * len(BLANK), False]
    assert model.embed("", input_type=None).blank.tolist() == [True]
    assert model.embed([], input_type=None).blank.shape == (0,)


def test_the_place_of_a_lone_surrogate_does_not_count_the_prefix(model: E5) -> None:
    for encode in (model.encode_query, model.encode_passage):
        with pytest.raises(TextError, match=r"text 1: the text holds .* U\+D800 at character 2,"):
            encode(["a", "ab\ud800"])
    with pytest.raises(ValueError, match=r"U\+D800 at character 2,"):
        model.embed("ab\ud800", input_type="query", truncate="none")


@pytest.mark.parametrize("kind", NO_TEXTS)
def test_what_holds_no_texts_is_named(model: E5, kind: str) -> None:
    with pytest.raises(TypeError, match=r"text 0 is .*expected str|^texts is a .*expected"):
        model.encode_passage(NO_TEXTS[kind]())
