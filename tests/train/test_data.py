"""What rows are understood, what is refused by file and line, and what a batch holds."""

import gzip
import json

import numpy as np
import pytest
from support.models import write_tiny_model
from support.training import make_rows, read_rows, tiny_task, write_rows

from e5core.train.data import read_data
from e5core.train.links import Links, places_of
from e5core.train.mining import mine
from e5core.train.plan import Plan
from e5core.train.rows import read_row


def words(text, role):
    """A tokenizer of tests: the code points, and one more for the role."""
    return [0, {"query": 1, "passage": 2}[role], *map(ord, text)], 0


def read(*files, **options):
    return read_data([str(file) for file in files], words, **options)


@pytest.mark.parametrize(
    "fields",
    [
        {"query": "q", "pos": ["p"], "neg": ["n", "m"], "other": 3},
        {"query": "q", "pos": "p", "neg": ["n", "m"]},
        {"anchor": "q", "positive": "p", "negative_1": "n", "negative_2": "m"},
        {"anchor": "q", "positive": "p", "negative": ["n", "m"]},
        {
            "query": "q",
            "positive_passages": [{"docid": "1", "text": "p"}],
            "negative_passages": [{"text": "n", "title": ""}, {"text": "m"}],
        },
    ],
)
def test_names_of_others_are_understood(fields):
    row = read_row(fields)
    assert (row.query, row.positives, row.negatives) == ("q", ["p"], ["n", "m"])


def test_fields_that_are_not_read_are_told(tmp_path):
    """A field that is spelled wrong would otherwise be left out without a word."""
    row = {"query": "q", "pos": ["p"], "negs": ["n"], "negative_1": "m", "pos_scores": [1]}
    file = write_rows(tmp_path / "rows.jsonl", [row | {"neg_scores": [2]}, row | {"id": 3}])
    data = read(file)
    assert data.unread == {"negs", "id"}
    assert len(data.examples[0].negatives) == 1


def test_a_title_stands_before_its_text():
    row = read_row({"query": "q", "positive_passages": [{"title": "T", "text": "body"}]})
    assert row.positives == ["T body"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"pos": ["p"]}, "there is no query; its field is query or anchor"),
        ({"query": "q"}, "there is no positive"),
        ({"query": "q", "pos": []}, "there is no positive"),
        ({"query": "q", "pos": [" \u200b"]}, "pos holds an empty text"),
        ({"query": "", "pos": ["p"]}, "query holds an empty text"),
        ({"query": 3, "pos": ["p"]}, "query is 3 of type int"),
        ({"query": "q", "pos": ["p\ud800"]}, "pos: it holds the lone surrogate U+D800"),
        ({"query": "q", "pos": ["p"], "neg": [None]}, "neg is None"),
        ({"query": "q", "pos": ["p"], "pos_scores": [1, 2]}, "2 scores for 1 texts"),
        ({"query": "q", "pos": ["p"], "pos_scores": [float("nan")]}, "finite numbers"),
        ({"query": "q", "pos": ["p"], "pos_scores": ["high"]}, "'high'"),
    ],
)
def test_faults_name_file_and_line(tmp_path, fields, reason):
    file = write_rows(tmp_path / "rows.jsonl", [{"query": "q", "pos": ["p"]}, fields])
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2: ") as error:
        read(file)
    assert reason in str(error.value)
    with pytest.raises(ValueError, match="line 2: ") as of_mining:  # before it has begun
        mine("no-model", file, tmp_path / "mined.jsonl")
    assert str(of_mining.value) == str(error.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"query": "q", "pos": ["p"]}\n{"query": \n', "line 2: the line is not JSON"),
        ('["q", "p"]', "line 1: the element is a JSON str"),
        ("3\n", "line 1: the line is a JSON int, expected an object"),
        ("", "hold no rows"),
    ],
)
def test_files_that_hold_no_rows(tmp_path, content, reason):
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(ValueError, match=reason):
        read(tmp_path / "rows.jsonl")


def test_lines_and_csv_are_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("query,pos\na,b\n")
    with pytest.raises(ValueError, match=r"is read as csv, expected \.jsonl"):
        read(tmp_path / "rows.csv")


