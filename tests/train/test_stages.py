"""scripts/train_stages.py: both stages on small data, each with its figure."""

import runpy

import pytest
from support.models import ROOT
from support.training import make_rows, write_rows

from e5core import E5, Reranker
from e5core.train.state import RunFolder

main = runpy.run_path(str(ROOT / "scripts" / "train_stages.py"))["main"]


@pytest.fixture
def arguments(folder, tmp_path):
    rows = [{"query": r["query"], "pos": r["pos"]} for r in make_rows(16)]
    pairs = write_rows(tmp_path / "rows.jsonl", rows)
    labelled = write_rows(tmp_path / "labelled.jsonl", rows[:12])
    corpus = [{"text": text} for r in make_rows(16, seed=5) for text in r["neg"]]
    corpus += [{"text": row["pos"][0]} for row in rows]
    given = [
        "--model", folder, "--pairs", pairs, "--labelled", labelled, "--passages",
        write_rows(tmp_path / "corpus.jsonl", corpus), "--evaluate", pairs, "--output",
        tmp_path / "stages", "--steps", 12, 6, 6, "--batch-size", 8, "--negatives", 2,
        "--learning-rates", 3e-3, 1e-2, 1e-3,
    ]  # fmt: skip
    return list(map(str, given))


def test_both_stages_run_and_print_their_figures(arguments, tmp_path, capsys):
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert [line.split(":")[0] for line in said.splitlines()] == ["start", "pre-trained", "tuned"]
    assert all("mrr 0." in line for line in said.splitlines())
    assert E5.from_pretrained(tmp_path / "stages" / "tuned").prompts is not None
    scores = Reranker.from_pretrained(tmp_path / "stages" / "teacher").score("the", ["er", "a"])
    assert len(scores) == 2

    # The same command has nothing to do; another one does not take what is there for its own.
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "stages").rglob("*.*")}
    assert main(arguments) == 0
    assert capsys.readouterr().out == said
    assert all(file.stat().st_mtime_ns == time for file, time in made.items())
    assert main([*arguments, "--negatives", "3"]) == 2
    assert "another command: negatives was 2 and is 3; name another" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["teacher", "tuned"])
def test_a_command_that_was_stopped_goes_on(arguments, tmp_path, capsys, monkeypatch, stage):
    finish = RunFolder.finish

    def finishing(self, record):
        if self.output.name == stage:
            raise KeyboardInterrupt
        finish(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", finishing)
        assert main(arguments) == 130
    assert (tmp_path / "stages" / f"{stage}.training").is_dir()
    assert main(arguments) == 0
    assert "going on behind step 6 of 6" in capsys.readouterr().err
