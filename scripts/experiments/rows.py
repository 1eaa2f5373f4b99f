"""Rows to train on, as files."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines, unless the file holds them.

    A run that goes on knows its data by the time of the files.
    """
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if not file.is_file() or file.read_text("utf-8") != content:
        file.write_text(content, "utf-8")