def test_gz_arrays_and_parquet_hold_the_same_rows(tmp_path):
    rows = make_rows(5, scores=True)
    plain = read(write_rows(tmp_path / "rows.jsonl", rows))
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    files = [tmp_path / "rows.jsonl.gz", tmp_path / "rows.json"]
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for file in [*files, tmp_path / "rows.parquet"]:
        assert read(file).examples == plain.examples
        assert len(read(file).texts) == len(plain.texts)


def test_scores_of_a_teacher(tmp_path):
    rows = make_rows(3, scores=True)
    data = read(write_rows(tmp_path / "rows.jsonl", rows), teacher=True)
    assert data.examples[1].negative_scores == tuple(rows[1]["neg_scores"])
    batch = data.batch([0, 2], 0, 0, 2)
    expected = [[*row["pos_scores"], *row["neg_scores"]] for row in (rows[0], rows[2])]
    np.testing.assert_allclose(batch.teacher, expected, rtol=1e-6)
    after_sigmoid = [row | {"pos_scores": [0.9], "neg_scores": [0.1, 0.2]} for row in rows]
    with pytest.raises(ValueError, match="from 0 to 1, as after a sigmoid"):
        read(write_rows(tmp_path / "rows.jsonl", after_sigmoid), teacher=True)
    young = [row | {"score_kind": "logits"} for row in after_sigmoid]  # as `mine` writes them
    assert not read(write_rows(tmp_path / "rows.jsonl", young), teacher=True).unread
    without = [rows[0], {"query": "q", "pos": ["p"], "neg": ["n"]}]
    with pytest.raises(ValueError, match="line 2: a teacher has a weight, but the row lacks"):
        read(write_rows(tmp_path / "rows.jsonl", without), teacher=True)
    alone = [rows[0], {"query": "q", "pos": ["p"], "pos_scores": [3.0]}]  # nothing was mined
    data = read(write_rows(tmp_path / "rows.jsonl", alone), teacher=True)
    assert data.batch([0, 1], 0, 0, 2).groups.tolist()[1][1:] == [-1, -1]


