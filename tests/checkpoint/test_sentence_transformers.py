"""The files by which sentence-transformers knows a model: read, refused, and written."""

import json
from pathlib import Path
from typing import Any

import pytest

from e5core.checkpoint import limits, sentence_transformers
from e5core.checkpoint.contents import read_contents
from e5core.checkpoint.prompts import find_prompts, write_prompts
from e5core.checkpoint.sentence_transformers import Steps, write_sentence_transformers_files
from e5core.prompts import E5_INSTRUCT_PROMPTS, E5_PROMPTS, NO_PROMPTS


def read_prompts(folder: Path, name: str) -> dict[str, str] | None:
    return find_prompts(read_contents(folder), name).known


def read_steps(folder: Path) -> Steps:
    return sentence_transformers.read_steps(read_contents(folder), 24)


def read_limit(folder: Path) -> int | None:
    return limits.read_limit(read_contents(folder))


# ---- modules.json and the pooling


def write(folder: Path, name: str, content: object) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def module(kind: str, path: str = "") -> dict[str, Any]:
    return {"idx": 0, "name": "0", "path": path, "type": f"sentence_transformers.models.{kind}"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_a_folder_says_its_pooling(tmp_path: Path, settings: dict[str, Any], expected: str) -> None:
    write(tmp_path, "1_Pooling/config.json", settings)
    assert read_steps(tmp_path).pooling == expected


def test_a_folder_that_says_nothing_gets_the_mean(tmp_path: Path) -> None:
    assert read_steps(tmp_path).pooling == "mean"


def test_modules_say_where_the_pooling_lies(tmp_path: Path) -> None:
    modules = [module("Transformer"), module("Pooling", "5_Pooling"), module("Normalize")]
    write(tmp_path, "modules.json", modules)
    write(tmp_path, "5_Pooling/config.json", {"pooling_mode_cls_token": True})
    write(tmp_path, "1_Pooling/config.json", {"pooling_mode_mean_tokens": True})
    assert read_steps(tmp_path).pooling == "cls"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "max_tokens"),
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, "lasttoken"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            r"\['mean', 'cls'\]",
        ),
        ("1_Pooling/config.json", {"word_embedding_dimension": 8}, r"asks for the pooling \[\]"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_mean_tokens": True, "include_prompt": False},
            "prompt out of pooling",
        ),
        ("1_Pooling/config.json", [1], "expected an object"),
        ("modules.json", [module("Dense", "2_Dense")], "the step 'Dense'"),
        ("modules.json", {"a": 1}, "not a list of modules"),
        ("modules.json", [1], "not a list of modules"),
    ],
)
def test_what_is_not_implemented_is_refused(
    tmp_path: Path, name: str, content: object, message: str
) -> None:
    write(tmp_path, name, content)
    with pytest.raises(ValueError, match=message):
        read_steps(tmp_path)


@pytest.mark.parametrize("unit", [True, False])
def test_modules_say_whether_vectors_have_unit_length(tmp_path: Path, unit: bool) -> None:
    steps = [module("Transformer"), module("Pooling", "1_Pooling"), module("Normalize")]
    write(tmp_path, "modules.json", steps if unit else steps[:2])
    write(tmp_path, "1_Pooling/config.json", {"pooling_mode": "mean"})
    assert read_steps(tmp_path).normalizes == unit


# ---- prompts


def say(folder: Path, prompts: object) -> None:
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
def test_names_of_the_family(tmp_path: Path, name: str, expected: dict[str, str] | None) -> None:
    assert read_prompts(tmp_path, name) == expected


def test_the_name_of_the_folder_counts_too(tmp_path: Path) -> None:
    folder = tmp_path / "multilingual-e5-base"
    folder.mkdir()
    assert read_prompts(folder, ".") == E5_PROMPTS


def test_what_the_folder_says_counts_before_its_name(tmp_path: Path) -> None:
    say(tmp_path, {"query": "search: ", "document": "text: "})
    found = read_prompts(tmp_path, "somebody/multilingual-e5-tuned")
    assert found == {"query": "search: ", "passage": "text: "}


def test_published_ids_count_before_what_the_folder_says(tmp_path: Path) -> None:
    say(tmp_path, {"query": "Instruct: one fixed task\nQuery: "})
    assert read_prompts(tmp_path, "intfloat/multilingual-e5-large-instruct") == E5_INSTRUCT_PROMPTS


def test_query_prompt_alone_leaves_passages_plain(tmp_path: Path) -> None:
    """As snowflake-arctic-embed-l-v2.0 says it."""
    say(tmp_path, {"query": "query: "})
    assert read_prompts(tmp_path, "s/arctic") == {"query": "query: ", "passage": ""}


@pytest.mark.parametrize("prompts", [{}, None])
def test_sentence_transformers_folder_without_prompts_has_none(
    tmp_path: Path, prompts: object
) -> None:
    """As bge-m3 says it."""
    say(tmp_path, prompts)
    assert read_prompts(tmp_path, "b/bge") == NO_PROMPTS


def test_empty_prompts_that_nobody_chose_are_asked_for(tmp_path: Path) -> None:
    """As sentence-transformers 5 and later save them."""
    say(tmp_path, {"query": "", "document": ""})
    assert read_prompts(tmp_path, "b/bge") is None
    assert read_prompts(tmp_path, "BAAI/bge-m3") == NO_PROMPTS


def test_prompts_of_another_shape(tmp_path: Path) -> None:
    say(tmp_path, ["query: "])
    with pytest.raises(ValueError, match=r"config_sentence_transformers\.json: prompts is"):
        read_prompts(tmp_path, "x")


# ---- the limit


def test_a_folder_says_its_limit(tmp_path: Path) -> None:
    assert read_limit(tmp_path) is None
    write(tmp_path, "sentence_bert_config.json", {"do_lower_case": False})
    assert read_limit(tmp_path) is None
    write(tmp_path, "sentence_bert_config.json", {"max_seq_length": 20})
    assert read_limit(tmp_path) == 20


# ---- writing


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("prompts", [E5_PROMPTS, {"query": "q: ", "passage": ""}, NO_PROMPTS])
def test_what_is_written_is_read_back(
    tmp_path: Path, pooling: str, prompts: dict[str, str]
) -> None:
    say(tmp_path, None)
    write_sentence_transformers_files(tmp_path, 24, 60, pooling, prompts)
    steps = read_steps(tmp_path)
    assert (steps.pooling, steps.normalizes) == (pooling, True)
    assert read_limit(tmp_path) == 60
    assert read_prompts(tmp_path, "x") == prompts


def test_prompts_are_written_where_a_folder_says_none(tmp_path: Path) -> None:
    write_prompts(tmp_path, None)
    assert not list(tmp_path.iterdir())
    write_prompts(tmp_path, E5_PROMPTS)
    assert read_prompts(tmp_path, "x") == E5_PROMPTS
    write_prompts(tmp_path, {"query": "other: ", "passage": ""})
    assert read_prompts(tmp_path, "x") == E5_PROMPTS
