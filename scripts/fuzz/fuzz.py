"""Fuzz the readers of weights, tokenizers and texts with atheris (pip install 'e5core[fuzz]').

    python scripts/fuzz --seconds 600

Each target of fuzz_targets.py gets its share of the time, in a process of its own that starts
from the seeds in tests/programs/data/fuzz/. Exits with 1 if one crashed, hung or gave a wrong
result; the input is then left in the folder named.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SEEDS = Path(__file__).parents[2] / "tests" / "programs" / "data" / "fuzz"
TARGETS = ("checkpoint", "tokenizer-file", "text")  # of fuzz_targets.py, which is imported late
SECONDS_FOR_ONE_INPUT = 10
MEMORY_MB = 4096


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", nargs="*", default=TARGETS, help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=600, help="for all of them together")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for target in options.target:
        if target not in TARGETS:
            parser.error(f"there is no target {target}, the targets are {', '.join(TARGETS)}")
    seconds = max(1, options.seconds // len(options.target))
    if options.inside:
        fuzz(options.target[0], seconds)
    failed = []
    for target in options.target:
        print(f"{target}: {seconds} s", flush=True)
        command = [sys.executable, __file__, "--inside", "--seconds", str(seconds), target]
        if subprocess.run(command, check=False).returncode:
            failed.append(target)
    print(f"failed: {', '.join(failed)}" if failed else "no crash, no hang, no wrong result")
    return 1 if failed else 0


def fuzz(target: str, seconds: int) -> None:
    """Fuzz one target until the time is over; atheris ends the process."""
    import atheris

    with atheris.instrument_imports(include=["e5core", "fuzz_targets"]):
        import fuzz_targets

    found = Path(tempfile.mkdtemp(prefix=f"e5core-fuzz-{target}-"))
    corpus = found / "corpus"
    corpus.mkdir()
    print(f"inputs that fail are left in {found}", flush=True)
    limits = [
        f"-max_total_time={seconds}",
        f"-timeout={SECONDS_FOR_ONE_INPUT}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-artifact_prefix={found}/",
        "-print_final_stats=1",
    ]
    run = fuzz_targets.TARGETS[target]

    def one_input(data: bytes) -> None:
        run(data)

    atheris.Setup([sys.argv[0], *limits, str(corpus), str(SEEDS / target)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
