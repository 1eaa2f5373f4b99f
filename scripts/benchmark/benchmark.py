"""Speed of e5core beside that of other libraries, on the same texts and threads.

    python scripts/benchmark                     real e5-small, every library that is installed
    python scripts/benchmark --model large --engines e5core transformers
    python scripts/benchmark neighbours          the same beside a busy process, see --help there
    python scripts/benchmark --engines native/avx2 native/avx512
    python scripts/benchmark --instructions avx2 --bars      every library held to AVX2
    python scripts/benchmark search              an Index beside numpy and faiss, see --help there

`rerank`, `serve`, `training` and `tune` are programs like `search` too.

Every library and precision runs in a process of its own, which stays loaded; they work in turn,
round by round, so that a machine that slows down slows them all. A ratio is the median of the
rounds' ratios. Needs the extra `bench`; what is not installed is left out. With --instructions,
e5core runs on the C++ for these alone, and the others are held to them by switches of their own.
Those without one are left out, unless they are named, and count for no aim.

FLOP of a text of n tokens in one layer: 2 n (4 H² + 2 H F) of the linear layers, H being
hidden_size and F intermediate_size, and 4 n² H of attention; two for a multiplication and an
addition. The ceiling is the fastest product of the layers' shapes that oneDNN (on a GPU: cuBLAS,
8192 × 8192) gives in the same rounds; the share of it counts these FLOP alone. With --instructions
the ceiling in float32 is what multiply-add instructions reach on registers.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from aims import print_verdicts
from ceiling import Ceiling
from contestants import Contestant, disagreement, run_rounds, start
from engines import ENGINES, OURS
from instructions import SWITCHES, held_to
from report import bars, figures, print_tables, shares_of_ceiling
from workloads import TEXTS, count_tokens, model_folder, workload

from e5core import EncoderConfig, SentencePieceTokenizer
from e5core.cli.program import Parser, check_counts, run_program
from e5core.formats.files import write_json


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("benchmark", description=__doc__)
    parser.add_argument("--model", default="small", help="small, base, large or a folder")
    parser.add_argument(
        "--engines", nargs="+", choices=ENGINES,
        help="default: e5core, and all others",
    )  # fmt: skip
    parser.add_argument(
        "--instructions", choices=SWITCHES, help="hold every library to this instruction set"
    )
    parser.add_argument(
        "--precisions", nargs="+", default=["float32", "bfloat16", "int8"],
        choices=["float32", "bfloat16", "int8", "float16"],
    )  # fmt: skip
    parser.add_argument("--workloads", nargs="+", choices=TEXTS, default=["short", "mixed", "one"])
    parser.add_argument("--texts", type=int, help="texts of a round of each workload")
    parser.add_argument(
        "--batch-size", type=int, metavar="N",
        help="texts of a batch that others pad (default: the better of 8 and 32 for each workload)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--bars", action="store_true", help="hold the figures against the aims")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw figures there")
    parser.set_defaults(run=run)
    return run_program(parser, arguments)


def run(options: argparse.Namespace) -> int:
    check(options)
    folder = model_folder(options.model)
    config = EncoderConfig.from_file(folder / "config.json")
    tokenizer = SentencePieceTokenizer(folder / "sentencepiece.bpe.model")
    scale = 1 if config.hidden_size < 512 else 4  # larger models take fewer texts a round
    texts = {
        name: workload(name, tokenizer, options.texts or max(4, TEXTS[name] // scale))
        for name in options.workloads
    }
    lengths = {name: count_tokens(tokenizer, batch) for name, batch in texts.items()}
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    with held_to(options.instructions):
        contestants = start_all(options, folder)
        ceiling = Ceiling(config, options.threads, options.device, options.instructions)
    ceilings = run_rounds(contestants, ceiling, texts, options.rounds)
    if bad := disagreement(contestants):
        raise ValueError(f"the libraries do not compute the same: {bad}")
    print_tables(contestants, ceilings, lengths, config)
    if options.json:
        write_json(options.json, figures(contestants, ceilings))
    if not options.bars:
        return 0
    shares = shares_of_ceiling(contestants, ceilings, lengths.get("mixed", []), config)
    return print_verdicts(bars(contestants, shares, options.model, options.instructions))


def check(options: argparse.Namespace) -> None:
    """Raise ValueError for an option that cannot be."""
    check_counts(options, "rounds", "threads", "texts", "batch_size")
    if options.device != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise ValueError(f"device {options.device!r} cannot be used: torch finds no CUDA here")


def start_all(options: argparse.Namespace, folder: Path) -> list[Contestant]:
    """The libraries that are installed, loaded."""
    contestants: list[Contestant] = []
    for name in options.engines or default_engines(options.instructions):
        engine = ENGINES[name]
        if importlib.util.find_spec(engine.package) is None:
            print(f"{name} is not installed: pip install 'e5core[bench]'", file=sys.stderr)
            continue
        if options.instructions and not engine.has_switch:
            print(f"{name} runs as ever: it has no switch for instructions", file=sys.stderr)
        for precision in options.precisions:
            if precision not in engine.precisions:
                continue
            if options.device != "cpu" and name not in ("e5core", "transformers"):
                continue
            print(f"loading {name} {precision}", file=sys.stderr, flush=True)
            found = start(
                engine,
                precision,
                folder,
                options.threads,
                options.device,
                options.batch_size,
            )
            if isinstance(found, str):
                print(f"{name} {precision} is left out: {found}", file=sys.stderr)
            else:
                contestants.append(found)
    if not any(c.engine in OURS for c in contestants):
        raise ValueError("e5core is not among the contestants")
    return contestants


def default_engines(instructions: str | None) -> list[str]:
    """e5core as it comes and all other libraries; or on the one instruction set, and all others
    that can be held to it."""
    ours = f"native/{instructions}" if instructions else "e5core"
    others = (name for name in ENGINES if name not in OURS)
    return [ours, *(name for name in others if ENGINES[name].has_switch or not instructions)]


if __name__ == "__main__":
    sys.exit(main())
