"""A bulk job as the tests run it."""

from pathlib import Path
from typing import Any

from e5core.bulk import embed_files


def embed(model: Path, texts: Path, output: Path, **options: Any) -> Any:
    """Small chunks and shards, so that there are many."""
    settings = {"input_type": "query", "chunk_rows": 7, "shard_rows": 20, "show_progress": False}
    return embed_files(model, texts, output, **{**settings, **options})
