"""The small files of a model's folder, each read once, before anything is made of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e5core.config import CONFIG_FILE
from e5core.formats.files import read_json, read_json_object

MODULES_FILE = "modules.json"
PROMPTS_FILE = "config_sentence_transformers.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
ADDED_TOKENS_FILE = "added_tokens.json"
ADAPTER_FILE = "adapter_config.json"
CARD_FILE = "README.md"
# The settings of sentence-transformers' Transformer step. Older releases named the file after the
# model's type; the first one that is there counts (sentence-transformers 6.2, transformer.py).
TRANSFORMER_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_xlm-roberta_config.json",
)
POOLING_FOLDER = "1_Pooling"  # where a folder without modules.json may still say its pooling

_OBJECT_FILES = (
    CONFIG_FILE,
    PROMPTS_FILE,
    TOKENIZER_CONFIG_FILE,
    ADDED_TOKENS_FILE,
    ADAPTER_FILE,
    *TRANSFORMER_FILES,
)
Object = Mapping[str, Any]  # of JSON


@dataclass(frozen=True)
class Contents:
    """What the small files of a folder hold.

    folder   where they lie
    objects  the JSON objects by the names of their files; those that are there
    modules  the entries of modules.json, None if there is no such file
    steps    the same of the folders that these entries name, by their paths
    card     the text of the model card, "" if there is none
    """

    folder: Path
    objects: Mapping[str, Object]
    modules: list[Object] | None = None
    steps: Mapping[str, "Contents"] = field(default_factory=dict)
    card: str = ""

    @property
    def transformer(self) -> "Contents":
        """The step Transformer, whose folder holds encoder and tokenizer."""
        for entry in self.modules or ():
            if kind_of(entry) == "Transformer":
                return self.step(entry)
        return self

    def step(self, entry: Object) -> "Contents":
        """The folder of an entry of modules.json, often this one."""
        return self.steps.get(str(entry.get("path") or ""), self)

    @property
    def transformer_file(self) -> str:
        """The name of the file with the settings of the Transformer step, there or not."""
        there = (name for name in TRANSFORMER_FILES if name in self.objects)
        return next(there, TRANSFORMER_FILES[0])


def read_contents(folder: Path) -> Contents:
    """Read the small files of a folder, and of the folders that its modules.json names.

    Raises ValueError for a file that is not valid JSON or holds something else than it should.
    """
    file, card = folder / MODULES_FILE, folder / CARD_FILE
    modules = read_json(file) if file.is_file() else None
    if modules is not None and not (
        isinstance(modules, list) and all(isinstance(entry, dict) for entry in modules)
    ):
        raise ValueError(f"{file} is not a list of modules")
    paths = {POOLING_FOLDER, *(_inside(entry, file) for entry in modules or ())}
    return Contents(
        folder,
        _read_objects(folder),
        modules,
        {path: Contents(folder / path, _read_objects(folder / path)) for path in paths if path},
        card.read_text("utf-8-sig", "replace") if card.is_file() else "",
    )


def kind_of(entry: Object) -> str:
    """What a step does, by the last part of its class's name."""
    return str(entry.get("type", "")).rsplit(".", 1)[-1]


def _inside(entry: Object, file: Path) -> str:
    """The path of a step; nothing outside the model's folder is read, whatever it says."""
    path = str(entry.get("path") or "")
    if Path(path).is_absolute() or ".." in Path(path).parts or "\\" in path:
        raise ValueError(f"{file} has a step at {path!r}, expected a folder inside its own")
    return path


def _read_objects(folder: Path) -> dict[str, Object]:
    there = (name for name in _OBJECT_FILES if (folder / name).is_file())
    return {name: read_json_object(folder / name) for name in there}
