"""What minutes of training teach a model of new languages, and what it forgets by them: NusaX.

    python scripts/experiments/translations.py --data data \
        --model intfloat/multilingual-e5-small --output nusax --seeds 0 10 11

The data lies as `e5core evaluate --data` has it: nusax-mt, stsb and xquad. A model is trained on
English sentences and their translations with the defaults of `e5core train --symmetric`, once a
seed. Accuracy is the share of 400 English sentences of the test split whose nearest sentence in
the other language is their translation. Models that are there are not trained again.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from measure import accuracy
from rows import write_rows

from e5core import E5
from e5core.cli import main as e5core
from e5core.cli.program import Parser, run_program
from e5core.evaluate.readers import read_table
from e5core.train import train

LANGUAGES = ["buginese", "toba_batak", "madurese"]
FORGOTTEN = ["STSBenchmarkMultilingualSTS", "XQuADRetrieval"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("translations.py", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder with nusax-mt")
    parser.add_argument("--model", required=True, help="a folder or a hub id")
    parser.add_argument("--output", type=Path, required=True, help="a folder for the models")
    parser.add_argument("--languages", nargs="+", default=LANGUAGES, help="columns of nusax-mt")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, help="in place of the default epochs")
    parser.add_argument("--prompts", help="e5 for a model that does not tell its prefixes")
    parser.add_argument(
        "--forgotten", action="store_true", help="measure STSb and XQuAD too (extra mteb)"
    )
    parser.set_defaults(run=run)
    return run_program(parser, arguments)


def run(options: argparse.Namespace) -> int:
    options.output.mkdir(exist_ok=True)
    columns = ["english", *options.languages]
    files = write_pairs(read_split(options.data, "train", columns), options.output)
    test = read_split(options.data, "test", columns)
    print(f"{'':16}" + "".join(f"{name:>12}" for name in options.languages) + f"{'s':>8}")
    start = report("before", options.model, test, options)
    models = [options.model]
    for seed in options.seeds:
        output, began = options.output / f"seed-{seed}", time.perf_counter()
        train(
            options.model, files, output, symmetric=True, seed=seed, steps=options.steps,
            prompts=options.prompts, show_progress=False,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        found = report(f"seed {seed}", output, test, options, f"{seconds:8.0f}")
        gains = [100 * (now - was) for now, was in zip(found, start, strict=True)]
        print(f"{'  points gained':16}" + "".join(f"{gain:+12.1f}" for gain in gains), flush=True)
        models.append(str(output))
    for model in models if options.forgotten else ():
        kept = ["--prompts", options.prompts] if options.prompts else []
        where = ["--data", str(options.data), "--output", str(options.output / "evaluation")]
        which = ["--languages", "eng", "--model", str(model), *kept]
        status = e5core(["evaluate", *FORGOTTEN, *where, *which])
        if status:
            return status
    return 0


def read_split(data: Path, split: str, columns: list[str]) -> dict[str, list[str]]:
    """Column → texts of a split; a text's translations are in the same row."""
    rows = read_table(data / "nusax-mt" / f"{split}.csv", wanted=columns)
    return {name: [row[name] for row in rows] for name in columns}


def write_pairs(texts: dict[str, list[str]], folder: Path) -> list[Path]:
    """A file a language, so that a batch is of one language."""
    files = []
    for name in list(texts)[1:]:
        files.append(folder / f"{name}.jsonl")
        pairs = zip(texts["english"], texts[name], strict=True)
        write_rows(files[-1], ({"query": english, "pos": [other]} for english, other in pairs))
    return files


def report(
    name: str,
    folder: str | Path,
    texts: dict[str, list[str]],
    options: argparse.Namespace,
    more: str = "",
) -> list[float]:
    """Accuracies of the languages in their order."""
    model = E5.from_pretrained(folder, prompts=options.prompts)
    vectors = {
        column: model.encode_query(some, show_progress=False) for column, some in texts.items()
    }
    found = [accuracy(vectors["english"], vectors[column]) for column in options.languages]
    print(f"{name:16}" + "".join(f"{value:12.3f}" for value in found) + more, flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
