"""Ray Data: a stateful callable for `Dataset.map_batches`. Needs ray[data], the extra `ray`.

    rows.map_batches(
        Embedder,
        fn_constructor_kwargs={"model": "intfloat/multilingual-e5-small", "input_type": "passage"},
        compute=ray.data.ActorPoolStrategy(size=4),
        batch_format="pyarrow",  # or "pandas", or none: Ray's default is a dict of arrays
        batch_size=BATCH_ROWS,
    )

scripts/ray_embed.py is a whole program around it. This file imports pyarrow, which Ray Data
stands on, and no ray.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e5core.bulk.engine import EmbedOptions
from e5core.integrations import extra
from e5core.model import E5, InputType, Truncate, Vectors
from e5core.texts.containers import several

with extra("ray", "pyarrow"):
    import pyarrow as pa

# Rows of a call: enough that texts of like length find together, few enough that a worker's
# progress is seen and little is lost with it.
BATCH_ROWS = 1024


class Embedder:
    """Adds a column of vectors to tables of rows; a worker loads the model once."""

    def __init__(
        self,
        model: str | Path,
        *,
        input_type: InputType,
        text_column: str = "text",
        vector_column: str = "vector",
        task: str | None = None,
        truncate: Truncate = "end",
        normalize: bool = True,
        **load: Any,
    ) -> None:
        """Load a model, in the worker.

        model       a folder that every machine sees, or a hub id
        input_type  must be given, as for E5.embed: "passage" for a collection to be searched,
                    "query", or None
        load        LoadOptions, such as dtype

        task, truncate and normalize are those of E5.embed.
        """
        self.model = E5.from_pretrained(model, **load)
        self.options = EmbedOptions(input_type, task, truncate, normalize)
        self.text_column = text_column
        self.vector_column = vector_column

    def __call__(self, rows: Any) -> Any:
        """The rows with `vector_column`, hidden_size float32 in each.

        rows  in any of Ray's batch formats: a pyarrow table gets a column of lists, a pandas frame
              one of arrays, a dict of arrays ("numpy", Ray's default) an array [rows, hidden_size]

        Raises ValueError if there is no `text_column` or a `vector_column` already, and what
        E5.embed raises: TypeError for a row that holds no text, TextError with the indices of
        rows that cannot be embedded. Both count from 0 in these rows.
        """
        if isinstance(rows, Mapping):
            return {**rows, self.vector_column: self._embed(list(rows), rows)}
        if not isinstance(rows, pa.Table):
            vectors = self._embed(list(getattr(rows, "columns", [])), rows)
            return rows.assign(**{self.vector_column: list(vectors)})
        vectors = self._embed(rows.column_names, rows)
        # Every reader of Parquet knows lists; Ray would store an array in a type of its own.
        flat = pa.array(vectors.reshape(-1))
        lists = pa.FixedSizeListArray.from_arrays(flat, self.model.dimension)
        return rows.append_column(self.vector_column, lists)

    def _embed(self, names: list[str], rows: Any) -> Vectors:
        """Vectors [rows, hidden_size] of the text column, if it is among the names."""
        check_columns(names, self.text_column, self.vector_column)
        texts = list(several(rows[self.text_column], f"column {self.text_column!r}"))
        return self.model.embed(texts, show_progress=False, **self.options.of_embed).vectors


def check_columns(names: list[str], text_column: str, vector_column: str) -> None:
    """Raise ValueError unless the one is among the columns and the other is not."""
    if text_column not in names:
        raise ValueError(
            f"there is no column {text_column!r}, the columns are {sorted(names)}; name the one "
            "with the texts"
        )
    if vector_column in names:
        raise ValueError(
            f"there is a column {vector_column!r} already; name another one for the vectors"
        )
