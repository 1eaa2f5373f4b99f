"""The number of tokens that a text may have, from every file that may say it."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e5core.checkpoint.contents import TOKENIZER_CONFIG_FILE, Contents


def read_limit(contents: Contents) -> int | None:
    """The tokens that a text may have by a folder's files; None if they set no limit.

    contents  of the folder where config.json lies

    As in sentence-transformers, the settings of its Transformer step count first and the
    tokenizer's model_max_length second; where neither is there, a tokenizer.json that cuts texts
    by itself. Raises ValueError for what is no number of tokens, and for a folder whose texts
    lose their beginning.
    """
    folder, name = contents.folder, contents.transformer_file
    settings = contents.objects.get(name, {})
    tokenizer = contents.objects.get(TOKENIZER_CONFIG_FILE, {})
    _check_side(tokenizer, folder)
    said: list[tuple[str, Mapping[str, Any], str]] = [
        *(
            (name, inner, "model_max_length")
            for key in ("processor_kwargs", "tokenizer_args")
            if isinstance(inner := settings.get(key), dict)
        ),
        (name, settings, "max_seq_length"),
        (TOKENIZER_CONFIG_FILE, tokenizer, "model_max_length"),
        (TOKENIZER_CONFIG_FILE, tokenizer, "max_len"),  # its older name
    ]
    for file, content, key in said:
        if content.get(key) is not None:
            return _whole(content[key], f"{folder / file}: {key}")
    if (cut := _truncation(folder / "tokenizer.json")) is not None:
        return _whole(cut, f"{folder / 'tokenizer.json'}: truncation")
    return None


def _check_side(tokenizer: Mapping[str, Any], folder: Path) -> None:
    """Raise ValueError if a text that is too long is to lose its beginning."""
    side, path = tokenizer.get("truncation_side"), folder / TOKENIZER_CONFIG_FILE
    if side is None:
        side, path = _truncation(folder / "tokenizer.json", "direction"), folder / "tokenizer.json"
    if side is not None and str(side).lower() != "right":
        raise ValueError(
            f"{path} cuts long texts at the side {side!r}, and e5core cuts off their ends alone; "
            "say 'right' there and cut texts yourself, or let truncate=\"none\" refuse long ones"
        )


def _truncation(path: Path, key: str = "max_length") -> str | None:
    """How a tokenizer.json cuts texts by itself, which it says near its beginning."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.read(4096)
    pattern = rb'"truncation"\s*:\s*\{[^{}]*"%s"\s*:\s*([^\s,}]+)' % key.encode()
    found = re.search(pattern, start)
    return found[1].decode("utf-8", "replace").strip('"') if found else None


def _whole(value: Any, name: str) -> int | None:
    """A number of tokens, however it is written; None for one that is no limit.

    A tokenizer without a limit has one of 1e30 in transformers, which JSON may call Infinity.
    """
    try:
        number = float(value) if isinstance(value, (int, float, str)) else math.nan
    except OverflowError:  # a whole number with more than 308 digits
        number = math.inf
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not number > 0 or (number < 1e18 and number != int(number)):
        raise ValueError(f"{name} is {value!r}, expected a whole number of tokens")
    return int(number) if number < 1e18 else None
