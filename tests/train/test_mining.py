"""Hard negatives: exact, none of them an answer, and scored by a teacher on request."""

import json

import numpy as np
import pytest
from support.models import write_tiny_reranker
from support.training import make_rows, write_rows

from e5core import E5, Reranker, cli
from e5core.checkpoint.options import LoadOptions
from e5core.train import far_enough, mine, read_data


def mined_rows(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def corpus(tmp_path):
    texts = [text for row in make_rows(20, seed=3) for text in (*row["pos"], *row["neg"])]
    texts += texts[:5]  # and some of them twice
    return write_rows(tmp_path / "corpus.jsonl", [{"text": text} for text in texts]), texts


@pytest.fixture
def questions(tmp_path, corpus):
    """Rows whose positives and queries are in the corpus too."""
    rows = [{"query": r["query"], "pos": r["pos"]} for r in make_rows(6, seed=3)]
    rows.append({"query": corpus[1][1], "pos": [corpus[1][2], corpus[1][3]]})
    return write_rows(tmp_path / "questions.jsonl", rows), rows


def test_negatives_are_the_nearest_passages_that_are_no_answer(folder, tmp_path, corpus, questions):
    found = mine(
        folder, questions[0], tmp_path / "out.jsonl", passages=corpus[0], negatives=4, depth=20
    )
    model = E5.from_pretrained(folder)
    distinct = list(dict.fromkeys(corpus[1]))
    passages = model.encode_passage(distinct)
    rows = mined_rows(tmp_path / "out.jsonl")
    assert [row["query"] for row in rows] == [row["query"] for row in questions[1]]
    for row, given in zip(rows, questions[1], strict=True):
        scores = passages @ model.encode_query(given["query"])
        own = max(model.encode_passage(given["pos"]) @ model.encode_query(given["query"]))
        order = [i for i in np.argsort(-scores) if distinct[i] not in (*given["pos"], row["query"])]
        best = order[:20]
        usual = np.median(scores[best])
        least = min(own, usual + 0.95 * (own - usual))
        assert row["neg"] == [distinct[i] for i in best if scores[i] < least][:4]
        assert "pos_scores" not in row
    assert found.queries == 7
    assert found.passages == len(distinct)
    assert found.negatives == sum(len(row["neg"]) for row in rows)
    assert found.short == sum(len(row["neg"]) < 4 for row in rows)


def test_answers_of_other_rows_are_no_negatives(folder, tmp_path, corpus, questions):
    """Split into one row a positive, a row has the negatives of the whole one."""
    split = [{"query": row["query"], "pos": [text]} for row in questions[1] for text in row["pos"]]
    assert len(split) == len(questions[1]) + 1
    answers = {row["query"]: row["pos"] for row in questions[1]}
    files = questions[0], write_rows(tmp_path / "split.jsonl", split)
    whole, parts = (tmp_path / "whole.out.jsonl", tmp_path / "split.out.jsonl")
    for file, output in zip(files, (whole, parts), strict=True):
        mine(folder, file, output, passages=corpus[0], margin=0.0, negatives=100)
    found = {row["query"]: row["neg"] for row in mined_rows(whole)}
    for row in mined_rows(parts):
        assert not set(row["neg"]) & set(answers[row["query"]])
        assert set(row["neg"]) <= set(found[row["query"]])
        assert row["neg"]


def test_skip_and_margin_count(folder, tmp_path, corpus, questions):
    def run(**options):
        mine(folder, questions[0], tmp_path / "out.jsonl", passages=corpus[0], **options)
        return [row["neg"] for row in mined_rows(tmp_path / "out.jsonl")]

    base = run(margin=0.0)
    assert run(margin=0.5) != base
    assert run(margin=0.0, skip=30) != base
    assert all(len(found) <= 2 for found in run(negatives=2))
    assert run(margin=0.0, depth=3) != base


def test_a_teacher_decides_and_its_logits_are_written(folder, tmp_path, corpus, questions):
    teacher = write_tiny_reranker(tmp_path / "teacher", "xlm-roberta")
    code = cli.main(
        ["mine", "--model", str(folder), "--data", str(questions[0]), "--passages", str(corpus[0]),
         "--output", str(tmp_path / "out.jsonl"), "--negatives", "3", "--teacher", str(teacher)]
    )  # fmt: skip
    assert code == 0
    reranker = Reranker.from_pretrained(teacher)
    for row in mined_rows(tmp_path / "out.jsonl"):
        np.testing.assert_allclose(reranker.score(row["query"], row["pos"]), row["pos_scores"])
        assert row["neg_scores"] == sorted(row["neg_scores"], reverse=True)
        if row["neg"]:
            np.testing.assert_allclose(reranker.score(row["query"], row["neg"]), row["neg_scores"])
            assert max(row["neg_scores"]) < max(row["pos_scores"])
    data = read_data([str(tmp_path / "out.jsonl")], lambda text, role: ([0, *map(ord, text)], 0))
    assert data.examples[0].positive_scores is not None


def test_a_query_that_fills_a_pair_is_scored_too(folder, tmp_path, corpus):
    """Pairs are cut as in training, the longer text first."""
    long = {"query": "the er ing query zq " * 12, "pos": ["the er"]}
    questions = write_rows(tmp_path / "long.jsonl", [long])
    teacher = Reranker.from_pretrained(write_tiny_reranker(tmp_path / "teacher", "xlm-roberta"))
    mine(folder, questions, tmp_path / "out.jsonl", passages=corpus[0], teacher=teacher, margin=0.0)
    (row,) = mined_rows(tmp_path / "out.jsonl")
    for texts in ("pos", "neg"):
        expected = teacher.score(row["query"], row[texts], truncate="longest")
        np.testing.assert_allclose(row[f"{texts}_scores"], expected)


def test_both_models_are_loaded_with_the_options(folder, tmp_path, questions, monkeypatch):
    """But for those that are the retriever's own."""
    teacher = write_tiny_reranker(tmp_path / "teacher", "xlm-roberta")
    load, seen = Reranker.from_pretrained, {}

    def loading(model, **options):
        seen.update(options)
        return load(model, **options)

    monkeypatch.setattr(Reranker, "from_pretrained", loading)
    options = {
        "token": "secret",
        "local_files_only": True,
        "cache_dir": tmp_path,
        "kernels": "sdpa",
    }
    own = {"prompts": "e5", "max_length": 40}
    mine(folder, questions[0], tmp_path / "out.jsonl", teacher=teacher, **options, **own)
    assert seen == {**vars(LoadOptions()), **options}


def test_without_passages_the_positives_of_others_are_mined(folder, tmp_path, questions):
    found = mine(folder, questions[0], tmp_path / "out.jsonl", margin=0.0)
    assert found.passages == len({text for row in questions[1] for text in row["pos"]})


@pytest.mark.parametrize(
    ("scores", "positive", "expected"),
    [
        # The median is .80; 5% of the way from .90 to it are .005.
        ([0.91, 0.896, 0.894, 0.80, 0.79, 0.78, 0.77], 0.90, [0, 0, 1, 1, 1, 1, 1]),
        ([9.9, 9.4, 0.0, -1.0, -5.0], 10.0, [0, 1, 1, 1, 1]),
        # A positive that is found behind the others leaves what lies behind it.
        ([0.9, 0.8, 0.7, 0.6], 0.65, [0, 0, 0, 1]),
        ([], 0.5, []),
    ],
)
def test_what_is_too_near(scores, positive, expected):
    found = far_enough(np.array(scores, dtype=np.float32), positive, 0.05)
    assert found.tolist() == [bool(value) for value in expected]


def test_without_a_margin_the_nearest_are_negatives(folder, tmp_path, corpus, questions, capsys):
    """Those above the positive too, which the retriever has taken for answers."""
    output, model = tmp_path / "out.jsonl", E5.from_pretrained(folder)
    arguments = ("--model", folder, "--data", questions[0], "--passages", corpus[0])
    options = ("--output", output, "--negatives", 5, "--margin")
    assert cli.main([str(a) for a in ("mine", *arguments, *options, "none")]) == 0
    distinct, above = list(dict.fromkeys(corpus[1])), 0
    passages = model.encode_passage(distinct)
    for row, given in zip(mined_rows(output), questions[1], strict=True):
        scores = passages @ model.encode_query(given["query"])
        own = max(scores[distinct.index(text)] for text in given["pos"])
        order = [i for i in np.argsort(-scores) if distinct[i] not in (*given["pos"], row["query"])]
        assert row["neg"] == [distinct[i] for i in order][:5]
        above += int((scores[order[:5]] > own).sum())
    assert above
    with pytest.raises(SystemExit, match="2"):
        cli.main([str(a) for a in ("mine", *arguments, *options, "some")])
    assert "--margin: 'some' is found, expected none or a number" in capsys.readouterr().err


def test_faults_name_what_is_wrong(folder, tmp_path, questions):
    for options, reason in (
        ({"negatives": 0}, "negatives is 0, expected 1 or more"),
        ({"skip": -1}, "skip is -1"),
        ({"margin": 1.0}, "margin is 1.0"),
    ):
        with pytest.raises(ValueError, match=reason):
            mine(folder, questions[0], tmp_path / "out.jsonl", **options)
    bad = write_rows(tmp_path / "bad.jsonl", [{"query": "q", "pos": ["p"]}, {"pos": ["p"]}])
    with pytest.raises(ValueError, match=r"bad.jsonl, line 2: there is no query"):
        mine(folder, bad, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
