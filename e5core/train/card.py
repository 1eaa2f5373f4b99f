"""The model card of a result: what it was made from, how, and what was measured."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import e5core
from e5core.train.setup import Run

_USE = """```python
from e5core import {name}

model = {name}.from_pretrained({folder!r})
```"""


def write_card(folder: Path, run: Run, record: Mapping[str, Any]) -> None:
    """Write README.md with the front matter that the hub and sentence-transformers read."""
    reranker, model, name = not run.task.gives_vectors, run.model, run.folder.output.name
    tags = ["sentence-transformers", "cross-encoder" if reranker else "sentence-similarity"]
    task = "text-ranking" if reranker else "sentence-similarity"
    # A folder of this machine is of no use to whoever reads the card.
    base = model if not Path(model).expanduser().is_dir() else Path(model).resolve().name
    front = [
        "---",
        *([f"base_model: {json.dumps(base)}"] if "/" in base else []),
        f"pipeline_tag: {task}",
        f"tags: {json.dumps(tags)}",
        "---",
    ]
    names = ", ".join(Path(file).name for file in run.data.files)
    told = {key: value for key, value in asdict(run.settings).items() if value is not None}
    told["learning_rate"] = record["learning_rate"]
    lines = [
        *front,
        f"# {name}",
        "",
        f"{base}, trained with e5core {e5core.__version__} on {len(run.data.examples):,} examples "
        f"({names}) in {record['steps']:,} steps.",
        "",
        _USE.format(name="Reranker" if reranker else "E5", folder=name),
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in told.items()),
        "",
    ]
    if record["before"]:
        lines += [
            f"Held-out pairs, before and after (the weights of step {record['best_step']}):",
            "",
            "| figure | before | after |",
            "|---|---|---|",
            *(
                f"| {figure} | {before:.4f} | {record['after'][figure]:.4f} |"
                for figure, before in record["before"].items()
            ),
            "",
        ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
