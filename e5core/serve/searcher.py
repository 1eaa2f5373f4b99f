"""An index that is searched over HTTP."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e5core.prompts import prefix_for
from e5core.serve.models import ServedEmbedder
from e5core.vectors.index import Index


@dataclass(frozen=True)
class Searcher:
    """An index, and the model that made it.

    arguments  those of E5.embed that embed a query to it, as query_model returns them
    """

    index: Index
    path: Path
    served: ServedEmbedder
    arguments: dict[str, Any]

    @property
    def prefix(self) -> str:
        prompts = self.served.model.prompts
        return prefix_for(prompts, self.arguments["input_type"], self.arguments["task"])
