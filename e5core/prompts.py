"""The prefixes that the models were trained with, as data."""

from collections.abc import Mapping

# There is one space after the colon. The prefix is part of the text and is tokenized with it.
# Source: the model cards of intfloat/multilingual-e5-* and arXiv:2402.05672.
E5_PROMPTS = {"query": "query: ", "passage": "passage: "}
E5_INSTRUCT_PROMPTS = {"query": "Instruct: {task}\nQuery: ", "passage": ""}
NO_PROMPTS = {"query": "", "passage": ""}
PROMPTS_BY_NAME: dict[str, dict[str, str]] = {
    "e5": E5_PROMPTS,
    "e5-instruct": E5_INSTRUCT_PROMPTS,
    "none": NO_PROMPTS,
}

INPUT_TYPES = ("query", "passage", None)


def prefix_for(
    prompts: Mapping[str, str] | None, input_type: str | None, task: str | None = None
) -> str:
    """The prefix of a text of this type.

    prompts     prefixes by input type; None if those of the model are not known. `{task}` in a
                prefix stands for the task
    input_type  "query", "passage", or None for no prefix
    task        one sentence that tells an instruct model what the query is for

    Raises ValueError, which says the ways out, if the three do not fit together.
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
            'prompts="e5", "e5-instruct" or "none" (--prompts e5, …) or with {"query": ..., '
            '"passage": ...}, or pass input_type=None (--input-type none)'
        )
    else:
        prefix = prompts[input_type]
    if "{task}" in prefix:
        if task is None:
            raise ValueError(
                "this model's queries start with an instruction; pass task= (--task), for example "
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
    """Return the prompts that a caller gave as a name in PROMPTS_BY_NAME or as both prefixes.

    Raises ValueError if they are neither.
    """
    if isinstance(prompts, str):
        if prompts not in PROMPTS_BY_NAME:
            raise ValueError(f"prompts is {prompts!r}, the names are {', '.join(PROMPTS_BY_NAME)}")
        return dict(PROMPTS_BY_NAME[prompts])
    if set(prompts) != {"query", "passage"} or not all(
        isinstance(prefix, str) for prefix in prompts.values()
    ):
        raise ValueError(f"prompts is {dict(prompts)!r}, expected a str for query and for passage")
    return dict(prompts)
