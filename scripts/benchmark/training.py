"""Speed and memory of training beside sentence-transformers' cached loss, same data and threads.

    python scripts/benchmark training                  batch of 512 pairs of mixed length
    python scripts/benchmark training --memory         and the peak memory of 64 and of 4,096 pairs
    python scripts/benchmark training --device cuda --steps 5

A pair is two texts of 20 to 512 tokens, log-uniform. Every contestant takes whole steps of the
contrastive loss, dropout and optimizer included, in a process of its own, with the token table
frozen in both. sentence-transformers has CachedMultipleNegativesRankingLoss with mini-batches of
8: with 32 texts of up to 512 tokens it took over 17 GB (2026-11). On a GPU they have 128 texts and
flash attention on unpadded input, if need be torch's own (flash_stand_in.py), and memory is what
torch has allocated there. The share of the ceiling counts
four times the forward's FLOP a token: forward, forward again with its graph, and the two products
of the backward pass. Each computes in its own default, which for e5core is bfloat16 (autocast)
where the CPU has it, and for sentence-transformers float32; on a GPU both are in bfloat16. --dtype
puts both in the same.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from aims import verdict
from ceiling import Ceiling
from contestants import peak_megabytes
from exports import LIMIT
from flash_stand_in import provide_flash_attn
from workloads import count_tokens, flop, log_uniform, model_folder

from e5core import Encoder, EncoderConfig, SentencePieceTokenizer
from e5core.cli.program import Parser, check_counts, run_program
from e5core.formats.files import write_json
from e5core.parity.samples import text_of_length

TEMPERATURE, MINI_BATCH = 0.01, {"cpu": 8, "cuda": 128}
FEW_AND_MANY = (64, 4096)  # pairs whose peak memory is compared
FORWARDS = 4  # what a step costs in forward passes

# What e5core is to reach beside sentence-transformers, and between batches of 64 and 4,096.
SPEED, MEMORY, FLAT, SHARE = 5.0, 1 / 3, 1.1, 0.6


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("training", description=__doc__)
    parser.add_argument("--model", default="small", help="small, base, large or a folder")
    parser.add_argument("--engines", nargs="+", choices=ENGINES)
    parser.add_argument("--pairs", type=int, default=512, help="the batch")
    parser.add_argument("--steps", type=int, default=1, help="steps that are timed")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of both engines")
    parser.add_argument("--memory", action="store_true", help="compare small and large batches")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=MINI_BATCH, default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw figures there")
    parser.set_defaults(run=run)
    return run_program(parser, arguments)


def run(options: argparse.Namespace) -> int:
    check_counts(options, "pairs", "steps", "threads")
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    folder = model_folder(options.model)
    config = EncoderConfig.from_file(folder / "config.json")
    tokenizer = SentencePieceTokenizer(folder / "sentencepiece.bpe.model")
    pairs = make_pairs(tokenizer, log_uniform(2 * options.pairs))
    lengths = count_tokens(tokenizer, ["query: " + text for pair in pairs for text in pair])
    ceiling = Ceiling(config, options.threads, options.device)
    print(f"{len(pairs)} pairs, {sum(lengths)} tokens", file=sys.stderr)
    figures: dict[str, dict[str, float]] = {}
    print(f"{'':40}{'s':>8} {'tokens/s':>9} {'of ceiling':>10} {'peak MB':>8}")
    engines = [name for name in ENGINES if name != UNPADDED or options.device == "cuda"]
    for name in options.engines or engines:
        dtype = options.dtype or default_dtype(name, options.device)
        rates = [ceiling(dtype)]
        seconds, peak = measure(name, folder, pairs, options, dtype)
        rates.append(ceiling(dtype))
        share = FORWARDS * flop(config, lengths) / seconds / 1e9 / statistics.mean(rates)
        speed = sum(lengths) / seconds
        figures[name] = {"seconds": seconds, "speed": speed, "share": share, "peak_mb": peak}
        print(
            f"{name:31}{dtype:>9}{seconds:8.1f} {speed:9.0f} {share:10.0%} {peak:8.0f}", flush=True
        )
    lines = bars(figures)
    if options.memory:
        peaks, once = {}, argparse.Namespace(**{**vars(options), "steps": 1})
        for count in FEW_AND_MANY:
            few = make_pairs(tokenizer, [14] * 2 * count)
            dtype = options.dtype or default_dtype("e5core", options.device)
            _, peaks[count] = measure("e5core", folder, few, once, dtype)
            print(f"e5core, {count:5} pairs {'':24} {'':10} {peaks[count]:8.0f}", flush=True)
        few_pairs, many = FEW_AND_MANY
        what = f"memory of {many} pairs : of {few_pairs}"
        lines.append(verdict(what, peaks[many] / peaks[few_pairs], FLAT, at_most=True))
    print("\n" + "\n".join(lines))
    if options.json:
        write_json(options.json, figures)
    return 0


def make_pairs(tokenizer: SentencePieceTokenizer, lengths: Sequence[int]) -> list[tuple[str, str]]:
    """Pairs of different texts, always the same and in no order; each of two like lengths."""
    texts = [
        text_of_length(tokenizer, tokens, "query: ", seed=i) + f" {i}"
        for i, tokens in enumerate(lengths)
    ]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    random.Random(0).shuffle(pairs)
    return pairs


def default_dtype(name: str, device: str) -> str:
    """What an engine computes in if nobody says it; on a GPU both in bfloat16."""
    if name != "e5core":
        return "float32" if device == "cpu" else "bfloat16"
    import torch

    encoder = Encoder(EncoderConfig("bert", 8, 8, 1, 2, 8, 8, 0, 2, 1e-12))
    return str(encoder.kernels.fastest_training_dtype(torch.device(device))).removeprefix("torch.")


def measure(
    name: str,
    folder: Path,
    pairs: list[tuple[str, str]],
    options: argparse.Namespace,
    dtype: str,
) -> tuple[float, float]:
    """Seconds of a step, and the most memory in MB, of an engine in a process of its own."""
    ours, theirs = get_context("spawn").Pipe()
    given = (theirs, name, folder, pairs, options, dtype)
    process = get_context("spawn").Process(target=work, args=given)
    process.start()
    theirs.close()
    try:
        answer: tuple[float, float] = ours.recv()
    except EOFError:
        raise ValueError(f"the process of {name} died") from None
    process.join()
    return answer


def work(
    connection: Connection,
    name: str,
    folder: Path,
    pairs: list[tuple[str, str]],
    options: argparse.Namespace,
    dtype: str,
) -> None:
    """A worker's life."""
    with tempfile.TemporaryDirectory() as scratch:
        if options.device == "cuda":
            provide_flash_attn(Path(scratch))
        import torch

        torch.set_num_threads(options.threads)
        seconds = ENGINES[name](folder, pairs, options.steps, dtype, options.device)
        on_gpu = options.device == "cuda"
        peak = torch.cuda.max_memory_allocated() / 1e6 if on_gpu else peak_megabytes()
        connection.send((seconds, peak))


