"""Speed, memory and load time on an NVIDIA GPU, beside transformers and sentence-transformers.

    python scripts/benchmark gpu                         large, base and small in bfloat16
    python scripts/benchmark gpu --models small --rounds 9 --bars

Every library embeds the same texts of 20 to 512 tokens, in no order, from str to vectors on the
CPU, tokenizing included. They work in turn in one process, round by round; a ratio is the median of
the rounds' ratios. transformers runs with SDPA in padded batches of 32, in the order of the texts,
as the models' cards have it, and sorted by length. sentence-transformers sorts by itself; padded
and, with flash attention, unpadded, each in the batch size that is the fastest of several. Where
flash_attn is not installed, torch's own flash attention stands in for it (flash_stand_in.py).

The ceiling is a product of 8192 × 8192 in bfloat16, timed in every round. The share of it counts
the FLOP of benchmark.py. "Busy" is the time that the GPU needs for the batches alone, packed 1,024
texts at a time, by its own clock, over the time of the whole call.
"""

import argparse
import gc
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from aims import print_verdicts, verdict
from ceiling import gflops, products
from flash_stand_in import provide_flash_attn
from workloads import count_tokens, flop, model_folder, workload

from e5core import E5, EncoderConfig, SentencePieceTokenizer, pack
from e5core.batching import plan_batches
from e5core.cli.program import Parser, check_counts, run_program
from e5core.formats.files import write_json
from e5core.pipeline import MAX_TOKENS_PER_BATCH

PADDED, SLICE = 32, 1024
ST_BATCH_SIZES = (32, 128, 512)
TEXTS = {"large": 2048, "base": 4096, "small": 8192}  # of a round, unless --texts says so
# Mean cosine between the vectors of two libraries in bfloat16. With random weights, which round
# worse than trained ones, sentence-transformers' unpadded input was seen at .9955.
AGREES = 0.99

# What e5core set out to reach.
SHARE, BUSY = {"large": 0.6}, {"small": 0.5}
OVER_TRANSFORMERS, OVER_UNPADDED = 3.0, 1.3
ONE_MS = {"large": 2.0, "small": 1.0}


