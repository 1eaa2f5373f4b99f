"""A reranker of XQuAD's questions, and students that learn from it what their labels do not say.

    python scripts/experiments/questions.py --data data/xquad \
        --model intfloat/multilingual-e5-small --output questions --seeds 0 1 2

Questions in five languages are each answered by one English sentence (xquad.py). Of 160
paragraphs the first --students questions have weak labels: their positive is any sentence of the
right paragraph, drawn once. The others, with their right sentences, train a model contrastively,
and from it a reranker. For every seed this prints nDCG@10 of 500 questions on the other 80
paragraphs: of the reranker, which orders the start's best ten anew, and of the students, which rank
all sentences. Gains have their standard error over the questions. A command that was stopped goes
on. Each seed takes some minutes on a GPU, and hours on a CPU.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from measure import Floats, mean_and_error, ndcg_at_10
from rows import write_rows
from xquad import Questions, read_questions

from e5core import E5, Reranker
from e5core.cli.program import Parser, run_program
from e5core.train import mine, train

NEAREST, NEGATIVES, DEPTH = 12, 7, 10
Places = npt.NDArray[np.int64]

# Without it rerankers differ more by their seed: on 40 of the paragraphs, which were kept apart,
# they gained 2.3, 4.0 and 1.5 points over the start, and with it 3.5, 3.3 and 3.3 (2026-11).
R_DROP = 1.0

# The rows that a student learns from, and its losses; first the contrastive ones.
WAYS: list[tuple[str, str, dict[str, Any]]] = [
    ("in-batch negatives", "mined.jsonl", {"negatives": 0}),
    ("mined negatives", "mined.jsonl", {}),
    ("KL + .2 InfoNCE", "scored.jsonl", {"teacher_weight": 1.0, "contrastive_weight": 0.2}),
    ("KL + .05 InfoNCE", "scored.jsonl", {"teacher_weight": 1.0, "contrastive_weight": 0.05}),
]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("questions.py", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder with xquad.XX.json")
    parser.add_argument("--model", required=True, help="a folder or a hub id")
    parser.add_argument("--output", type=Path, required=True, help="a folder for the models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--students", type=int, default=1200, help="questions with weak labels")
    parser.add_argument("--epochs", type=int, default=6, help="of the reranker")
    parser.add_argument("--steps", type=int, help="of every training, in place of its epochs")
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--prompts", help="e5 for a model that does not tell its prefixes")
    parser.set_defaults(run=run)
    return run_program(parser, arguments)


def run(options: argparse.Namespace) -> int:
    options.output.mkdir(exist_ok=True)
    questions = read_questions(options.data)
    held = Held(questions)
    e5 = load(options.model, options)
    start = held.order(e5)
    write_all(questions, options.students, e5, options.output)
    print(f"{'':32}{'nDCG@10':>8}   gain (standard error) in points")
    report("start", held.ndcg(start))
    for seed in options.seeds:
        print(f"seed {seed}", flush=True)
        run_seed(options.output / f"seed-{seed}", seed, held, start, options)
    return 0


def run_seed(
    folder: Path, seed: int, held: "Held", start: Places, options: argparse.Namespace
) -> None:
    """The models of one seed, each reported as soon as it is there."""
    folder.mkdir(exist_ok=True)
    base = held.ndcg(start)
    both = {
        "seed": seed, "steps": options.steps, "device": options.device, "show_progress": False,
        "negatives": NEGATIVES,
    }  # fmt: skip
    of_encoder = both | {"prompts": options.prompts, "learning_rate": 1e-4}
    exact, tuned, teacher = options.output / "exact.jsonl", folder / "tuned", folder / "reranker"

    train(options.model, exact, tuned, batch_size=64, epochs=2, **of_encoder)
    report("tuned on the other questions", held.ndcg(held.order(load(tuned, options))), base)
    train(
        tuned, exact, teacher, reranker=True, batch_size=16, epochs=options.epochs,
        learning_rate=1e-4, r_drop=R_DROP, **both,
    )  # fmt: skip
    reranker = Reranker.from_pretrained(teacher, device=options.device)
    report("reranker of the start's ten", held.ndcg(held.reordered(reranker, start)), base)

    weak, passages = options.output / "weak.jsonl", options.output / "passages.jsonl"
    mined, scored = folder / "mined.jsonl", folder / "scored.jsonl"
    mining = {
        "passages": passages, "negatives": NEGATIVES, "prompts": options.prompts,
        "device": options.device, "show_progress": False,
    }  # fmt: skip
    if not mined.is_file():
        mine(options.model, weak, mined, **mining)
    if not scored.is_file():
        # A margin is measured from the positive, and most of these are wrong.
        mine(options.model, weak, scored, teacher=teacher, margin=None, depth=DEPTH, **mining)

    best = np.zeros_like(base)
    for name, rows, losses in WAYS:
        output = folder / name.replace(" ", "-")
        train(options.model, folder / rows, output, batch_size=32, **(of_encoder | losses))
        found = held.ndcg(held.order(load(output, options)))
        report(name, found, base)
        if "teacher_weight" in losses:
            report("  beside the best contrastive", found, best, only_gain=True)
        elif found.mean() > best.mean():
            best = found


class Held:
    """Held-out questions and the sentences among which they find their answer."""

    def __init__(self, questions: Questions) -> None:
        self.queries = [question.text for question in questions.held]
        self.sentences = questions.sentences
        place = {text: number for number, text in enumerate(self.sentences)}
        self.right = np.array([place[question.answer] for question in questions.held])

    def order(self, e5: E5) -> Places:
        """[questions, sentences], the best first."""
        return rank(e5, self.queries, self.sentences)

    def reordered(self, reranker: Reranker, order: Places) -> Places:
        """[questions, DEPTH]: the best of an order as a reranker puts them."""
        best = order[:, :DEPTH]
        pairs = [
            (query, self.sentences[place])
            for query, places in zip(self.queries, best, strict=True)
            for place in places
        ]
        scores = reranker.compute(pairs, truncate="longest", show_progress=False).scores
        again = np.argsort(-scores.reshape(best.shape), axis=1, kind="stable")
        return np.take_along_axis(best, again, axis=1)

    def ndcg(self, order: Places) -> Floats:
        return ndcg_at_10(order, self.right)


def load(model: str | Path, options: argparse.Namespace) -> E5:
    return E5.from_pretrained(model, prompts=options.prompts, device=options.device)


def rank(e5: E5, queries: list[str], passages: list[str]) -> Places:
    """[queries, passages]: places of the passages, the nearest first."""
    found = e5.encode_passage(passages, show_progress=False)
    cosines = e5.encode_query(queries, show_progress=False) @ found.T
    return np.argsort(-cosines, axis=1, kind="stable")


def write_all(questions: Questions, count: int, e5: E5, output: Path) -> None:
    """weak.jsonl for students, exact.jsonl for the reranker, and passages.jsonl to mine in."""
    if (output / "passages.jsonl").is_file():  # it is written last
        return
    if not 0 < count < len(questions.train):
        raise ValueError(f"--students is {count}, of {len(questions.train)} questions to train on")
    draw = random.Random(0)
    students, others = questions.train[:count], questions.train[count:]
    weak = [{"query": q.text, "pos": [draw.choice(q.paragraph)]} for q in students]
    exact = []
    order = rank(e5, [question.text for question in others], questions.passages)
    for question, places in zip(others, order, strict=True):
        near = [questions.passages[place] for place in places[: NEAREST + 1]]
        wrong = [text for text in near if text != question.answer][:NEAREST]
        exact.append({"query": question.text, "pos": [question.answer], "neg": wrong})
    passages = [{"text": text} for text in questions.passages]
    for name, rows in (("weak", weak), ("exact", exact), ("passages", passages)):
        write_rows(output / f"{name}.jsonl", rows)


def report(name: str, found: Floats, base: Floats | None = None, only_gain: bool = False) -> None:
    mean = "" if only_gain else f"{found.mean():8.3f}"
    gain = "" if base is None else "{:+8.2f} ({:.2f})".format(*mean_and_error(found - base))
    print(f"  {name:30}{mean:8}{gain}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
