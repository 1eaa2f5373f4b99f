"""scripts/train_stages.py: both stages on small data, each with its figure."""

import os
import subprocess
import sys

from support.models import ROOT
from support.training import make_rows, write_rows

from e5core import E5, Reranker


def test_both_stages_run_and_print_their_figures(folder, tmp_path):
    rows = [{"query": r["query"], "pos": r["pos"]} for r in make_rows(16)]
    pairs = write_rows(tmp_path / "rows.jsonl", rows)
    corpus = [{"text": text} for r in make_rows(16, seed=5) for text in r["neg"]]
    corpus += [{"text": row["pos"][0]} for row in rows]
    arguments = [
        "--model", folder, "--pairs", pairs, "--passages",
        write_rows(tmp_path / "corpus.jsonl", corpus), "--evaluate", pairs, "--output",
        tmp_path / "stages", "--steps", 12, 6, 6, "--batch-size", 8, "--negatives", 2,
        "--learning-rates", 3e-3, 1e-3, 1e-3,
    ]  # fmt: skip
    program = [sys.executable, str(ROOT / "scripts" / "train_stages.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*program, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    stages = [line.split(":")[0] for line in done.stdout.splitlines()]
    assert stages == ["start", "pre-trained", "tuned"]
    assert all("mrr 0." in line for line in done.stdout.splitlines())
    assert E5.from_pretrained(tmp_path / "stages" / "tuned").prompts is not None
    scores = Reranker.from_pretrained(tmp_path / "stages" / "teacher").score("the", ["er", "a"])
    assert len(scores) == 2
