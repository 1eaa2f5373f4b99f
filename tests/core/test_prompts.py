"""Which prefix a text gets."""

import json

import pytest

from e5core.prompts import (
    E5_INSTRUCT_PROMPTS,
    E5_PROMPTS,
    NO_PROMPTS,
    check_prompts,
    prefix_for,
    read_prompts,
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


def say(folder, prompts):
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({"prompts": prompts}), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("intfloat/multilingual-e5-small", E5_PROMPTS),
        ("intfloat/multilingual-e5-large-instruct", E5_INSTRUCT_PROMPTS),
        ("somebody/multilingual-e5-base-finetuned", E5_PROMPTS),
        ("/data/Multilingual-E5-large-instruct-v2", E5_INSTRUCT_PROMPTS),
        ("somebody/else", None),
    ],
)
def test_names_of_the_family(tmp_path, name, expected):
    assert read_prompts(tmp_path, name) == expected


def test_the_name_of_the_folder_counts_too(tmp_path):
    folder = tmp_path / "multilingual-e5-base"
    folder.mkdir()
    assert read_prompts(folder, ".") == E5_PROMPTS


def test_what_the_folder_says_counts_before_its_name(tmp_path):
    say(tmp_path, {"query": "search: ", "document": "text: "})
    found = read_prompts(tmp_path, "somebody/multilingual-e5-tuned")
    assert found == {"query": "search: ", "passage": "text: "}


def test_published_ids_count_before_what_the_folder_says(tmp_path):
    say(tmp_path, {"query": "Instruct: one fixed task\nQuery: "})
    assert read_prompts(tmp_path, "intfloat/multilingual-e5-large-instruct") == E5_INSTRUCT_PROMPTS


def test_query_prompt_alone_leaves_passages_plain(tmp_path):
    """As snowflake-arctic-embed-l-v2.0 says it."""
    say(tmp_path, {"query": "query: "})
    assert read_prompts(tmp_path, "s/arctic") == {"query": "query: ", "passage": ""}


@pytest.mark.parametrize("prompts", [{}, None, {"query": "", "document": ""}])
def test_sentence_transformers_folder_without_prompts_has_none(tmp_path, prompts):
    """As bge-m3 says it."""
    say(tmp_path, prompts)
    assert read_prompts(tmp_path, "b/bge") == NO_PROMPTS


def test_prompts_of_another_shape(tmp_path):
    say(tmp_path, ["query: "])
    with pytest.raises(ValueError, match=r"config_sentence_transformers\.json: prompts is"):
        read_prompts(tmp_path, "x")