def test_roles_decide_the_ids(tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", [{"query": "a", "pos": ["a"], "neg": ["b"]}])
    apart, alike = read(file), read(file, passage_role="query")
    assert (len(apart.texts), len(alike.texts)) == (3, 2)
    task = tiny_task(write_tiny_model(tmp_path / "model", "bert"))
    data = read_rows(task, file)
    assert task.tokenizer.decode(data.texts[data.examples[0].query]) == "query: a"
    assert task.tokenizer.decode(data.texts[data.examples[0].positives[0]]) == "passage: a"
    both = tiny_task(tmp_path / "model", symmetric=True)
    data = read_rows(both, file)
    assert both.tokenizer.decode(data.texts[data.examples[0].positives[0]]) == "query: a"


def test_a_negative_that_equals_its_positive_is_left_out(tmp_path):
    rows = [{"query": "q", "pos": ["p"], "neg": ["n", "p"], "neg_scores": [1, 2]}]
    data = read(write_rows(tmp_path / "rows.jsonl", rows))
    assert data.dropped == 1
    assert len(data.examples[0].negatives) == 1
    assert data.examples[0].negative_scores == (1.0,)


def test_texts_of_an_example_are_taken_in_turn(tmp_path):
    rows = [{"query": "q", "pos": ["A", "B"], "neg": ["1", "2", "3"]}]
    data = read(write_rows(tmp_path / "rows.jsonl", rows))

    def drawn(epoch, seed):
        batch = data.batch([0], epoch, seed, 2)
        places = batch.texts[batch.groups[0]]
        return "".join(chr(data.texts[number][-1]) for number in places)

    assert [drawn(epoch, 0) for epoch in range(4)] == ["A12", "B31", "A23", "B12"]
    assert drawn(0, 1) == "B31"
    assert data.batch([0], 0, 0, 9).groups.shape == (1, 4)
    assert data.batch([0], 0, 0, 0).groups.shape == (1, 1)


def test_what_is_known_not_to_be_a_negative(tmp_path):
    rows = [
        {"query": "q", "pos": ["p"]},
        {"query": "q", "pos": ["r"]},  # another answer to the same query
        {"query": "s", "pos": ["p"]},  # another question with the same answer
        {"query": "t", "pos": ["s"]},  # the query above is a passage
    ]
    data = read(write_rows(tmp_path / "rows.jsonl", rows), passage_role="query")
    batch = data.batch(range(4), 0, 0, 0)
    letters = [chr(data.texts[number][-1]) for number in batch.texts]
    assert sorted(letters) == ["p", "q", "r", "s", "t"]

    def shown(pairs):
        return {(row, letters[place]) for row, place in pairs.tolist()}

    assert shown(batch.known) == {
        (0, "q"), (0, "r"), (1, "q"), (1, "p"), (2, "s"), (3, "t"),
    }  # fmt: skip
    assert shown(batch.known_back) == {
        (0, "s"), (0, "p"), (1, "r"), (2, "q"), (2, "p"), (3, "s"),
    }  # fmt: skip


def test_answers_of_other_rows_are_no_negatives(tmp_path):
    """One row a pair is a usual layout, and a batch has some of the rows."""
    rows = [
        {"query": "q", "pos": ["a"], "neg": ["n", "b"], "neg_scores": [1, 2]},
        {"query": "q", "pos": ["b"], "neg": ["a"], "neg_scores": [3]},
        {"query": "x", "pos": ["b"], "neg": ["a"], "neg_scores": [4]},
    ]
    data = read(write_rows(tmp_path / "rows.jsonl", rows), passage_role="query")
    assert data.dropped == 2
    assert [example.negative_scores for example in data.examples] == [(1.0,), (), (4.0,)]
    batch = data.batch([0, 2], 0, 0, 0)
    letters = [chr(data.texts[number][-1]) for number in batch.texts]
    shown = [
        {(r, letters[p]) for r, p in pairs.tolist()} for pairs in (batch.known, batch.known_back)
    ]
    assert shown == [{(0, "q"), (0, "b"), (1, "x")}, {(0, "a"), (1, "b"), (1, "q")}]


def test_links_are_those_of_all_pairs():
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 9, (2, 40))
    links, pairs = Links(first, second, 9), set(zip(first.tolist(), second.tolist(), strict=True))
    for number in range(9):
        expected = sorted(b for a, b in pairs if a == number)
        assert links.of(number).tolist() == expected
        assert links.have(number, range(9)).tolist() == [b in expected for b in range(9)]
    assert links.counts(np.arange(9)).tolist() == [len(links.of(number)) for number in range(9)]
    for some, others in ((5, 30), (30, 5), (0, 3), (3, 0), (1, 1)):
        numbers, among = (np.unique(generator.integers(0, 40, size)) for size in (some, others))
        found = places_of(numbers, among)
        assert among[found].tolist() == sorted(set(numbers.tolist()) & set(among.tolist()))


MEMBERS = [np.arange(0, 50), np.arange(50, 57), np.arange(57, 57)]


def test_an_epoch_has_every_example_once_and_a_batch_one_source():
    plan = Plan(MEMBERS, 16, seed=3)
    batches = plan.epoch(0)
    assert plan.steps_per_epoch == len(batches) == 4 + 1
    assert sorted(np.concatenate(batches)) == list(range(57))
    assert {len(batch) for batch in batches} == {12, 13, 7}
    assert all((batch < 50).all() or (batch >= 50).all() for batch in batches)
    mixed = Plan(MEMBERS, 16, seed=3, mixed=True).epoch(0)
    assert sorted(np.concatenate(mixed)) == list(range(57))
    assert any((batch < 50).any() and (batch >= 50).any() for batch in mixed)


def test_seed_and_epoch_alone_decide_the_order():
    def numbers(seed, epoch):
        return [batch.tolist() for batch in Plan(MEMBERS, 16, seed).epoch(epoch)]

    assert numbers(0, 1) == numbers(0, 1)
    assert numbers(0, 1) != numbers(0, 0)
    assert numbers(0, 1) != numbers(1, 1)
    assert numbers(0, 1) != numbers(1, 0)


def test_a_run_that_is_taken_up_sees_what_it_would_have_seen():
    plan = Plan(MEMBERS, 16, seed=3)
    whole = [(step, epoch, batch.tolist()) for step, epoch, batch in plan.batches(0, 13)]
    assert [step for step, _, _ in whole] == list(range(13))
    assert [epoch for _, epoch, _ in whole] == [0] * 5 + [1] * 5 + [2] * 3
    for first in (1, 5, 12, 13):
        rest = [(step, epoch, batch.tolist()) for step, epoch, batch in plan.batches(first, 13)]
        assert rest == whole[first:]
