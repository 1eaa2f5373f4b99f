"""Which prefixes a model takes: by its id, by its files, by what it was made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e5core.checkpoint.contents import ADAPTER_FILE, PROMPTS_FILE, Contents
from e5core.formats.files import read_json_object, write_json
from e5core.prompts import E5_INSTRUCT_PROMPTS, E5_PROMPTS, NO_PROMPTS

# The models that their authors publish under these hub ids were trained with these prefixes.
PROMPTS_BY_MODEL = {
    "intfloat/multilingual-e5-small": E5_PROMPTS,
    "intfloat/multilingual-e5-base": E5_PROMPTS,
    "intfloat/multilingual-e5-large": E5_PROMPTS,
    "intfloat/multilingual-e5-large-instruct": E5_INSTRUCT_PROMPTS,
}

# Models with this encoder and tokenizer whose authors say that their texts need no prefix.
# Source: their cards on the hub.
WITHOUT_PROMPTS = {
    "baai/bge-m3",
    "baai/bge-m3-retromae",
    "baai/bge-m3-unsupervised",
    "ibm-granite/granite-embedding-107m-multilingual",
    "ibm-granite/granite-embedding-278m-multilingual",
    "sentence-transformers/paraphrase-multilingual-minilm-l12-v2",
    "sentence-transformers/paraphrase-multilingual-mpnet-base-v2",
    "sentence-transformers/paraphrase-xlm-r-multilingual-v1",
    "sentence-transformers/stsb-xlm-r-multilingual",
}
_WITHOUT_PROMPTS_NAMES = {name.rsplit("/", 1)[-1] for name in WITHOUT_PROMPTS}

# What sentence-transformers calls a passage, in the order in which its encode_document looks.
PASSAGE_NAMES = ("document", "passage", "corpus")

# What sentence-transformers 5 and later save where nobody has set a prompt.
UNCHOSEN = {"query", "document"}


@dataclass(frozen=True)
class Prompts:
    """The prompts of a model.

    known    of "query" and "passage"; None if nothing tells which texts take which
    named    all that the folder holds, under its names
    default  the name of the one that sentence-transformers puts where it is given none
    """

    known: dict[str, str] | None
    named: dict[str, str] = field(default_factory=dict)
    default: str | None = None


def find_prompts(contents: Contents, name: str) -> Prompts:
    """The prompts of a model in a folder.

    name  the hub id or the folder as the caller named it

    The published ids count first, then what the folder says in
    config_sentence_transformers.json, then a name that says multilingual-e5, or one of a model
    that is known to need no prefix: the model's own, or that of the base model that the model
    card or an adapter names. A sentence-transformers folder that has no list of prompts uses none,
    as bge-m3 does; one with a list of empty ones is what sentence-transformers saves where nobody
    has chosen. Where nothing tells, nothing is known: guessing would give silently worse vectors.
    """
    folder, settings = contents.folder, contents.objects.get(PROMPTS_FILE)
    named = _named(folder / PROMPTS_FILE, (settings or {}).get("prompts"))
    default = (settings or {}).get("default_prompt_name")
    if default is not None and default not in named:
        raise ValueError(
            f"{folder / PROMPTS_FILE}: default_prompt_name is {default!r}, the prompts are "
            f"{sorted(named)}"
        )
    if name in PROMPTS_BY_MODEL:
        return Prompts(dict(PROMPTS_BY_MODEL[name]), named, default)
    if any(named.values()) or named.keys() - UNCHOSEN:
        return Prompts(_by_input_type(named), named, default)
    candidates = (name, folder.resolve().name, *base_models(contents))
    known = next(filter(None, map(by_name, candidates)), None)
    listed = settings is not None or contents.modules is not None
    if known is None and listed and not named:
        known = dict(NO_PROMPTS)
    return Prompts(known, named, default)


def by_name(name: str) -> dict[str, str] | None:
    """The prompts that an id, or a folder called like one, is known to take."""
    if "multilingual-e5-" in name.lower():
        return dict(E5_INSTRUCT_PROMPTS if "instruct" in name.lower() else E5_PROMPTS)
    if name.lower().rstrip("/").rsplit("/", 1)[-1] in _WITHOUT_PROMPTS_NAMES:
        return dict(NO_PROMPTS)
    return None


def base_models(contents: Contents) -> list[str]:
    """The models that a folder's adapter and its model card say it was made from."""
    adapter = contents.objects.get(ADAPTER_FILE)
    found = [] if adapter is None else [str(adapter.get("base_model_name_or_path"))]
    return found + _base_models_of_card(contents.card)


def _base_models_of_card(card: str) -> list[str]:
    """`base_model` of a card's YAML, a name or a list of them; other YAML is passed over."""
    lines = card.splitlines()
    if not lines or lines[0].strip() != "---":
        return []
    found: list[str] = []
    inside = False
    for line in lines[1:]:
        if line.strip() == "---":
            break
        key, colon, value = line.partition(":")
        if colon and key == "base_model":
            inside = not value.strip()
            found += value.strip().strip("[]").split(",") if value.strip() else []
        elif inside and line.lstrip().startswith("- "):
            found.append(line.lstrip()[2:])
        elif line[:1].strip():  # the next key
            inside = False
    return [name.strip().strip("'\"") for name in found]


def _named(path: Path, prompts: Any) -> dict[str, str]:
    if not prompts:
        return {}
    if not isinstance(prompts, dict):
        raise ValueError(f"{path}: prompts is {prompts!r}, expected an object")
    for name, prompt in prompts.items():
        if prompt is not None and not isinstance(prompt, str):
            raise ValueError(f"{path}: the prompt {name!r} is {prompt!r}, expected a string")
    return {name: prompt or "" for name, prompt in prompts.items()}


def _by_input_type(named: Mapping[str, str]) -> dict[str, str] | None:
    """The prompts of queries and passages; None where names of other tasks leave them open."""
    passages = {named[name] for name in PASSAGE_NAMES if named.get(name)}
    query = named.get("query", "")
    if len(passages) > 1:
        return None
    if not query and not passages and not set(named) <= {"query", *PASSAGE_NAMES}:
        return None
    return {"query": query, "passage": passages.pop() if passages else ""}


def write_prompts(folder: Path, prompts: Mapping[str, str] | None) -> None:
    """Write known prompts into a folder without any: only e5core knows them by a model's name."""
    path = folder / PROMPTS_FILE
    content = read_json_object(path) if path.is_file() else {}
    said = _named(path, content.get("prompts"))
    if prompts and not any(said.values()) and not said.keys() - UNCHOSEN:
        write_json(path, {**content, "prompts": {**said, **with_document(prompts)}})


def with_document(prompts: Mapping[str, str]) -> dict[str, str]:
    """The prompts of queries and passages under all names that sentence-transformers looks for.

    Its encode_document takes "document" before "passage", and is given an empty one if there is
    none.
    """
    return {**prompts, "document": prompts["passage"]}