def train_e5core(
    folder: Path, pairs: list[tuple[str, str]], steps: int, dtype: str, device: str
) -> float:
    """Steps of the public `train`, as its log times them; it has warmed up on a chunk before."""
    import json

    from e5core.train import train

    with tempfile.TemporaryDirectory() as scratch:
        data, output = Path(scratch) / "pairs.jsonl", Path(scratch) / "out"
        rows = [{"query": query, "pos": [passage]} for query, passage in pairs]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        train(
            folder, data, output, batch_size=len(pairs), steps=steps, prompts="e5",
            save_every=steps, show_progress=False, precision=dtype, device=device,
            token_table="frozen",
        )  # fmt: skip
        lines = (output / "training.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    return statistics.median(line["tokens"] / line["tokens_per_second"] for line in told)


def train_sentence_transformers(
    folder: Path,
    pairs: list[tuple[str, str]],
    steps: int,
    dtype: str,
    device: str,
    attention: str = "sdpa",
) -> float:
    """Steps of their loss with AdamW, without their trainer; a smaller batch warms up."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.util import batch_to_device

    if device == "cuda":
        from exports import peer_folder

        settings = {"attn_implementation": attention}
        model = SentenceTransformer(str(peer_folder(folder)), device=device, model_kwargs=settings)
        model.max_seq_length = LIMIT
    else:
        model = SentenceTransformer(str(folder), device="cpu")
    model[0].auto_model.embeddings.word_embeddings.requires_grad_(False)
    loss = CachedMultipleNegativesRankingLoss(
        model, scale=1 / TEMPERATURE, mini_batch_size=MINI_BATCH[device]
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    model.train()

    def step(some: list[tuple[str, str]]) -> float:
        start = time.perf_counter()
        sides = zip(*some, strict=True)
        texts: list[Any] = [
            [prefix + text for text in side]
            for prefix, side in zip(("query: ", "passage: "), sides, strict=True)
        ]
        features = [batch_to_device(model.preprocess(side), model.device) for side in texts]
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss(features, torch.empty(0)).backward()  # which encodes once more
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    step(pairs[: MINI_BATCH[device]])
    return statistics.median(step(pairs) for _ in range(steps))


THEIRS, UNPADDED = "sentence-transformers", "sentence-transformers unpadded"
ENGINES = {
    "e5core": train_e5core,
    THEIRS: train_sentence_transformers,
    UNPADDED: partial(train_sentence_transformers, attention="flash_attention_2"),  # on a GPU
}


def bars(figures: dict[str, dict[str, float]]) -> list[str]:
    """Lines "held" or "missed": what e5core set out to reach."""
    lines = []
    ours, theirs = figures.get("e5core"), figures.get(UNPADDED) or figures.get(THEIRS)
    if ours:
        lines.append(verdict("share of the ceiling", ours["share"], SHARE))
    if ours and theirs:
        lines.append(verdict("tokens/s : theirs", ours["speed"] / theirs["speed"], SPEED))
        memory = ours["peak_mb"] / theirs["peak_mb"]
        lines.append(verdict("peak memory : theirs", memory, MEMORY, at_most=True))
    return lines


if __name__ == "__main__":
    sys.exit(main())