@dataclass
class Contestant:
    """A library, its load time and memory, and what it took in each round."""

    name: str
    encode: Callable[[Sequence[str]], Any]
    load_seconds: float
    batch_size: int = 0
    seconds: list[float] = field(default_factory=list)
    one_ms: list[float] = field(default_factory=list)  # of all rounds' single queries
    peak_mb: float = 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("gpu", description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(TEXTS), help="sizes or folders")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--texts", type=int, help="texts of a round")
    parser.add_argument("--queries", type=int, default=50, help="single ones of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="e5core alone")
    parser.add_argument("--bars", action="store_true", help="hold the figures against the aims")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw figures there")
    parser.set_defaults(run=run)
    return run_program(parser, arguments)


def run(options: argparse.Namespace) -> int:
    import torch

    check_counts(options, "rounds", "texts", "queries")
    if not torch.cuda.is_available():
        raise ValueError("torch finds no CUDA here, and this measures an NVIDIA GPU")
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    stand_in = tempfile.TemporaryDirectory()
    provided = provide_flash_attn(Path(stand_in.name))
    print(describe_machine(provided))
    raw, lines = {}, []
    for name in options.models:
        raw[name] = measure_model(name, options)
        lines += bars(name, raw[name])
    if options.json:
        write_json(options.json, raw)
    return print_verdicts(lines) if options.bars else 0


def describe_machine(provided: bool) -> str:
    import torch
    import triton

    card = torch.cuda.get_device_properties(0)
    flash = "torch's in its place" if provided else "installed"
    return (
        f"{card.name}, {card.total_memory >> 30} GiB, {os.cpu_count()} CPUs; torch "
        f"{torch.__version__}, CUDA {torch.version.cuda}, triton {triton.__version__}; "
        f"flash_attn: {flash}"
    )


def measure_model(name: str, options: argparse.Namespace) -> dict[str, Any]:
    folder = model_folder(name)
    config = EncoderConfig.from_file(folder / "config.json")
    tokenizer = SentencePieceTokenizer(folder / "sentencepiece.bpe.model")
    # Longer texts are as rare as in one workload of 64: its lengths come again and again.
    texts = workload("mixed", tokenizer, 64) * max(
        1, (options.texts or TEXTS.get(name, 2048)) // 64
    )
    random.Random(0).shuffle(texts)
    lengths = count_tokens(tokenizer, texts)
    singles = workload("one", tokenizer, options.queries)
    contestants = [load(kind, folder, options.dtype) for kind in kinds(options.alone)]
    contestants = [c for c in contestants if c is not None]
    for contestant in contestants:
        choose_batch_size(contestant, texts[:512])
        contestant.encode(singles[:1])
    check_agreement(contestants, texts[:64])
    ceilings, busy, batches = [], [], packed_batches(contestants[0].encode.model, texts)
    for number in range(options.rounds + 1):  # the first one warms up and does not count
        rate = max(map(gflops, products(options.dtype, "cuda", ()))) / 1000
        for contestant in contestants:
            seconds = seconds_of(contestant.encode, texts)
            latencies = [1000 * seconds_of(contestant.encode, [text]) for text in singles]
            if number:
                contestant.seconds.append(seconds)
                contestant.one_ms += latencies
        if number:
            ceilings.append(rate)
            ours = contestants[0]
            busy.append(gpu_seconds(ours.encode.model, batches) / ours.seconds[-1])
    figures = {
        "tokens": sum(lengths),
        "texts": len(texts),
        "ceiling": statistics.median(ceilings),
        "busy": statistics.median(busy),
        "rows": [
            row(c, contestants[0], lengths, config, statistics.median(ceilings))
            for c in contestants
        ],
    }
    print_table(name, options.dtype, figures)
    for contestant in contestants:
        contestant.encode = None
    del contestants, ours, batches
    gc.collect()
    torch_empty_cache()
    return figures


def kinds(alone: bool) -> list[str]:
    others = ["transformers", "transformers sorted", "ST padded", "ST unpadded"]
    return ["e5core", *([] if alone else others)]


def load(kind: str, folder: Path, dtype: str) -> Contestant | None:
    """A library with the model on the GPU; None, and why, if it cannot be had."""
    makers = {"e5core": Ours, "transformers": Transformers, "ST": SentenceTransformers}
    import_libraries(kind)
    start = time.perf_counter()
    try:
        encode = makers[kind.split()[0]](kind, folder, dtype)
    except Exception as error:  # whatever a library raises
        print(f"{kind} is left out: {type(error).__name__}: {error}", file=sys.stderr)
        return None
    torch_synchronize()
    return Contestant(kind, encode, time.perf_counter() - start, getattr(encode, "batch_size", 0))


def import_libraries(kind: str) -> None:
    """No library is measured by its imports."""
    if kind.startswith("transformers"):
        import transformers  # noqa: F401
    elif kind.startswith("ST"):
        import sentence_transformers  # noqa: F401


class Ours:
    def __init__(self, kind: str, folder: Path, dtype: str) -> None:
        self.model = E5.from_pretrained(folder, device="cuda", dtype=dtype)

    def __call__(self, texts: Sequence[str]) -> Any:
        return self.model.encode(texts, input_type=None, show_progress=False)


class Transformers:
    """Padded batches, averaged over the mask, as the models' cards have it."""

    batch_size = PADDED

    def __init__(self, kind: str, folder: Path, dtype: str) -> None:
        import torch
        import transformers
        from engines import fast
        from exports import peer_folder

        self.sorts = kind.endswith("sorted")
        self.tokenizer = fast(folder)
        model = transformers.AutoModel.from_pretrained(
            peer_folder(folder), attn_implementation="sdpa", dtype=getattr(torch, dtype),
            add_pooling_layer=False,
        )  # fmt: skip
        self.model = model.eval().to("cuda")

    def __call__(self, texts: Sequence[str]) -> Any:
        import torch
        from engines import padded

        order = sorted(range(len(texts)), key=lambda i: -len(texts[i])) if self.sorts else None
        given = [texts[i] for i in order] if order else texts
        rows = []
        with torch.inference_mode():
            for start in range(0, len(given), self.batch_size):
                batch = padded(self.tokenizer, given[start : start + self.batch_size], "pt")
                batch = {name: tensor.to("cuda") for name, tensor in batch.items()}
                states = self.model(**batch).last_hidden_state
                mask = batch["attention_mask"][..., None]
                means = (states.float() * mask).sum(1) / mask.sum(1)
                rows.append(torch.nn.functional.normalize(means).cpu().numpy())
        stacked = np.concatenate(rows)
        return stacked[np.argsort(order)] if order else stacked


class SentenceTransformers:
    batch_size = PADDED

    def __init__(self, kind: str, folder: Path, dtype: str) -> None:
        from exports import LIMIT, peer_folder
        from sentence_transformers import SentenceTransformer

        attention = "flash_attention_2" if kind.endswith("unpadded") else "sdpa"
        settings = {"dtype": dtype, "attn_implementation": attention}
        self.model = SentenceTransformer(
            str(peer_folder(folder)), device="cuda", model_kwargs=settings
        )
        self.model.max_seq_length = LIMIT

    def __call__(self, texts: Sequence[str]) -> Any:
        return self.model.encode(
            list(texts), batch_size=self.batch_size, normalize_embeddings=True,
            show_progress_bar=False,
        )  # fmt: skip


def choose_batch_size(contestant: Contestant, texts: Sequence[str]) -> None:
    """The fastest of several, where the library leaves the choice to its user; then its memory."""
    import torch

    encode = contestant.encode
    if isinstance(encode, SentenceTransformers):
        seconds = {}
        for size in ST_BATCH_SIZES:
            encode.batch_size = size
            encode(texts[:64])
            seconds[size] = seconds_of(encode, texts)
        encode.batch_size = min(seconds, key=seconds.__getitem__)
        contestant.batch_size = encode.batch_size
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    encode(texts)
    parameters = getattr(encode.model, "encoder", encode.model)
    own = sum(t.numel() * t.element_size() for t in tensors_of(parameters))
    contestant.peak_mb = (torch.cuda.max_memory_allocated() - before + own) / 1e6


def tensors_of(module: Any) -> list[Any]:
    """All tensors on the GPU that a module holds, prepared weights among them."""
    found = [t for t in module.parameters() if t.is_cuda]
    for layer in getattr(module, "layers", ()):
        for part in layer.weights:
            found += [t for t in vars(part).values() if getattr(t, "is_cuda", False)]
    return list({t.data_ptr(): t for t in found}.values())


def check_agreement(contestants: list[Contestant], texts: Sequence[str]) -> None:
    """Raise ValueError if a library computes something else."""
    ours = np.asarray(contestants[0].encode(texts), dtype=np.float32)
    for other in contestants[1:]:
        cosine = float((ours * np.asarray(other.encode(texts), dtype=np.float32)).sum(1).mean())
        print(f"mean cosine of {other.name}: {cosine:.5f}", file=sys.stderr)
        if cosine < AGREES:
            raise ValueError(f"{other.name} does not compute the same: {cosine:.4f}")


def seconds_of(call: Callable[..., Any], *arguments: Any) -> float:
    torch_synchronize()
    start = time.perf_counter()
    call(*arguments)
    torch_synchronize()
    return time.perf_counter() - start


def torch_synchronize() -> None:
    import torch

    torch.cuda.synchronize()


def torch_empty_cache() -> None:
    import torch

    torch.cuda.empty_cache()


def packed_batches(model: E5, texts: Sequence[str]) -> list[Any]:
    """What the forward passes of a call get, on the GPU beforehand."""
    ids = [model.tokenizer.encode(text)[: model.max_length] for text in texts]
    batches = []
    for first in range(0, len(ids), SLICE):
        some = ids[first : first + SLICE]
        plan = plan_batches([len(one) for one in some], MAX_TOKENS_PER_BATCH["cuda"])
        batches += [pack([some[i] for i in batch], model.config).to("cuda") for batch in plan]
    return batches


def gpu_seconds(model: E5, batches: Sequence[Any]) -> float:
    """What the forward passes take the GPU."""
    import torch

    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.inference_mode():
        torch.cuda.synchronize()
        start.record()
        for batch in batches:
            model.pipeline.reduce(model.encoder(batch), batch.cu_seqlens)
        stop.record()
        torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1000


def row(
    c: Contestant, ours: Contestant, lengths: Sequence[int], config: EncoderConfig, rate: float
) -> dict[str, Any]:
    seconds = statistics.median(c.seconds)
    latencies = sorted(c.one_ms)
    ratios = [other / own for other, own in zip(c.seconds, ours.seconds, strict=True)]
    return {
        "name": c.name,
        "batch_size": c.batch_size,
        "texts_per_second": len(lengths) / seconds,
        "tokens_per_second": sum(lengths) / seconds,
        "tflops": flop(config, lengths) / seconds / 1e12,
        "share": flop(config, lengths) / seconds / 1e12 / rate,
        "ratio": statistics.median(ratios),
        "one_ms": statistics.median(latencies),
        "one_p95_ms": latencies[int(0.95 * len(latencies))],
        "one_ratio": statistics.median(latencies) / statistics.median(ours.one_ms),
        "load_seconds": c.load_seconds,
        "peak_mb": c.peak_mb,
        "seconds": c.seconds,
    }


def print_table(name: str, dtype: str, figures: dict[str, Any]) -> None:
    print(
        f"\n{name}, {dtype}: {figures['texts']} texts, {figures['tokens']} tokens; products "
        f"{figures['ceiling']:.0f} TFLOP/s; the GPU is busy {figures['busy']:.0%} of e5core's time"
    )
    head = (
        "texts/s",
        "tokens/s",
        "TFLOP/s",
        "share",
        "e5core ×",
        "one ms",
        "p95",
        "×",
        "load s",
        "MB",
    )
    print(f"{'':22}" + "".join(f"{word:>10}" for word in head))
    for r in figures["rows"]:
        batch = f" ({r['batch_size']})" if r["batch_size"] else ""
        numbers = (
            f"{r['texts_per_second']:10.0f}{r['tokens_per_second']:10.0f}{r['tflops']:10.0f}"
            f"{r['share']:10.1%}{r['ratio']:10.2f}{r['one_ms']:10.2f}{r['one_p95_ms']:10.2f}"
            f"{r['one_ratio']:10.2f}{r['load_seconds']:10.1f}{r['peak_mb']:10.0f}"
        )
        print(f"{r['name'] + batch:22}{numbers}", flush=True)


def bars(name: str, figures: dict[str, Any]) -> list[str]:
    """Lines "held" or "missed"."""
    rows = {r["name"]: r for r in figures["rows"]}
    lines = []

    def bar(what: str, found: float, wanted: float, at_most: bool = False) -> None:
        lines.append(verdict(f"{name} {what}", found, wanted, at_most))

    if name in SHARE:
        bar("share of the ceiling", rows["e5core"]["share"], SHARE[name])
    if name in BUSY:
        bar("share of the time that the GPU is busy", figures["busy"], BUSY[name])
    if name in ONE_MS:
        bar("one query, ms", rows["e5core"]["one_ms"], ONE_MS[name], at_most=True)
    for other, wanted in (("transformers", OVER_TRANSFORMERS), ("ST unpadded", OVER_UNPADDED)):
        if other in rows and name == "large":
            bar(f"over {other}", rows[other]["ratio"], wanted)
    return lines


if __name__ == "__main__":
    sys.exit(main())
