"""Train a model on rows of a query, its positives and its negatives. Stopped, the command goes on.

    e5core train --model intfloat/multilingual-e5-small --data pairs.jsonl --output my-e5

A row of --data is an object with the fields query, pos (texts that answer it) and, where there
are any, neg, pos_scores and neg_scores. The prefixes are the model's own.
"""

from argparse import Namespace
from dataclasses import fields
from pathlib import Path

from e5core.cli.options import add_model_options, load_options
from e5core.cli.program import Parser
from e5core.train import Settings, train
from e5core.train.log import describe_figures
from e5core.train.state import STATE_FILE, state_folder

PRECISIONS = ("float32", "bfloat16", "float16", "float64")


def add_arguments(parser: Parser) -> None:
    add_model_options(parser)
    add_files(parser)
    add_settings(parser)
    parser.set_defaults(run=run, hint=what_is_kept)


def add_files(parser: Parser) -> None:
    """What is read and written."""
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="FILE", help=".jsonl (.gz, …), .parquet"
    )
    parser.add_argument("--output", required=True, type=Path, help="the folder of the result")
    parser.add_argument("--reranker", action="store_true", help="train a cross-encoder")
    parser.add_argument(
        "--evaluate", metavar="FILE", help="held-out rows, ranked meanwhile; the best is kept"
    )
    parser.add_argument("--tensorboard", metavar="FOLDER", help="write TensorBoard's files there")
    parser.add_argument(
        "--adapter", metavar="FOLDER", help="write --lora's updates alone there, as peft does"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--restart", action="store_true", help="begin anew over a stopped run")
    parser.add_argument("--force", action="store_true", help="replace an output that is there")


def add_settings(parser: Parser) -> None:
    """A flag for each of Settings."""

    def add(name: str, what: type, help_: str, **more: object) -> None:
        flag = "--" + name.replace("_", "-")
        default = getattr(Settings, name)
        shown = "" if default is None else " (default: %(default)s)"
        parser.add_argument(flag, type=what, default=default, help=help_ + shown, **more)  # type: ignore[arg-type]

    add("epochs", int, "how often each example is seen")
    add("steps", int, "in place of epochs")
    add("batch_size", int, "examples that the loss sees; memory does not grow with it")
    add("negatives", int, "hard negatives a query")
    add("learning_rate", float, "the highest (default: 1e-4 small, 6e-5 base, 3e-5 large)")
    add("warmup", float, "steps, or a share of all steps")
    add("weight_decay", float, "of the linears' matrices")
    add("clip", float, "the largest norm of the gradient, 0 for none")
    add("temperature", float, "what cosines are divided by")
    parser.add_argument(
        "--token-table",
        choices=("frozen", "rows", "dense"),
        help="what of it is trained: nothing, rows that occur, all (default: frozen on a CPU)",
    )
    add("guide", str, "a model; what it ranks above a positive is no negative")
    add("guide_margin", float, "how far below the positive that begins")
    add("teacher_weight", float, "weight of the distillation from pos_scores and neg_scores")
    add("contrastive_weight", float, "weight of the contrastive loss")
    add("teacher_temperature", float, "what the teacher's logits are divided by")
    add("r_drop", float, "weight of R-Drop, of rerankers alone")
    add("lora", int, "rank of low-rank updates in place of whole matrices, 0 for none")
    add("keep", float, "share of the start's weights in the result (default: 0.5, rerankers 0)")
    add("dropout", float, "in place of the model's own")
    add("chunk_tokens", int, "tokens whose graph is in memory at a time")
    add("seed", int, "of everything that is drawn")
    add("save_every", int, "steps after which all is safe on the disk")
    add("evaluate_every", int, "steps; without it once an epoch")
    parser.add_argument(
        "--matryoshka", type=int, nargs="+", default=(), help="sizes of vectors to train too"
    )
    parser.add_argument(
        "--symmetric", action="store_true", help="the query prefix on both sides, both directions"
    )
    parser.add_argument("--mixed", action="store_true", help="fill a batch from several files")


def run(options: Namespace) -> int:
    loading = load_options(options)
    dtype = str(loading.dtype)
    if dtype not in ("auto", *PRECISIONS):
        raise ValueError(f"--dtype is {dtype}, training computes in {', '.join(PRECISIONS)}")
    settings = {
        field.name: getattr(options, field.name)
        for field in fields(Settings)
        if field.name in options
    }
    settings["matryoshka"] = tuple(options.matryoshka)
    load = {name: value for name, value in vars(loading).items() if name != "dtype"}
    summary = train(
        options.model,
        options.data,
        options.output,
        reranker=options.reranker,
        evaluate=options.evaluate,
        dry_run=options.dry_run,
        restart=options.restart,
        force=options.force,
        tensorboard=options.tensorboard,
        adapter=options.adapter,
        precision=None if dtype == "auto" else dtype,
        **settings,
        **load,
    )
    if summary.output is not None:
        held = ""
        if summary.before:
            held = f"; {describe_figures(summary.before)} before, {describe_figures(summary.after)}"
            held += f" after step {summary.best_step}"
        print(f"{summary.output}: {summary.steps} steps, {summary.seconds:.1f} s{held}")
    return 0


def what_is_kept(options: Namespace, error: BaseException) -> str:
    """Say where a run that was interrupted has left its state."""
    kept = state_folder(options.output)
    # A ValueError asks for another command, or other input.
    if isinstance(error, ValueError) or not (kept / STATE_FILE).is_file():
        return ""
    return f"; what was reached is in {kept}, the same command goes on from there"
