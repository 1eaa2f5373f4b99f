"""Speed of e5core's reranker beside other libraries, on the same pairs and threads.

    python scripts/benchmark rerank --bars
    python scripts/benchmark rerank --model base --engines e5core transformers-single

Two workloads: pairs of mixed length as they come, 20 to 512 tokens, and one query with its
passages, of which the latency counts. "transformers" pads batches of 32, "transformers-single"
takes one pair at a time, and "onnxruntime" sorts by length first. The models have random weights
in the geometry of e5-small, base or large. Libraries and rounds are those of the benchmark of
texts: see benchmark.py.
"""

import argparse
import importlib.util
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from aims import print_verdicts, verdict
from ceiling import Ceiling
from contestants import Contestant, ratio, run_rounds, start
from rerankers import RERANKERS, Logits
from workloads import count_pair_tokens, flop, pairs_of_mixed_length, reranker_folder

from e5core import EncoderConfig, SentencePieceTokenizer
from e5core.cli.program import Parser, check_counts, run_program
from e5core.formats.files import write_json
from e5core.parity.samples import QUERIES

# By which share of their spread the float32 logits of two libraries may differ at most: a pair
# laid out otherwise is off by all of it.
AGREES = 1e-3

# What e5core in float32 is to reach beside others on pairs as they come.
BARS = {"transformers": 8.0, "transformers-single": 2.5, "onnxruntime": 1.5}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("reranking", description=__doc__)
    parser.add_argument("--model", default="small", help="small, base, large or a folder")
    parser.add_argument("--engines", nargs="+", choices=RERANKERS, default=list(RERANKERS))
    parser.add_argument(
        "--precisions", nargs="+", default=["float32", "bfloat16", "int8"],
        choices=["float32", "bfloat16", "int8", "float16"],
    )  # fmt: skip
    parser.add_argument("--pairs", type=int, default=96, help="pairs as they come")
    parser.add_argument("--passages", type=int, default=100, help="passages of the one query")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--bars", action="store_true", help="hold the figures against the aims")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw figures there")
    parser.set_defaults(run=run)
    return run_program(parser, arguments)


def run(options: argparse.Namespace) -> int:
    check_counts(options, "pairs", "passages", "rounds", "threads")
    if "e5core" not in options.engines:
        raise ValueError("e5core is not among the contestants")
    folder = reranker_folder(options.model)
    config = EncoderConfig.from_file(folder / "config.json")
    tokenizer = SentencePieceTokenizer(folder / "sentencepiece.bpe.model")
    workloads = {
        "pairs": pairs_of_mixed_length(tokenizer, options.pairs, QUERIES),
        "query": pairs_of_mixed_length(tokenizer, options.passages, QUERIES[:1]),
    }
    lengths = {name: count_pair_tokens(tokenizer, pairs) for name, pairs in workloads.items()}
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    contestants = start_all(options, folder)
    ceiling = Ceiling(config, options.threads, options.device)
    ceilings = run_rounds(contestants, ceiling, workloads, options.rounds)
    print_tables(contestants, ceilings, lengths, config)
    if options.json:
        figures = {c.label: {"seconds": c.seconds, "peak_mb": c.peak_mb} for c in contestants}
        write_json(options.json, {"contestants": figures, "ceilings_gflops": ceilings})
    if bad := disagreement(contestants):
        raise ValueError(f"the libraries do not compute the same: {bad}")
    if not options.bars:
        return 0
    return print_verdicts(bars(contestants))


def start_all(options: argparse.Namespace, folder: Path) -> list[Contestant]:
    """The libraries that are installed, loaded."""
    contestants: list[Contestant] = []
    for name in options.engines:
        engine = RERANKERS[name]
        if importlib.util.find_spec(engine.package) is None:
            print(f"{name} is not installed: pip install 'e5core[bench]'", file=sys.stderr)
            continue
        for precision in options.precisions:
            if precision not in engine.precisions:
                continue
            print(f"loading {name} {precision}", file=sys.stderr, flush=True)
            found = start(engine, precision, folder, options.threads, options.device)
            if isinstance(found, str):
                print(f"{name} {precision} is left out: {found}", file=sys.stderr)
            else:
                contestants.append(found)
    if not any(c.engine == "e5core" for c in contestants):
        raise ValueError("e5core is not among the contestants")
    return contestants


def print_tables(
    contestants: list[Contestant],
    ceilings: dict[str, list[float]],
    lengths: dict[str, list[int]],
    config: EncoderConfig,
) -> None:
    exact = next((c for c in contestants if c.label == "e5core float32"), contestants[0])
    ours = [c for c in contestants if c.engine == "e5core"]
    columns = "".join(f"  vs {c.precision:>8}" for c in ours)
    for name, counts in lengths.items():
        print(f"\n{name}: {len(counts)} pairs, {sum(counts)} tokens")
        head = f"{'s':>8} {'pairs/s':>8} {'tokens/s':>9}  of ceiling  worst diff  rank corr"
        print(f"{'':28}{head}{columns}")
        for c in contestants:
            seconds = statistics.median(c.seconds[name])
            rates = f"{seconds:8.3f} {len(counts) / seconds:8.1f} {sum(counts) / seconds:9.0f}"
            rate = flop(config, counts) / seconds / 1e9
            share = f"{rate / statistics.median(ceilings[c.precision]):.0%}"
            far = worst_difference(c.vectors[name], exact.vectors[name])
            order = rank_correlation(c.vectors[name], exact.vectors[name])
            ratios = "".join(f"  {ratio(o, c, name):10.2f}×" for o in ours)
            print(f"{c.label:28}{rates}  {share:>10}  {far:10.1e}  {order:9.5f}{ratios}")
    print(f"\n{'':28}{'load s':>8} {'peak MB':>8} {'batch':>6}")
    for c in contestants:
        print(f"{c.label:28}{c.load_seconds:8.2f} {c.peak_mb:8.0f} {c.batch:>6}")
    rates = ", ".join(f"{p} {statistics.median(r):.0f}" for p, r in ceilings.items())
    print(f"\nmatrix products, GFLOP/s: {rates}")


def worst_difference(logits: Logits, expected: Logits) -> float:
    """The largest difference, as a share of the spread of what is expected."""
    spread = float(expected.std()) or 1.0
    return float(np.abs(logits - expected).max()) / spread


def rank_correlation(logits: Logits, expected: Logits) -> float:
    """Spearman's: that of the ranks. One pair alone has none."""
    ranks = [values.argsort().argsort() for values in (logits, expected)]
    return float(np.corrcoef(ranks)[0, 1]) if len(logits) > 1 else 1.0


def disagreement(contestants: list[Contestant]) -> str | None:
    """Who has other float32 logits than e5core: then there is nothing to compare."""
    exact = next((c for c in contestants if c.label == "e5core float32"), None)
    for other in contestants if exact else ():
        for name, logits in other.vectors.items() if other.precision == "float32" else ():
            assert exact is not None
            far = worst_difference(logits, exact.vectors[name])
            if not far < AGREES:
                return f"{other.label} is {far:.1e} of the spread from e5core float32 on {name}"
    return None


def bars(contestants: list[Contestant]) -> list[str]:
    """Lines "held" or "missed": what e5core set out to reach, as ratios within one run."""
    by_label = {c.label: c for c in contestants}
    lines = []
    for engine, wanted in BARS.items():
        ours, other = by_label.get("e5core float32"), by_label.get(f"{engine} float32")
        if ours and other:
            what = f"{ours.label} : {other.label} on pairs"
            lines.append(verdict(what, ratio(ours, other, "pairs"), wanted))
    return lines
