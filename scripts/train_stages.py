"""Train an embedding model in the two stages of multilingual E5, and print what each one gains.

    python scripts/train_stages.py --model START --pairs pairs.jsonl --labelled labelled.jsonl \
        --passages corpus.jsonl --evaluate held-out.jsonl --output stages

First contrastive pre-training on pairs, which may be weakly labelled, with the negatives of the
batch; then fine-tuning on labelled rows with mined hard negatives and a cross-encoder's scores. The
cross-encoder is trained on the same negatives, from the pre-trained model, unless --teacher names
one. Each stage is a folder in --output, and a stage that is finished is not computed again, nor are
the mined negatives. Source: arXiv:2402.05672.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e5core.bulk.sources import Source, identify
from e5core.cli.program import Parser, run_program
from e5core.formats.files import read_json, write_json
from e5core.train import Summary, mine, train
from e5core.train.log import describe_figures


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("train_stages.py", description=__doc__)
    parser.add_argument("--model", required=True, help="a folder or a hub id to start from")
    parser.add_argument("--pairs", nargs="+", required=True, help="rows with query and pos")
    parser.add_argument(
        "--labelled", nargs="+", help="the second stage's rows (default: the pairs)"
    )
    parser.add_argument("--passages", nargs="+", help="texts to mine in (default: the positives)")
    parser.add_argument("--evaluate", required=True, help="held-out rows")
    parser.add_argument("--output", type=Path, required=True, help="a folder for all stages")
    parser.add_argument("--teacher", help="a cross-encoder in place of one that is trained here")
    parser.add_argument("--prompts", help="e5 for a start that does not tell its prefixes")
    parser.add_argument("--negatives", type=int, default=7)
    parser.add_argument("--depth", type=int, help="candidates of a query that the teacher scores")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--teacher-weight", type=float, default=1.0)
    parser.add_argument("--contrastive-weight", type=float, default=0.2)
    parser.add_argument("--teacher-temperature", type=float, default=1.0)
    parser.add_argument(
        "--steps", type=int, nargs=3, metavar="N", help="pre-training, teacher, tuning"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rates", type=float, nargs=3, metavar="RATE", help="the same")
    parser.set_defaults(run=run)
    return run_program(parser, arguments)


def run(options: argparse.Namespace) -> int:
    options.output.mkdir(exist_ok=True)
    check_same(options)
    folder: dict[str, Path] = {
        name: options.output / name for name in ("pre-trained", "teacher", "tuned")
    }
    numbers = options.steps or [None] * 3
    rates = options.learning_rates or [None] * 3
    settings: list[dict[str, Any]] = [
        {"steps": steps, "learning_rate": rate, "seed": options.seed}
        for steps, rate in zip(numbers, rates, strict=True)
    ]
    held = {"evaluate": options.evaluate, "prompts": options.prompts}
    first = train(
        options.model, options.pairs, folder["pre-trained"], batch_size=options.batch_size,
        negatives=0, keep=0.0, **settings[0], **held,
    )  # fmt: skip
    print(f"start: {describe_figures(first.before)}")
    report("pre-trained", first)

    mined, scored = options.output / "mined.jsonl", options.output / "scored.jsonl"
    where = {"passages": options.passages, "negatives": options.negatives}
    labelled = options.labelled or options.pairs
    teacher = options.teacher
    if teacher is None:
        mine_once(folder["pre-trained"], labelled, mined, **where)
        rows = options.batch_size // 4 or 1  # a group takes the room of several texts
        train(
            folder["pre-trained"], mined, folder["teacher"], reranker=True, batch_size=rows,
            **settings[1],
        )  # fmt: skip
        teacher = folder["teacher"]
    mine_once(
        folder["pre-trained"], labelled, scored, teacher=teacher, depth=options.depth, **where
    )
    tuned = train(
        folder["pre-trained"], scored, folder["tuned"], batch_size=options.batch_size,
        negatives=options.negatives, teacher_weight=options.teacher_weight,
        contrastive_weight=options.contrastive_weight,
        teacher_temperature=options.teacher_temperature, **settings[2], **held,
    )  # fmt: skip
    report("tuned", tuned)
    return 0


def check_same(options: argparse.Namespace) -> None:
    """ValueError if the output holds negatives that were mined from something else."""
    named = {role: getattr(options, role) for role in ("pairs", "labelled", "passages")}
    made_from = {
        role: [identify(file) for file in Source(files).files] if files else None
        for role, files in named.items()
    }
    made_from |= {
        "negatives": options.negatives,
        "depth": options.depth,
        "teacher": options.teacher,
    }
    note = options.output / "stages.json"
    if not note.is_file():
        write_json(note, made_from)
    said = read_json(note)
    for name, value in made_from.items():
        if said.get(name) != value:
            raise ValueError(
                f"{options.output} holds the stages of another command: {name} was "
                f"{said.get(name)} and is {value}; name another output"
            )


def mine_once(model: Path, data: list[str], output: Path, **options: Any) -> None:
    """Mine, unless it was done: the file appears as a whole, and a run knows it by its time."""
    if not output.is_file():
        mine(model, data, output, **options)


def report(stage: str, summary: Summary) -> None:
    print(f"{stage}: {describe_figures(summary.after)} (step {summary.best_step})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
