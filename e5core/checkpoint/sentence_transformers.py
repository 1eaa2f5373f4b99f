"""The files by which sentence-transformers, and e5core, know a model's pooling, prompts and limit.

    modules.json                        the steps: Transformer, Pooling, Normalize
    1_Pooling/config.json               the pooling, in the folder that modules.json names
    sentence_bert_config.json           the limit, in tokens
    config_sentence_transformers.json   the prompts; of a cross-encoder what follows its logits

They are read and written here and nowhere else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from e5core.config import CONFIG_FILE
from e5core.formats.files import read_json, read_json_object, write_json
from e5core.pooling import POOLINGS
from e5core.prompts import E5_INSTRUCT_PROMPTS, E5_PROMPTS, PROMPTS_BY_MODEL

MODULES_FILE = "modules.json"
LIMIT_FILE = "sentence_bert_config.json"
PROMPTS_FILE = "config_sentence_transformers.json"
POOLING_FILE = "1_Pooling/config.json"
STEPS = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))

# A mode is named by one flag a mode, or (since sentence-transformers 5) by `pooling_mode`. The
# flags are what is written: newer releases take them too.
POOLING_FLAGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}


@dataclass(frozen=True)
class Steps:
    """What modules.json and the pooling's config say: "mean" or "cls", and a unit length."""

    pooling: str
    normalizes: bool


def read_steps(folder: Path) -> Steps:
    """What a folder does with the token states.

    A folder that says nothing is E5's and gets "mean", and its vectors no unit length. Raises
    ValueError if the folder asks for a pooling, or for a further step, that is not implemented.
    """
    path, modules = folder / POOLING_FILE, folder / MODULES_FILE
    entries = read_json(modules) if modules.is_file() else []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{modules} is not a list of modules")
    kinds = [str(entry.get("type", "")).rsplit(".", 1)[-1] for entry in entries]
    for kind, entry in zip(kinds, entries, strict=True):
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise ValueError(
                f"{modules} has the step {kind!r}, expected Transformer, Pooling or Normalize"
            )
        if kind == "Pooling":
            path = folder / str(entry.get("path", "1_Pooling")) / "config.json"
    return Steps(_read_pooling(path), "Normalize" in kinds)


def _read_pooling(path: Path) -> str:
    if not path.is_file():
        return "mean"
    settings = read_json_object(path)
    names = {flag: name for name, flag in POOLING_FLAGS.items()}
    modes = [
        names.get(flag, flag)
        for flag, value in settings.items()
        if flag.startswith("pooling_mode_") and value
    ]
    if "pooling_mode" in settings:
        modes = [str(settings["pooling_mode"])]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ValueError(f"{path} asks for the pooling {modes}; e5core has {sorted(POOLINGS)}")
    if not settings.get("include_prompt", True):
        raise ValueError(f"{path} leaves the prompt out of pooling; e5core does not implement that")
    return modes[0]


def read_limit(folder: Path) -> int | None:
    """The tokens that a text may have by sentence_bert_config.json; None if nothing is said."""
    path = folder / LIMIT_FILE
    limit = read_json_object(path).get("max_seq_length") if path.is_file() else None
    if limit is not None and not isinstance(limit, int):
        raise ValueError(f"{path}: max_seq_length is {limit!r}, expected a whole number")
    return limit


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
    path = folder / PROMPTS_FILE
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
    return prompts if path.is_file() or (folder / MODULES_FILE).is_file() else None


def read_activation(folder: Path) -> str | None:
    """The class of torch that a CrossEncoder applies to its logits; None if nothing is said.

    Releases since 6 say it in config_sentence_transformers.json, earlier ones in config.json.
    """
    path = folder / PROMPTS_FILE
    config = read_json_object(folder / CONFIG_FILE)
    own = config.get("sentence_transformers")
    for settings in (
        read_json_object(path) if path.is_file() else {},
        own if isinstance(own, dict) else {},
        {"activation_fn": config.get("sbert_ce_default_activation_function")},  # before 4
    ):
        if settings.get("activation_fn") is not None:
            return str(settings["activation_fn"])
    return None


def write_sentence_transformers_files(
    folder: Path,
    hidden_size: int,
    max_length: int,
    pooling: str,
    prompts: Mapping[str, str] | None,
) -> None:
    """Write what the published folders of multilingual E5 hold.

    max_length  tokens that a text is cut at
    pooling     "mean" or "cls"
    prompts     of "query" and "passage", None if they are not known

    What config_sentence_transformers.json says beside prompts stays.
    """
    write_steps(folder, hidden_size, pooling)
    write_json(folder / LIMIT_FILE, {"max_seq_length": max_length, "do_lower_case": False})
    path = folder / PROMPTS_FILE
    settings = read_json_object(path) if path.is_file() else {}
    if prompts is not None:
        # encode_document looks for "document" before "passage", and is given an empty one if
        # there is none.
        settings["prompts"] = {**prompts, "document": prompts["passage"]}
    write_json(path, {**settings, "similarity_fn_name": "cosine"})


def write_steps(folder: Path, hidden_size: int, pooling: str) -> None:
    """Write modules.json, with a unit length at its end, and the pooling's config."""
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(STEPS)
    ]
    write_json(folder / MODULES_FILE, modules)
    path = folder / POOLING_FILE
    path.parent.mkdir(exist_ok=True)
    flags = {flag: name == pooling for name, flag in POOLING_FLAGS.items()}
    write_json(path, {"word_embedding_dimension": hidden_size, **flags})


def write_prompts(folder: Path, prompts: Mapping[str, str] | None) -> None:
    """Say known prompts in a folder that says none: a model's name tells them only to e5core."""
    path = folder / PROMPTS_FILE
    content = read_json_object(path) if path.is_file() else {}
    if prompts and not content.get("prompts"):
        write_json(path, {**content, "prompts": dict(prompts)})
