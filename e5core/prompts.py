"""The prefixes that the models were trained with, as data."""

from collections.abc import Mapping
from pathlib import Path

from e5core.formats.files import read_json_object

# One space after the colon; the prefix is part of the text and tokenized with it.
# Source: the model cards of intfloat/multilingual-e5-* and arXiv:2402.05672.
E5_PROMPTS = {"query": "query: ", "passage": "passage: "}
E5_INSTRUCT_PROMPTS = {"query": "Instruct: {task}\nQuery: ", "passage": ""}
NO_PROMPTS = {"query": "", "passage": ""}
PROMPTS_BY_NAME: dict[str, dict[str, str]] = {
    "e5": E5_PROMPTS,
    "e5-instruct": E5_INSTRUCT_PROMPTS,
    "none": NO_PROMPTS,
}

# What the authors publish under these ids was trained with these prefixes.
PROMPTS_BY_MODEL = {
    "intfloat/multilingual-e5-small": E5_PROMPTS,
    "intfloat/multilingual-e5-base": E5_PROMPTS,
    "intfloat/multilingual-e5-large": E5_PROMPTS,
    "intfloat/multilingual-e5-large-instruct": E5_INSTRUCT_PROMPTS,
}

INPUT_TYPES = ("query", "passage", None)


def prefix_for(
    prompts: Mapping[str, str] | None, input_type: str | None, task: str | None = None
) -> str:
    """The text to put before a text of this type.

    prompts     prefixes by input type, None if the model's are not known; `{task}` in one
                stands for the task
    input_type  "query", "passage", or None for no prefix
    task        one sentence that tells an instruct model what the query is for

    Raises ValueError with the ways out if the three do not fit.
    """
    if input_type not in INPUT_TYPES:
        raise ValueError(
            f"input_type is {input_type!r}, expected 'query', 'passage' or None (no prefix)"
        )
    if input_type is None:
        prefix = ""
    elif prompts is None:
        raise ValueError(
            f"this model does not say which prefix a {input_type} takes; load it with "
            'prompts="e5", "e5-instruct", "none" or {"query": ..., "passage": ...}, '
            "or pass input_type=None"
        )
    else:
        prefix = prompts[input_type]
    if "{task}" in prefix:
        if task is None:
            raise ValueError(
                "this model's queries start with an instruction; pass task=, for example "
                'task="Given a web search query, retrieve relevant passages that answer the query"'
            )
        return prefix.replace("{task}", task)
    if task is not None:
        raise ValueError(
            f"task is given, but input_type {input_type!r} of this model takes no instruction; "
            "leave task out"
        )
    return prefix


def check_prompts(prompts: str | Mapping[str, str]) -> dict[str, str]:
    """Prompts as the caller gives them: a name in PROMPTS_BY_NAME or both prefixes."""
    if isinstance(prompts, str):
        if prompts not in PROMPTS_BY_NAME:
            raise ValueError(f"prompts is {prompts!r}, the names are {', '.join(PROMPTS_BY_NAME)}")
        return dict(PROMPTS_BY_NAME[prompts])
    if set(prompts) != {"query", "passage"} or not all(
        isinstance(prefix, str) for prefix in prompts.values()
    ):
        raise ValueError(f"prompts is {dict(prompts)!r}, expected a str for query and for passage")
    return dict(prompts)


def read_prompts(folder: Path, name: str) -> dict[str, str] | None:
    """The prompts of a model in a folder.

    name  the hub id or the folder as the caller named it

    The published ids count first, then what the folder says in
    config_sentence_transformers.json, then a name that says multilingual-e5. A
    sentence-transformers folder with none of these uses no prefix, as bge-m3 does. Returns
    None if nothing tells: guessing would give silently worse vectors.
    """
    if name in PROMPTS_BY_MODEL:
        return dict(PROMPTS_BY_MODEL[name])
    path = folder / "config_sentence_transformers.json"
    published = read_json_object(path).get("prompts") if path.is_file() else None
    if published and not isinstance(published, dict):
        raise ValueError(f"{path}: prompts is {published!r}, expected an object")
    prompts = {
        "query": str((published or {}).get("query") or ""),
        # sentence-transformers calls a passage a document.
        "passage": str((published or {}).get("passage") or (published or {}).get("document") or ""),
    }
    if any(prompts.values()):
        return prompts
    for candidate in (name, folder.name):
        if "multilingual-e5-" in candidate.lower():
            return dict(E5_INSTRUCT_PROMPTS if "instruct" in candidate.lower() else E5_PROMPTS)
    return prompts if path.is_file() or (folder / "modules.json").is_file() else None
