"""LoRA adapters that peft has saved, merged into the weights they were trained on.

W + scale · up · down, where scale is lora_alpha / r, or lora_alpha / √r with use_rslora.
Source: arXiv:2106.09685 and peft/tuners/lora/layer.py of peft 0.21. Everything beyond LoRA on the
encoder's linears is refused by name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import Any

from e5core.checkpoint.contents import ADAPTER_FILE, Contents
from e5core.checkpoint.headers import (
    INT8,
    STORED_DTYPES,
    CheckpointError,
    LowRank,
    StoredTensor,
    read_tensors,
)
from e5core.checkpoint.names import IGNORED, PREFIXES

WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_WAY_OUT = "merge it first, with peft's merge_and_unload(), and save the whole model"

# What an adapter_config.json may say without changing the sum above: what is done here, what only
# training looks at, and what the names in the weights' file say as well.
_HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "ensure_weight_tying",
    "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "peft_type",
    "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "task_type", "use_rslora",
}  # fmt: skip

# Starts of training that leave the base's weights as they are; PiSSA, LoftQ and others do not.
_STARTS = (None, True, False, "gaussian", "orthogonal")


@dataclass(frozen=True)
class Adapter:
    """An adapter's config, checked.

    folder  where it lies
    base    the model that it was trained on: a folder or a hub id
    revision  of that model on the hub, None for its newest
    """

    folder: Path
    base: str
    revision: str | None
    config: Mapping[str, Any]


def find_adapter(contents: Contents) -> Adapter | None:
    """The adapter in a folder; ValueError for one that is not merged, and for one further down."""
    folder, config = contents.folder, contents.objects.get(ADAPTER_FILE)
    if config is None:
        if deeper := sorted(folder.glob(f"*/{ADAPTER_FILE}")):
            raise ValueError(
                f"{deeper[0].parent} holds an adapter, which does not lie beside the model's "
                f"config.json; {_WAY_OUT}, or move it out of {folder} if it is not wanted"
            )
        return None
    found: dict[str, Any] = {}
    if config.get("peft_type") != "LORA":
        found["peft_type"] = config.get("peft_type")
    if config.get("bias", "none") != "none":
        found["bias"] = config["bias"]
    if config.get("init_lora_weights") not in _STARTS:
        found["init_lora_weights"] = config["init_lora_weights"]
    others = config.keys() - _HARMLESS - {"bias"}
    found |= {key: config[key] for key in sorted(others) if config[key]}
    if found:
        said = ", ".join(f"{key} {value!r:.60}" for key, value in found.items())
        raise ValueError(
            f"{folder / ADAPTER_FILE} asks for {said}, and only plain LoRA is merged here; "
            f"{_WAY_OUT}"
        )
    revision = str(config["revision"]) if config.get("revision") else None
    return Adapter(folder, str(config.get("base_model_name_or_path") or ""), revision, config)


def lies_elsewhere(adapter: Adapter, whole_weights: bool) -> bool:
    """Whether the weights that an adapter is for are those of its base model, not those beside it.

    As in transformers, a base model that can be found counts before weights that lie beside the
    adapter. Raises ValueError where nothing tells whether the adapter is merged into these already.
    """
    base = Path(adapter.base).expanduser()
    named = bool(adapter.base) and base.resolve() != adapter.folder.resolve()
    if named and (base / ADAPTER_FILE).is_file():
        raise ValueError(
            f"{adapter.folder} holds an adapter for {base}, which holds an adapter itself; merge "
            "that one first, with peft's merge_and_unload(), and save the whole model"
        )
    if not whole_weights:
        if not named:
            raise ValueError(
                f"{adapter.folder} holds an adapter and neither weights nor the name of its base "
                f"model (base_model_name_or_path is {adapter.base!r}); {_WAY_OUT}"
            )
        return True
    if named and not base.is_dir():
        raise ValueError(
            f"{adapter.folder} holds whole weights and an adapter for {adapter.base!r}, which is "
            "no folder here, and nothing tells whether the weights have the adapter in them: if "
            f"so, remove {ADAPTER_FILE}; if not, {_WAY_OUT}, or put the adapter in a folder of "
            "its own"
        )
    return named


def merge(adapter: Adapter, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of a model, by published name, as they are with an adapter.

    Tensors that it changes are in float32 or wider, whatever the model is stored in. Raises
    FileNotFoundError if its weights are missing, CheckpointError if they do not fit the model.
    """
    file = adapter.folder / WEIGHTS_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{adapter.folder} has {ADAPTER_FILE} but no {WEIGHTS_FILE}, and pickles are never "
            f"loaded; {_WAY_OUT}"
        )
    pairs: dict[str, dict[str, StoredTensor]] = {}
    for stored in read_tensors(file):
        match = re.fullmatch(r"(.+)\.lora_([AB])(?:\.default)?\.weight", stored.stored_name)
        if match is None or stored.dtype not in STORED_DTYPES:
            raise CheckpointError(
                f"{file} holds {stored.stored_name} in {stored.dtype}, expected lora_A and lora_B "
                f"of linears in {'/'.join(STORED_DTYPES)}; {_WAY_OUT}"
            )
        pairs.setdefault(_module(match[1]), {})[match[2]] = stored
    if not pairs:
        raise CheckpointError(f"{file} holds no tensors; get it again")
    merged = dict(tensors)
    for module, pair in pairs.items():
        name = f"{module}.weight"
        if name in tensors:
            merged[name] = _merged(adapter, file, module, pair, tensors[name])
        elif not name.startswith(tuple(IGNORED)):
            raise CheckpointError(
                f"{file} changes {module}, which is no linear of this model; adapter and model "
                "must come from one training"
            )
    return merged


