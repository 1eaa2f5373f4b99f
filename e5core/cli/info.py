"""Describe a model: its dimensions, what it takes in memory, its pooling and prefixes."""

from argparse import Namespace

from e5core.checkpoint.folder import DTYPES, ModelFolder
from e5core.cli.options import add_hub_options, load_options
from e5core.cli.program import Parser


def add_arguments(parser: Parser) -> None:
    add_hub_options(parser)
    parser.add_argument("model", help="a folder or a hub id")
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
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
    rows["pooling"] = folder.pooling
    for kind in ("query", "passage"):
        known = folder.prompts and repr(folder.prompts[kind])
        rows[f"{kind} prefix"] = known or "not known; say it with --prompts"
    limit, longest = folder.max_length, config.max_length
    rows["longest text"] = f"{limit} tokens; the position table holds {longest}"
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value}")
    return 0
