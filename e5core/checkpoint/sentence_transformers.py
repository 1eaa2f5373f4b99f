"""The files by which sentence-transformers, and e5core, know a model's steps.

modules.json                        the steps: Transformer, Pooling, Dense, Normalize
1_Pooling/config.json               the pooling, in the folder that modules.json names
2_Dense/                            a linear layer behind it, see dense.py
sentence_bert_config.json           the limit, in tokens, read in limits.py
config_sentence_transformers.json   the prompts, read in prompts.py; of a cross-encoder what
                                    follows its logits
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from e5core.checkpoint.contents import (
    MODULES_FILE,
    POOLING_FOLDER,
    PROMPTS_FILE,
    TRANSFORMER_FILES,
    Contents,
    kind_of,
)
from e5core.checkpoint.dense import Dense, read_dense
from e5core.checkpoint.headers import WEIGHTS_FILE
from e5core.checkpoint.prompts import with_document
from e5core.config import CONFIG_FILE
from e5core.formats.files import read_json_object, write_json
from e5core.pooling import POOLINGS

LIMIT_FILE = TRANSFORMER_FILES[0]
STEPS = (("", "Transformer"), (POOLING_FOLDER, "Pooling"))

# A mode is named by one flag a mode, or (since sentence-transformers 5) by `pooling_mode`. The
# flags are what is written: newer releases take them too.
POOLING_FLAGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}


@dataclass(frozen=True)
class Steps:
    """The steps of a model, from modules.json and the configs of its steps.

    pooling       "mean" or "cls"
    normalizes    whether the vectors have unit length
    dense         the steps Dense, in their order
    truncate_dim  numbers of a vector that are kept, None for all
    activation    the class of torch that a CrossEncoder applies to its logits
    """

    pooling: str
    normalizes: bool
    dense: tuple[Dense, ...]
    truncate_dim: int | None
    activation: str | None


def read_steps(contents: Contents, hidden_size: int) -> Steps:
    """The steps that a folder applies to the token states, hidden_size numbers each.

    A folder that names no pooling gets E5's "mean". Vectors get unit length only if the folder
    has the step Normalize. Raises ValueError if it asks for a pooling, or for a further step,
    that is not implemented, or if a step Dense takes other vectors than it is given.
    """
    pooling, normalizes = contents.steps[POOLING_FOLDER], False
    dense: list[Dense] = []
    for entry in contents.modules or ():
        kind = kind_of(entry)
        if kind == "Pooling":
            pooling = contents.step(entry)
            if CONFIG_FILE not in pooling.objects:
                raise ValueError(
                    f"{contents.folder / MODULES_FILE} has the step 'Pooling', but there is no "
                    f"{pooling.folder / CONFIG_FILE}; download the whole model again"
                )
        elif kind == "Normalize":
            normalizes = True
        elif kind == "Dense":
            dense.append(read_dense(contents.step(entry), normalizes))
            normalizes = False
        elif kind not in ("Transformer", "Dropout"):  # the latter does nothing but in training
            raise ValueError(
                f"{contents.folder / MODULES_FILE} has the step {kind!r}, expected Transformer, "
                "Pooling, Dense or Normalize"
            )
    _check_order(contents)
    _check_widths(dense, hidden_size)
    return Steps(
        _pooling(pooling),
        normalizes,
        tuple(dense),
        _truncate_dim(contents),
        _activation(contents),
    )


def _check_order(contents: Contents) -> None:
    """Raise ValueError unless the encoder comes first, the pooling next, and both once."""
    kinds = [kind_of(entry) for entry in contents.modules or ()]
    trunk = [kind for kind in kinds if kind != "Dropout"][:2]
    if kinds and (
        trunk not in (["Transformer"], ["Transformer", "Pooling"])
        or kinds.count("Transformer") + kinds.count("Pooling") != len(trunk)
    ):
        raise ValueError(
            f"{contents.folder / MODULES_FILE} has the steps {', '.join(kinds)}, expected "
            "Transformer, Pooling, and Dense or Normalize behind them"
        )


def _pooling(step: Contents) -> str:
    path, settings = step.folder / CONFIG_FILE, step.objects.get(CONFIG_FILE)
    if settings is None:
        return "mean"
    names = {flag: name for name, flag in POOLING_FLAGS.items()}
    modes = [
        names.get(flag, flag)
        for flag, value in settings.items()
        if flag.startswith("pooling_mode_") and value
    ]
    if "pooling_mode" in settings:
        mode = settings["pooling_mode"]
        modes = [str(mode) for mode in (mode if isinstance(mode, list) else [mode])]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ValueError(f"{path} asks for the pooling {modes}; e5core has {sorted(POOLINGS)}")
    if not settings.get("include_prompt", True):
        raise ValueError(f"{path} leaves the prompt out of pooling; e5core does not implement that")
    return modes[0]


def _check_widths(dense: Sequence[Dense], hidden_size: int) -> None:
    """Raise ValueError unless each step Dense takes as many numbers as it is given."""
    for step in dense:
        if step.in_features != hidden_size:
            raise ValueError(
                f"{step.folder / 'config.json'}: in_features is {step.in_features}, the vectors "
                f"before it have {hidden_size} numbers"
            )
        hidden_size = step.out_features


def _truncate_dim(contents: Contents) -> int | None:
    """The numbers of a vector that are kept by config_sentence_transformers.json; None for all."""
    said = contents.objects.get(PROMPTS_FILE, {}).get("truncate_dim")
    if said is not None and (type(said) is not int or said < 1):
        raise ValueError(
            f"{contents.folder / PROMPTS_FILE}: truncate_dim is {said!r}, expected a whole number "
            "from 1 on"
        )
    return said


def _activation(contents: Contents) -> str | None:
    """The class of torch that a CrossEncoder applies to its logits; None if nothing is said.

    Releases since 6 say it in config_sentence_transformers.json, earlier ones in config.json.
    """
    config = contents.objects.get(CONFIG_FILE, {})
    own = config.get("sentence_transformers")
    for settings in (
        contents.objects.get(PROMPTS_FILE, {}),
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
    """Write the files that the published folders of multilingual E5 have.

    max_length  tokens that a text is cut at
    pooling     "mean" or "cls"
    prompts     of "query" and "passage", None if they are not known

    All other entries of config_sentence_transformers.json stay.
    """
    write_steps(folder, hidden_size, pooling)
    write_json(folder / LIMIT_FILE, {"max_seq_length": max_length, "do_lower_case": False})
    path = folder / PROMPTS_FILE
    settings = read_json_object(path) if path.is_file() else {}
    if prompts is not None:
        settings["prompts"] = {**(settings.get("prompts") or {}), **with_document(prompts)}
    write_json(path, {**settings, "similarity_fn_name": "cosine"})


def write_steps(
    folder: Path,
    hidden_size: int,
    pooling: str,
    normalizes: bool = True,
    dense: Sequence[Dense] = (),
) -> None:
    """Write modules.json and what its steps hold.

    pooling     "mean" or "cls"
    normalizes  whether the vectors get unit length
    dense       steps behind the pooling, which are copied
    """
    steps = list(STEPS[:2])
    for step in dense:
        if step.normalized:
            steps.append((f"{len(steps)}_Normalize", "Normalize"))
        path = f"{len(steps)}_Dense"
        steps.append((path, "Dense"))
        (folder / path).mkdir(exist_ok=True)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(step.folder / name, folder / path / name)
    if normalizes:
        steps.append((f"{len(steps)}_Normalize", "Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(steps)
    ]
    write_json(folder / MODULES_FILE, modules)
    path_of_pooling = folder / POOLING_FOLDER / CONFIG_FILE
    path_of_pooling.parent.mkdir(exist_ok=True)
    flags = {flag: name == pooling for name, flag in POOLING_FLAGS.items()}
    write_json(path_of_pooling, {"word_embedding_dimension": hidden_size, **flags})
