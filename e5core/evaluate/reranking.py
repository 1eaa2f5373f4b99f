"""Retrieval before and after a cross-encoder has scored the best documents anew."""

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

from e5core.bulk.journal import model_digests
from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.options import LoadOptions
from e5core.evaluate.results import Results, missing_subsets
from e5core.evaluate.run import compute, predictions_of
from e5core.integrations.mteb import E5CrossEncoder


def rerank_task(
    reranker: E5CrossEncoder, task: Any, first_stage: Any, results: Results, top: int
) -> Any:
    """The TaskResult of a retrieval task whose best documents a cross-encoder has ordered.

    first_stage  the ModelMeta under which the predictions of the search lie
    top          documents a query that are scored
    """
    how = {"first_stage": first_stage.name, **(first_stage.experiment_kwargs or {}), "top": top}
    meta = reranker.mteb_model_meta.model_copy(update={"experiment_kwargs": how})
    before = results.read(meta, task)
    if before is not None and not missing_subsets(before, task):
        return before
    again = _with_data_of_its_own(task)
    again.convert_to_reranking(predictions_of(results, first_stage, task), top_k=top)
    return results.write(meta, compute(reranker, again))


def open_reranker(model: str | Path, options: LoadOptions) -> E5CrossEncoder:
    """A cross-encoder whose results are stored under the digest of its files."""
    digests = model_digests(ModelFolder.open(model, options))
    reranker = E5CrossEncoder(
        model, options.revision, **{n: v for n, v in vars(options).items() if n not in _LEFT_OUT}
    )
    weights = next(digest for name, digest in digests.items() if name.endswith(".safetensors"))
    reranker.mteb_model_meta = reranker.mteb_model_meta.model_copy(
        update={"revision": weights[:12]}
    )
    return reranker


def _with_data_of_its_own(task: Any) -> Any:
    """A task whose splits can be given ranked documents without changing those of the first."""
    again = copy(task)
    again.dataset = {
        subset: {split: dict(part) for split, part in task.dataset[subset].items()}
        for subset in task.hf_subsets
    }
    return again


def of_retrieval(tasks: Sequence[Any]) -> list[Any]:
    """Those of the tasks that can be reranked."""
    return [task for task in tasks if hasattr(task, "convert_to_reranking")]


_LEFT_OUT = ("revision", "prompts", "truncate_dim")
