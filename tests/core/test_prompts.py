"""Which prefix a text gets."""

import pytest

from e5core.prompts import (
    E5_INSTRUCT_PROMPTS,
    E5_PROMPTS,
    NO_PROMPTS,
    check_prompts,
    prefix_for,
)


@pytest.mark.parametrize(
    ("prompts", "input_type", "task", "expected"),
    [
        (E5_PROMPTS, "query", None, "query: "),
        (E5_PROMPTS, "passage", None, "passage: "),
        (E5_PROMPTS, None, None, ""),
        (None, None, None, ""),
        (E5_INSTRUCT_PROMPTS, "query", "Find {x}", "Instruct: Find {x}\nQuery: "),
        (E5_INSTRUCT_PROMPTS, "passage", None, ""),
        (NO_PROMPTS, "query", None, ""),
    ],
)
def test_prefix(prompts, input_type, task, expected):
    assert prefix_for(prompts, input_type, task) == expected


@pytest.mark.parametrize(
    ("prompts", "input_type", "task", "message"),
    [
        (
            E5_PROMPTS,
            "document",
            None,
            "input_type is 'document', expected 'query', 'passage' or None",
        ),
        (E5_PROMPTS, "query", "a task", "takes no instruction; leave task out"),
        (E5_INSTRUCT_PROMPTS, "passage", "a task", "takes no instruction"),
        (E5_INSTRUCT_PROMPTS, None, "a task", "takes no instruction"),
        (E5_INSTRUCT_PROMPTS, "query", None, "pass task="),
        (None, "query", None, 'does not say which prefix a query takes.*prompts="e5"'),
    ],
)
def test_what_does_not_fit_is_an_error(prompts, input_type, task, message):
    with pytest.raises(ValueError, match=message):
        prefix_for(prompts, input_type, task)


def test_callers_prompts():
    assert check_prompts("e5-instruct") == E5_INSTRUCT_PROMPTS
    assert check_prompts({"query": "q ", "passage": ""}) == {"query": "q ", "passage": ""}


@pytest.mark.parametrize(
    "prompts", ["e6", {"query": "q"}, {"query": "q", "passage": None}, {"query": "", "doc": ""}]
)
def test_bad_callers_prompts(prompts):
    with pytest.raises(ValueError, match="prompts is"):
        check_prompts(prompts)
