"""Describe a model: its dimensions, what it takes in memory, and what it makes of texts.

Without a model, tell what this machine computes with, and why not with anything faster.
"""

import os
import platform
import warnings
from argparse import Namespace
from pathlib import Path

import torch

import e5core
from e5core import kernels
from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.options import DTYPES
from e5core.cli.options import add_hub_options, load_options
from e5core.cli.program import Parser
from e5core.kernels import threads
from e5core.kernels.native import BY_INSTRUCTIONS, library
from e5core.kernels.onednn import has_amx


def add_arguments(parser: Parser) -> None:
    add_hub_options(parser)
    parser.add_argument("model", nargs="?", help="a folder or a hub id")
    parser.add_argument(
        "--cpu", action="store_true", help="every instruction set that e5core has C++ for"
    )
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    rows = describe_model(options) if options.model else describe_versions()
    rows |= describe_cpu() if options.cpu else {}
    rows |= describe_machine()
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value}")
    return 0


def describe_versions() -> dict[str, str]:
    cpu = torch.backends.cpu.get_cpu_capability()
    return {
        "versions": f"e5core {e5core.__version__}, torch {torch.__version__}",
        "CPU": f"{platform.machine()}, {cpu}, {torch.get_num_threads()} threads",
    }


def describe_cpu() -> dict[str, str]:
    """The threads that the C++ takes, and what it makes of each instruction set."""
    allowed, quota = threads.affinity() or os.cpu_count(), threads.quota()
    granted = "no limit of their time" if quota is None else f"the time of {quota:g}"
    rows = {
        "model of the CPU": model_of_cpu(),
        "threads": f"{threads.thread_count()}; torch is set to {torch.get_num_threads()}, the "
        f"system allows {allowed} of {os.cpu_count()} CPUs and {granted}",
        "AMX": "yes: bfloat16 takes onednn, which uses it" if has_amx() else "no",
    }
    for name in BY_INSTRUCTIONS:
        rows[f"native/{name}"] = library.describe(name)
    return rows


def model_of_cpu(file: Path = Path("/proc/cpuinfo")) -> str:
    """What the CPU calls itself, as far as the system tells."""
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "not known"


def describe_machine() -> dict[str, str]:
    """The kernels that "auto" takes for each dtype, and why none that it prefers."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = {}
    for name, dtype in DTYPES.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what they say stands in the rows
                chosen = kernels.select("auto", device, dtype).label
        except ValueError as error:
            rows[f"kernels in {name}"] = f"none: {error}"
        else:
            rows[f"kernels in {name}"] = kernels.describe(chosen, device, dtype)
    return rows


def describe_model(options: Namespace) -> dict[str, str]:
    folder = ModelFolder.open(options.model, load_options(options), weights=False)
    config = folder.config
    parameters, tokens = config.num_parameters, config.vocab_size * config.hidden_size
    rows = {
        "architecture": f"{config.model_type}, {config.num_hidden_layers} layers",
        "hidden size": f"{config.hidden_size} in {config.num_attention_heads} heads",
        "feed-forward size": f"{config.intermediate_size}",
        "vocabulary": f"{config.vocab_size:,} rows",
        "parameters": f"{parameters:,}, of which {tokens:,} in the token table",
    }
    for name, dtype in DTYPES.items():
        rows[f"memory in {name}"] = f"{parameters * dtype.itemsize / 1e6:,.0f} MB"
    return rows | (describe_head(folder) if config.num_labels else describe_vectors(folder))


def describe_vectors(folder: ModelFolder) -> dict[str, str]:
    """What an embedding model does with a text."""
    rows = {"pooling": " + ".join([folder.pooling, *map(str, folder.dense)])}
    if folder.truncate_dim is not None:
        rows["vectors"] = f"cut to {folder.truncate_dim} numbers, then scaled to unit length"
    for kind in ("query", "passage"):
        known = folder.prompts and repr(folder.prompts[kind])
        rows[f"{kind} prefix"] = known or "not known; say it with --prompts"
    return rows | {"longest text": limit(folder)}


def describe_head(folder: ModelFolder) -> dict[str, str]:
    """What a cross-encoder does with a pair of texts."""
    size, labels = folder.config.hidden_size, folder.config.num_labels
    parameters = size * size + size + labels * size + labels
    use = "scores pairs: Reranker, e5core rerank"
    if labels != 1:
        use = f"a classifier of {labels} labels, which e5core does not run; a reranker has one"
    return {
        "head": f"the first token through {size} to {size}, tanh, {size} to {labels}; "
        f"{parameters:,} parameters more",
        "labels": f"{labels}; {use}",
        "prefixes": "none: a cross-encoder reads texts as they are",
        "longest pair": f"{limit(folder)}; four of them are special",
    }


def limit(folder: ModelFolder) -> str:
    return f"{folder.max_length} tokens; the position table holds {folder.config.max_length}"
