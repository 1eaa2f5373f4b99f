"""Pairs as a cross-encoder reads them: laid out, checked, and cut by each rule to the token."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e5core.texts.errors import PairError
from e5core.texts.pairs import check_pair, cut_longest_first, fit_pair, join_pair, pair_with

QUERY, PASSAGE = range(100, 100 + 600), range(1000, 1000 + 9000)
# As often small as not: the corners lie there.
lengths = st.integers(0, 20) | st.integers(0, 600)
limits = st.integers(6, 20) | st.integers(6, 600)


def cut_like_flag_embedding(query: int, passage: int, max_length: int) -> tuple[int, int]:
    """FlagEmbedding's BaseReranker: query to 3/4 of the limit, then prepare_for_model with
    truncation="only_second"."""
    query = min(query, max_length * 3 // 4)
    return query, min(passage, max_length - 4 - query)


def cut_one_by_one(query: int, passage: int, room: int) -> tuple[int, int]:
    """The lengths that are left when the longer text loses one token after another.

    What the rule is named after. Of two equal ones the fast tokenizers cut the one that was the
    shorter; of two that were equal from the start, the query.
    """
    query_is_longer = query > passage
    while query + passage > room:
        if query > passage or (query == passage and not query_is_longer):
            query -= 1
        else:
            passage -= 1
    return query, passage


def test_the_layout() -> None:
    assert join_pair([7, 8], [9]) == [0, 7, 8, 2, 2, 9, 2]
    assert join_pair([], []) == [0, 2, 2, 2]


@given(lengths, lengths, limits)
def test_longest_first_is_as_if_cut_one_by_one(query: int, passage: int, room: int) -> None:
    assert cut_longest_first(query, passage, room) == cut_one_by_one(query, passage, room)


@given(lengths, lengths, limits)
def test_the_passage_rule_is_flag_embeddings(query: int, passage: int, max_length: int) -> None:
    arguments = (QUERY[:query], PASSAGE[:passage], max_length, "passage", 3)
    most = min(max_length * 3 // 4, max_length - 4)
    if query + passage + 4 > max_length and query > most:
        with pytest.raises(PairError) as caught:
            fit_pair(*arguments)
        assert caught.value.indices == (3,)
        assert f"pair 3 has a query of {query} tokens" in str(caught.value)
        assert f"leaves {most} to the query" in str(caught.value)
        assert 'truncate="longest" (--truncate longest)' in str(caught.value)
        return
    kept_query, kept_passage = cut_like_flag_embedding(query, passage, max_length)
    if query + passage + 4 <= max_length:
        kept_query, kept_passage = query, passage
    assert kept_query == query  # it is never cut
    assert fit_pair(*arguments) == join_pair(QUERY[:query], PASSAGE[:kept_passage])


@given(lengths, lengths, limits, st.sampled_from(["passage", "longest", "none"]))
def test_no_rule_passes_the_limit_and_none_cuts_what_fits(
    query: int, passage: int, max_length: int, truncate: str
) -> None:
    fits = query + passage + 4 <= max_length
    try:
        ids = fit_pair(QUERY[:query], PASSAGE[:passage], max_length, truncate, 0)
    except PairError:
        assert not fits
        return
    assert len(ids) == (query + passage + 4 if fits else max_length)
    assert ids.count(2) == 3
    assert (ids[0], ids[-1]) == (0, 2)


def test_none_names_the_pair_and_the_ways_out() -> None:
    with pytest.raises(PairError) as caught:
        fit_pair(QUERY[:5], PASSAGE[:9000], 8192, "none", 17)
    assert str(caught.value) == (
        "pair 17 has 9009 tokens, the model takes 8192 (four special ones included); pass "
        'truncate="passage" (--truncate passage) or truncate="longest" (--truncate longest)'
    )


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("ab", "pair 4 is 'ab', expected (query, passage)"),
        (["a"], r"pair 4 is \['a'\], expected"),
        (("a", "b", "c"), "pair 4 is"),
        ({"a", "b"}, "pair 4 is"),
        ({"query": "a", "passage": "b"}, "pair 4 is"),
        (None, "pair 4 is None"),
        (("a", None), "passage 4 is None of type NoneType, expected str"),
        ((b"a", "b"), "query 4 is b'a' of type bytes, expected str"),
        (("a", 3.5), "passage 4 is 3.5 of type float"),
    ],
)
def test_what_is_no_pair_is_named(pair: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says.replace("(", r"\(").replace(")", r"\)")):
        check_pair(pair, 4)


def test_pairs_may_be_lists() -> None:
    assert check_pair(["a", "b"], 0) == ("a", "b")


@pytest.mark.parametrize("query", [None, 3, ["a"], b"a"])
def test_a_query_that_is_no_text(query: Any) -> None:
    with pytest.raises(TypeError, match="query"):
        pair_with(query, ["a"])


@pytest.mark.parametrize("passages", ["one", None, 3, {"text": ["a"]}, {"a", "b"}])
def test_passages_that_are_none(passages: Any) -> None:
    with pytest.raises(TypeError, match="passages"):
        pair_with("q", passages)


def test_a_generator_stays_one() -> None:
    pairs = pair_with("q", (text for text in "ab"))
    assert not isinstance(pairs, list)
    assert list(pairs) == [("q", "a"), ("q", "b")]
