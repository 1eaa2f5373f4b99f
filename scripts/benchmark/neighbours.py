"""What a library keeps of its speed beside a busy process, and when several threads call it.

    python scripts/benchmark neighbours
    python scripts/benchmark neighbours --bars   hold the figures against the aims

In each round every library works on mixed texts and on queries one by one, first on an idle
machine and then beside a Python process that does nothing but count on one thread. Then several
threads call it at once, with a query each. "kept" is the median of the rounds' ratios, and p95 is
that of all queries of all rounds. Engines and their processes are those of the benchmark of texts.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aims import print_verdicts, verdict
from benchmark import check, default_engines, start_all
from contestants import Contestant, WorkerError
from engines import ENGINES, OURS
from workloads import TEXTS, model_folder, workload

from e5core import SentencePieceTokenizer
from e5core.cli.program import Parser, run_program
from e5core.formats.files import write_json

BUSY = "while True: pass"
KEPT, SLOWER, TOGETHER = 0.62, 3.0, 1.0  # what e5core is to reach: bars() says of what


@dataclass
class Figures:
    """Seconds of each round on mixed texts and of several callers, and of each query alone."""

    mixed: dict[str, list[float]] = field(default_factory=lambda: {"idle": [], "busy": []})
    queries: dict[str, list[float]] = field(default_factory=lambda: {"idle": [], "busy": []})
    in_turn: list[float] = field(default_factory=list)
    at_once: list[float] = field(default_factory=list)

    @property
    def kept(self) -> float:
        """The share of the throughput on mixed texts that is left beside the neighbour."""
        pairs = zip(self.mixed["idle"], self.mixed["busy"], strict=True)
        return statistics.median(idle / busy for idle, busy in pairs)

    def p95(self, state: str) -> float:
        return statistics.quantiles(self.queries[state], n=20, method="inclusive")[-1]

    @property
    def slower(self) -> float:
        """How many times as long as on an idle machine a query takes, by p95."""
        return self.p95("busy") / self.p95("idle")

    @property
    def together(self) -> float:
        """The speed of several callers at once beside one that asks the same in turn."""
        pairs = zip(self.in_turn, self.at_once, strict=True)
        return statistics.median(turn / once for turn, once in pairs)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("benchmark neighbours", description=__doc__)
    parser.add_argument("--model", default="small", help="small, base, large or a folder")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=default_engines(None))
    parser.add_argument(
        "--precisions", nargs="+", default=["float32", "int8"],
        choices=["float32", "bfloat16", "int8", "float16"],
    )  # fmt: skip
    parser.add_argument("--texts", type=int, help="texts of a round of each workload")
    parser.add_argument("--batch-size", type=int, metavar="N", help="as in the benchmark of texts")
    parser.add_argument("--callers", type=int, default=4, help="threads that call at once")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--bars", action="store_true", help="hold the figures against the aims")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw figures there")
    parser.set_defaults(run=run, device="cpu", instructions=None)
    return run_program(parser, arguments)


def run(options: argparse.Namespace) -> int:
    check(options)
    folder = model_folder(options.model)
    tokenizer = SentencePieceTokenizer(folder / "sentencepiece.bpe.model")
    mixed, queries = (
        workload(name, tokenizer, options.texts or texts)
        for name, texts in (("mixed", TEXTS["mixed"] // 2), ("one", 2 * TEXTS["one"]))
    )
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    contestants = start_all(options, folder)
    figures = {c.label: Figures() for c in contestants}
    for number in range(options.rounds + 1):  # the first one warms up and does not count
        print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
        found = {c.label: Figures() for c in contestants}
        for state in ("idle", "busy"):
            with neighbour(state == "busy"):
                for c in contestants:
                    measure(c, found[c.label], state, mixed, queries)
        for c in contestants:
            found[c.label].in_turn.append(sum(c.ask("one by one", queries)))
            found[c.label].at_once.append(seconds_at_once(c, queries, options.callers))
        if number:
            for label, of_round in found.items():
                add(figures[label], of_round)
    print_table(figures, len(mixed), options.callers)
    if options.json:
        write_json(options.json, {label: vars(f) for label, f in figures.items()})
    if not options.bars:
        return 0
    return print_verdicts(bars(figures))


@contextmanager
def neighbour(is_there: bool) -> Iterator[None]:
    """A process that keeps one core busy, if it is to be there."""
    if not is_there:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", BUSY]) as process:
        try:
            yield
        finally:
            process.kill()


def seconds_at_once(contestant: Contestant, queries: Sequence[str], callers: int) -> float:
    """NaN of a library that several threads cannot call at once, as OpenVINO's compiled model."""
    try:
        seconds: float = contestant.ask("at once", queries, callers)
    except WorkerError as error:
        print(f"{contestant.label} has no several callers: {error}", file=sys.stderr)
        return math.nan
    return seconds


def measure(
    contestant: Contestant,
    figures: Figures,
    state: str,
    mixed: Sequence[str],
    queries: Sequence[str],
) -> None:
    contestant.ask("one by one", queries)  # it may still remember the other state
    seconds, _ = contestant.encode("mixed", mixed)
    figures.mixed[state].append(seconds)
    figures.queries[state] += contestant.ask("one by one", queries)


def add(figures: Figures, of_round: Figures) -> None:
    for state in ("idle", "busy"):
        figures.mixed[state] += of_round.mixed[state]
        figures.queries[state] += of_round.queries[state]
    figures.in_turn += of_round.in_turn
    figures.at_once += of_round.at_once


def print_table(figures: dict[str, Figures], texts: int, callers: int) -> None:
    print(f"{'':30}{'mixed, texts/s':^24}{'one query, p95 in ms':^26}{callers} callers at once")
    print(f"{'':30}{'idle':>8}{'beside':>8}{'kept':>8}{'idle':>9}{'beside':>8}{'times':>8}")
    for label, f in figures.items():
        rates = [texts / statistics.median(f.mixed[state]) for state in ("idle", "busy")]
        tails = [1000 * f.p95(state) for state in ("idle", "busy")]
        print(
            f"{label:30}{rates[0]:8.1f}{rates[1]:8.1f}{f.kept:8.2f}"
            f"{tails[0]:9.2f}{tails[1]:8.2f}{f.slower:8.1f}{f.together:9.2f} times as fast"
        )


def bars(figures: dict[str, Figures]) -> list[str]:
    """A line for each aim: what e5core keeps, more than every other library, its p95, callers."""
    lines = []

    def is_ours(label: str) -> bool:
        return label.split()[0] in OURS

    others = [f.kept for label, f in figures.items() if not is_ours(label)]
    for label, f in figures.items():
        if is_ours(label):
            lines.append(verdict(f"{label} keeps of mixed", f.kept, KEPT))
            if others:
                what = f"{label} keeps more than every other"
                lines.append(verdict(what, f.kept, max(others), above=True))
            lines.append(verdict(f"{label}, p95 of a query", f.slower, SLOWER, at_most=True))
            lines.append(verdict(f"{label}, callers at once", f.together, TOGETHER))
    return lines


if __name__ == "__main__":
    sys.exit(main())
