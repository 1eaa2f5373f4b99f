"""Search the parameters of e5core's C++ on this machine.

    python scripts/benchmark tune                       every instruction set of this CPU
    python scripts/benchmark tune --instructions avx2 --parameters CACHE_BYTES

A parameter is a constant of the source: how many bytes of blocked rows a slice may have before the
weights are read anew, how many rows it has all the same, and how far ahead of a product a panel is
fetched. The source is copied and compiled once for each candidate, and all candidates of a
precision take turns on the same texts. What is printed is the speed beside that of the present
value, the median of the rounds' ratios, with the smallest and the largest. A value that wins
belongs into the source, with the date.
"""

import argparse
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from contestants import Contestant, ratios, run_rounds, start
from engines import NativeVariant
from workloads import TEXTS, model_folder, workload

from e5core import SentencePieceTokenizer
from e5core.cli.program import Parser, check_counts, run_program
from e5core.formats.files import write_json
from e5core.kernels import why_not
from e5core.kernels.native import BY_INSTRUCTIONS, build


@dataclass(frozen=True)
class Parameter:
    """A constant of the C++, and the values that are tried beside its own."""

    file: str
    candidates: tuple[int, ...]


KIB = 1024
PARAMETERS = {
    "CACHE_BYTES": Parameter("linear.h", tuple(n * KIB for n in (128, 256, 512, 1024, 2048))),
    "LEAST_ROWS": Parameter("linear.h", (28, 56, 84, 168)),
    "AHEAD": Parameter("blocks.h", tuple(n * KIB for n in (1, 4, 8, 16, 32))),  # in bytes
}


def main(arguments: Sequence[str] | None = None) -> int:
    runs = [
        name
        for name, kernels in BY_INSTRUCTIONS.items()
        if why_not(kernels, torch.device("cpu"), torch.float32) is None
    ]
    parser = Parser("tune", description=__doc__)
    parser.add_argument("--model", default="small", help="small, base, large or a folder")
    parser.add_argument("--instructions", nargs="+", choices=runs, default=runs)
    parser.add_argument("--parameters", nargs="+", choices=PARAMETERS, default=list(PARAMETERS))
    parser.add_argument(
        "--precisions", nargs="+", default=["float32", "int8"],
        choices=NativeVariant.precisions,
    )  # fmt: skip
    parser.add_argument("--workloads", nargs="+", choices=TEXTS, default=["short", "mixed"])
    parser.add_argument("--texts", type=int, help="texts of a round of each workload")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw figures there")
    parser.set_defaults(run=run)
    return run_program(parser, arguments)


def run(options: argparse.Namespace) -> int:
    check_counts(options, "rounds", "threads", "texts")
    folder = model_folder(options.model)
    tokenizer = SentencePieceTokenizer(folder / "sentencepiece.bpe.model")
    texts = {
        name: workload(name, tokenizer, options.texts or TEXTS[name]) for name in options.workloads
    }
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    figures = []
    for instructions in options.instructions:
        for parameter in options.parameters:
            with tempfile.TemporaryDirectory() as scratch:
                places = compile_all(instructions, parameter, Path(scratch))
                for precision in options.precisions:
                    candidates = {
                        value: load(place, instructions, precision, folder, options.threads)
                        for value, place in places.items()
                    }
                    run_rounds(list(candidates.values()), lambda _: math.nan, texts, options.rounds)
                    print(f"\n{parameter}, native/{instructions}, {precision}")
                    figures += print_table(candidates, present_value(parameter))
                    for candidate in candidates.values():
                        candidate.connection.close()  # which ends its process
    if options.json:
        write_json(options.json, figures)
    return 0


def present_value(parameter: str, source: Path = build.FOLDER / "src") -> int:
    return math.prod(map(int, constant_of(parameter, source)[1].split("*")))


def constant_of(parameter: str, source: Path) -> re.Match[str]:
    """Where the source defines a constant; its value, a number or two multiplied, is a group."""
    file = source / PARAMETERS[parameter].file
    found = re.search(rf"constexpr int {parameter} = (\d+(?: \* \d+)?)[; ]", file.read_text())
    if found is None:
        raise ValueError(f"{file} has no line 'constexpr int {parameter} = …' with a number")
    return found


def compile_all(instructions: str, parameter: str, scratch: Path) -> dict[int, Path]:
    """For each value a folder with the source and the library, the present value first."""
    one = next(one for one in build.INSTRUCTION_SETS if one.name == instructions)
    present, places = present_value(parameter), {}
    for value in dict.fromkeys((present, *PARAMETERS[parameter].candidates)):
        place = places[value] = scratch / str(value)
        shutil.copytree(build.FOLDER / "src", place / "src")
        set_value(parameter, value, place / "src")
        print(f"compiling {parameter} {value} for {instructions}", file=sys.stderr, flush=True)
        if not build.compile_library(one, build.library(instructions, place)):
            raise ValueError(f"{parameter} = {value} does not compile, see above")
    return places


def set_value(parameter: str, value: int, source: Path) -> None:
    file, found = source / PARAMETERS[parameter].file, constant_of(parameter, source)
    text = file.read_text()
    file.write_text(f"{text[: found.start(1)]}{value}{text[found.end(1) :]}")


def load(place: Path, instructions: str, precision: str, folder: Path, threads: int) -> Contestant:
    os.environ |= {"E5CORE_VARIANT": str(place), "E5CORE_INSTRUCTIONS": instructions}
    found = start(NativeVariant, precision, folder, threads, "cpu", [])
    if isinstance(found, str):
        raise ValueError(f"native/{instructions} {precision}: {found}")
    return found


def print_table(candidates: dict[int, Contestant], present: int) -> list[dict[str, object]]:
    """One line for each value and workload; returns what --json has of it."""
    rows: list[dict[str, object]] = []
    for value, candidate in candidates.items():
        for name in candidate.seconds:
            same = candidate.vectors.get(name) == candidates[present].vectors.get(name)
            if not (same if isinstance(same, bool) else same.all()):
                raise ValueError(f"{value} changes the vectors of {name}, and not only the speed")
            found = sorted(ratios(candidate, candidates[present], name))
            middle = found[len(found) // 2]
            note = " (present)" if value == present else ""
            print(f"{value:9} {name:6} {middle:.3f} ({found[0]:.3f} to {found[-1]:.3f}){note}")
            rows.append({"value": value, "workload": name, "ratios": found})
    return rows
