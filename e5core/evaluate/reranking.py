"""Retrieval before and after a cross-encoder has scored the best documents anew."""

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

from e5core.bulk.journal import model_digests
from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.options import LoadOptions
from e5core.evaluate.encoder import StoringEncoder, how_it_runs
from e5core.evaluate.results import Results, digest, marked, merged, missing_parts
from e5core.evaluate.run import compute, predictions_of
from e5core.integrations.mteb import E5CrossEncoder


def rerank_task(
    reranker: E5CrossEncoder, task: Any, encoder: StoringEncoder, results: Results, top: int
) -> Any:
    """The TaskResult of a retrieval task whose best documents a cross-encoder has ordered.

    encoder  that has run the task; its predictions are what is reranked
    top      documents a query that are scored
    """
    first_stage = encoder.meta_of(task)
    how = {"first_stage": first_stage.name, **(first_stage.experiment_kwargs or {}), "top": top}
    meta = reranker.mteb_model_meta.model_copy(update={"experiment_kwargs": how})
    made_from = digest([meta.revision, encoder.digest])
    found = results.read(meta, task, made_from)
    missing = missing_parts(found, task)
    if not missing:
        return found
    again = _with_data_of_its_own(task)
    again.convert_to_reranking(predictions_of(results, first_stage, task), top_k=top)
    for split, subset in missing:
        computed = compute(reranker, again, split, [subset])
        found = results.write(meta, merged(found, marked(computed, task, made_from)))
    return found


def open_reranker(model: str | Path, options: LoadOptions) -> E5CrossEncoder:
    """A cross-encoder whose results are stored under the digest of what its scores depend on."""
    reranker = E5CrossEncoder(
        model, options.revision, **{n: v for n, v in vars(options).items() if n not in _LEFT_OUT}
    )
    encoder = reranker.model.encoder
    made_from = {
        "model": model_digests(ModelFolder.open(model, options)),
        "max_length": reranker.model.max_length,
        **how_it_runs(encoder),
    }
    revision = digest(made_from)[:12]
    reranker.mteb_model_meta = reranker.mteb_model_meta.model_copy(update={"revision": revision})
    return reranker


def _with_data_of_its_own(task: Any) -> Any:
    """A task whose splits can be given ranked documents without changing those of the first."""
    again = copy(task)
    again.dataset = {
        subset: {split: dict(task.dataset[subset][split]) for split in task.eval_splits}
        for subset in task.hf_subsets
    }
    return again


def of_retrieval(tasks: Sequence[Any]) -> list[Any]:
    """Those of the tasks that can be reranked."""
    return [task for task in tasks if hasattr(task, "convert_to_reranking")]


_LEFT_OUT = ("revision", "prompts", "truncate_dim")
