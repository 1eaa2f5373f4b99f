"""Is a model still as good? mteb's tasks, with the published figures of multilingual E5 beside.

    e5core evaluate Tatoeba XQuADRetrieval --model M --data FOLDER --languages deu,fra
    e5core evaluate STSBenchmarkMultilingualSTS --model M --compare-dtype int8
    e5core evaluate --retrieval my-beir-folder --model M --reranker R

Tasks have mteb's names and their data comes from the hub, or with --data from files as their
authors publish them. mteb's result files lie under --output, beside the vectors: the same command
goes on where it was stopped. Needs the extra `mteb`.
"""

import sys
from argparse import Namespace
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.options import AUTO, DTYPES
from e5core.cli.options import add_model_options, load_options
from e5core.cli.program import Parser, check_counts

SYMMETRIC = ("query", "none")
SIZES = ("small", "base", "large", "large-instruct", "none")
RERANKED = 100


def add_arguments(parser: Parser) -> None:
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="a task of mteb")
    add_model_options(parser)
    parser.add_argument("--data", type=Path, help="a folder of files to take the tasks' data from")
    parser.add_argument(
        "--languages", type=_names, default=(), help="such as deu,fra or mteb's names of subsets"
    )
    parser.add_argument("--splits", type=_names, default=(), help="such as test")
    parser.add_argument(
        "--symmetric-prefix",
        choices=SYMMETRIC,
        help="of texts in tasks that have no queries and passages; mteb before 1.15 put query, "
        "later ones none (default: the advice of docs/evaluation.md)",
    )
    parser.add_argument(
        "--published", choices=SIZES, help="the size to compare with (default: by the model's name)"
    )
    own = parser.add_argument_group("your own data")
    own.add_argument("--retrieval", type=Path, help="a folder in BEIR's layout")
    own.add_argument("--pairs", type=Path, help="a file of translations")
    own.add_argument("--similar", type=Path, help="a file of two texts and a grade")
    parser.add_argument("--reranker", help="a cross-encoder that orders what retrieval tasks find")
    parser.add_argument(
        "--rerank-top", type=int, default=RERANKED, help="documents a query (default: %(default)s)"
    )
    parser.add_argument("--compare", metavar="MODEL", help="a second model, against the first")
    parser.add_argument(
        "--compare-dtype",
        choices=(AUTO, *DTYPES),
        help="the second model's dtype (default: --dtype)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("evaluation"), help="a folder (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    from e5core.evaluate.contents import check_counts
    from e5core.evaluate.encoder import StoringEncoder
    from e5core.evaluate.results import Results

    tasks = _open_tasks(options)
    _check(options, tasks)
    for task in tasks:
        for miscount in check_counts(task) if options.data else ():
            print(f"{options.prog}: {miscount}", file=sys.stderr)
    loading, results = load_options(options), Results(options.output)
    given = options.output, options.symmetric_prefix
    with closing(StoringEncoder(options.model, loading, *given)) as encoder:
        found = _measure(options, encoder, tasks, results)
    if options.reranker:
        _rerank(options, encoder, tasks, found, results)
    if options.compare or options.compare_dtype:
        revision = None if options.compare else loading.revision
        dtype = options.compare_dtype or loading.dtype
        other = replace(loading, dtype=dtype, revision=revision)
        second = StoringEncoder(options.compare or options.model, other, *given)
        with closing(second):
            _compare(encoder, second, tasks, found, results)
    return 0


def _check(options: Namespace, tasks: list[Any]) -> None:
    """ValueError or OSError now for what would otherwise end a run after its first hours."""
    from e5core.evaluate.reranking import of_retrieval
    from e5core.integrations.mteb import stored_name

    check_counts(options, "rerank_top")
    if options.reranker and not of_retrieval(tasks):
        raise ValueError("none of the tasks is a retrieval, which --reranker could order anew")
    loading = load_options(options)
    if options.reranker:
        ModelFolder.open(options.reranker, loading).load_head()  # says so if it has none
    if options.compare:
        ModelFolder.open(options.compare, loading).check_embeds()
    same_dtype = options.compare_dtype in (None, options.dtype)
    if options.compare and same_dtype and options.compare != options.model:
        name = stored_name(options.model)
        if stored_name(options.compare) == name:
            raise ValueError(
                f"the results of {options.model} and of {options.compare} would both be stored as "
                f"{name}; rename one of the folders"
            )


def _measure(options: Namespace, encoder: Any, tasks: list[Any], results: Any) -> list[Any]:
    """The first model through all tasks, beside the published figures."""
    from e5core.evaluate.published import size_of
    from e5core.evaluate.run import run_tasks
    from e5core.evaluate.table import print_result

    predictions = bool(options.compare or options.compare_dtype or options.reranker)
    found = run_tasks(encoder, tasks, results, predictions)
    size = options.published or size_of(options.model)
    for task, result in zip(tasks, found, strict=True):
        print_result(task, result, encoder.prefix_of(task), None if size == "none" else size)
    return found


def _open_tasks(options: Namespace) -> list[Any]:
    from e5core.evaluate import own
    from e5core.evaluate.tasks import open_tasks

    tasks = open_tasks(options.tasks, options.data, options.languages, options.splits)
    makers = (
        (options.retrieval, partial(own.retrieval_task, splits=options.splits)),
        (options.pairs, own.pairs_task),
        (options.similar, own.similar_task),
    )
    tasks += [make(path) for path, make in makers if path is not None]
    if not tasks:
        raise ValueError(
            "there is nothing to evaluate; name tasks of mteb, such as Tatoeba, or your own data "
            "with --retrieval, --pairs or --similar"
        )
    if options.languages and not options.tasks:
        raise ValueError("--languages chooses among the subsets of mteb's tasks; yours have none")
    return tasks


def _compare(encoder: Any, second: Any, tasks: list[Any], found: list[Any], results: Any) -> None:
    """The second model through the same tasks, and the differences."""
    from e5core.evaluate.compare import compare
    from e5core.evaluate.run import predictions_of, run_tasks
    from e5core.evaluate.table import print_comparison

    others = run_tasks(second, tasks, results, predictions=True)
    for task, *both in zip(tasks, found, others, strict=True):
        metas = [one.meta_of(task) for one in (encoder, second)]
        files = [predictions_of(results, meta, task) / task.prediction_file_name for meta in metas]
        names = [meta.model_name_with_experiment for meta in metas]
        print_comparison(compare(task, both, files), *names)


def _rerank(
    options: Namespace, encoder: Any, tasks: list[Any], found: list[Any], results: Any
) -> None:
    """Retrieval tasks again, with the best documents scored by a cross-encoder."""
    from e5core.evaluate.reranking import of_retrieval, open_reranker, rerank_task
    from e5core.evaluate.table import print_reranking

    chosen = of_retrieval(tasks)
    reranker = open_reranker(options.reranker, load_options(options).for_another())
    for task, before in zip(tasks, found, strict=True):
        if task in chosen:
            after = rerank_task(reranker, task, encoder, results, options.rerank_top)
            print_reranking(task, before, after, options.rerank_top)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