def _merged(
    adapter: Adapter, file: Path, module: str, pair: Mapping[str, StoredTensor], base: StoredTensor
) -> StoredTensor:
    """A tensor with what the adapter adds to it."""
    if pair.keys() != {"A", "B"}:
        raise CheckpointError(f"{file} has one of lora_A and lora_B for {module}; get it again")
    up, down = pair["B"], pair["A"]
    rank = down.shape[0]
    fits = up.shape == (*base.shape[:1], rank) and down.shape == (rank, *base.shape[1:])
    if not fits or len(base.shape) != 2:
        raise CheckpointError(
            f"{file} has {list(up.shape)} · {list(down.shape)} for {module}, whose weight is "
            f"{list(base.shape)}; adapter and model must come from one training"
        )
    if base.update is not None:
        raise CheckpointError(
            f"{file} changes {module}, which another adapter has changed; {_WAY_OUT}"
        )
    if base.dtype == INT8:
        raise CheckpointError(
            f"{base.file} is in int8, and an adapter is added to what int8 was made from; convert "
            "the merged model"
        )
    if (said := _pattern(adapter.config, "rank_pattern", module, "r")) != rank:
        raise CheckpointError(
            f"{file} has the rank {rank} for {module}, {ADAPTER_FILE} says {said}; get both again"
        )
    alpha = _pattern(adapter.config, "alpha_pattern", module, "lora_alpha")
    scale = alpha / (sqrt(rank) if adapter.config.get("use_rslora") else rank)
    dtype = base.dtype if base.dtype == "F64" else "F32"
    return replace(base, dtype=dtype, update=LowRank(up, down, scale))


def _module(name: str) -> str:
    """The published name of a module that peft and perhaps a task model have put a prefix to."""
    name = name.removeprefix(_PREFIX).removeprefix("model.")
    prefix = next((p for p in PREFIXES if p and name.startswith(p)), "")
    return name.removeprefix(prefix)


def _pattern(config: Mapping[str, Any], patterns: str, module: str, default: str) -> float:
    """A number of a module: the first pattern that ends its name counts, as in peft."""
    try:
        given = (config.get(patterns) or {}).items()
        fitting = (value for key, value in given if re.match(rf"(?:.*\.)?(?:{key})$", module))
        value = next(fitting, config.get(default))
    except (AttributeError, re.error) as error:
        raise ValueError(
            f"{ADAPTER_FILE}: {patterns} is {config[patterns]!r:.60}, expected numbers by patterns "
            f"of names ({error})"
        ) from error
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise ValueError(f"{ADAPTER_FILE}: {default} of {module} is {value!r}, expected a number")
    return value
