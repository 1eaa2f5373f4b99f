"""The scikit-learn transformer: in pipelines, searches and columns, and under its own checks."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from e5core import E5
from e5core.parity.samples import LANGUAGES, QUERIES, SENTENCES, TOPICS, read_column

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

from e5core.integrations.sklearn import E5Transformer, _load


@pytest.fixture
def real(real_folder: Path) -> E5Transformer:
    return E5Transformer(real_folder)


def test_vectors_are_those_of_queries(real: E5Transformer, real_model: E5) -> None:
    vectors = real.fit_transform(SENTENCES[:9])
    np.testing.assert_array_equal(vectors, real_model.encode_query(SENTENCES[:9]))
    passages = clone(real).set_params(input_type="passage").transform(SENTENCES[:9])
    np.testing.assert_array_equal(passages, real_model.encode_passage(SENTENCES[:9]))
    raw = clone(real).set_params(normalize=False).transform(SENTENCES[:2])
    np.testing.assert_array_equal(raw, real_model.encode_query(SENTENCES[:2], normalize=False))


def test_a_classifier_of_topics_reads_other_languages(real: E5Transformer) -> None:
    """Trained on twelve languages, asked in sixteen others."""
    classifier = make_pipeline(real, LogisticRegression(C=100)).fit(SENTENCES, TOPICS)
    assert list(classifier.predict(QUERIES)) == read_column("queries.tsv", "topic")


def test_clusters_are_the_topics(real: E5Transformer, measured) -> None:
    labels = make_pipeline(real, KMeans(16, n_init=10, random_state=0)).fit_predict(SENTENCES)
    agreement = adjusted_rand_score(TOPICS, labels)
    measured(
        f"KMeans of {len(SENTENCES)} sentences: adjusted Rand index with topics {agreement:.3f}"
    )
    assert agreement > 0.5
    assert agreement > adjusted_rand_score(LANGUAGES, labels) + 0.5


def test_a_grid_search_loads_one_model(tiny_folder: Path) -> None:
    _load.cache_clear()
    pipeline = make_pipeline(E5Transformer(tiny_folder), LogisticRegression())
    grid = {"e5transformer__input_type": ["query", "passage"], "logisticregression__C": [1, 10]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(["a b", "b c", "x y", "y z"], [0, 0, 1, 1])
    assert len(search.cv_results_["params"]) == 4
    assert _load.cache_info().misses == 1


def test_columns_of_a_table(tiny_folder: Path) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"title": ["one", "two"], "stars": [1.0, 5.0]}, index=[7, 9])
    columns = ColumnTransformer(
        [("text", E5Transformer(tiny_folder), "title"), ("rest", "passthrough", ["stars"])]
    ).set_output(transform="pandas")
    features = columns.fit_transform(table)
    assert list(features.columns[[0, 23, 24]]) == [
        "text__e5transformer0",
        "text__e5transformer23",
        "rest__stars",
    ]
    expected = E5.from_pretrained(tiny_folder).encode_query(["one", "two"])
    np.testing.assert_array_equal(features.to_numpy()[:, :24], expected)


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda texts: np.array(texts, object)])
def test_kinds_of_x(tiny_folder: Path, kind) -> None:
    vectors = E5Transformer(tiny_folder).fit_transform(kind(["one", "two"]))
    expected = E5.from_pretrained(tiny_folder).encode_query(["one", "two"])
    np.testing.assert_array_equal(vectors, expected)


@pytest.mark.parametrize("method", ["fit", "transform"])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        ("text", r"X is one str, expected several texts; pass \[text\]"),
        (np.array([["a"], ["b"]]), r"X is a ndarray of the shape \(2, 1\), expected one column"),
        (7, r"X is a int of the shape \(\), expected one column"),
    ],
)
def test_what_is_no_column_of_texts(tiny_folder: Path, method: str, x, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(E5Transformer(tiny_folder), method)(x)


def test_a_table_is_refused(tiny_folder: Path) -> None:
    """It iterates over the names of its columns, which would be embedded."""
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match=r"DataFrame of the shape \(1, 2\).*pass X\[\"name\"\]"):
        E5Transformer(tiny_folder).fit(pandas.DataFrame({"title": ["one"], "body": ["two"]}))


def test_a_number_among_texts_is_named(tiny_folder: Path) -> None:
    with pytest.raises(TypeError, match=r"text 1 is 3\.5 of type float, expected str"):
        E5Transformer(tiny_folder).fit_transform(["one", 3.5])


def test_a_pickle_holds_parameters_and_no_weights(tiny_folder: Path) -> None:
    transformer = E5Transformer(str(tiny_folder), truncate="window")
    vectors = transformer.fit_transform(["one"])
    content = pickle.dumps(transformer)
    assert len(content) < 1000
    np.testing.assert_array_equal(pickle.loads(content).transform(["one"]), vectors)


# check_estimator runs one check and skips the rest for what takes no table of numbers; these are
# those of its checks that hand over no data.
CHECKS = (
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
)


@pytest.mark.parametrize("check", CHECKS)
def test_scikit_learns_own_checks(tiny_folder: Path, check: str) -> None:
    getattr(estimator_checks, check)("E5Transformer", E5Transformer(str(tiny_folder)))


def test_check_estimator(tiny_folder: Path) -> None:
    results = estimator_checks.check_estimator(E5Transformer(str(tiny_folder)), on_skip=None)
    assert results
    assert all(result["status"] == "passed" for result in results)
