"""mteb: its encoder protocol. Needs mteb, the extra `mteb`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e5core.integrations import extra
from e5core.model import E5, Vectors
from e5core.texts.containers import several

with extra("mteb", "mteb"):
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ScoringFunction
    from mteb.types import PromptType


class E5Encoder(AbsEncoder):
    """A model that `mteb.evaluate` takes.

    >>> mteb.evaluate(E5Encoder("intfloat/multilingual-e5-small"), tasks)  # doctest: +SKIP

    Documents of a retrieval task get the passage prefix. Its queries get the query prefix, and so
    does every text of a symmetric task, for which mteb names no side. That is the rule of the
    models' cards; mteb's own E5 wrapper leaves texts of symmetric tasks without a prefix. If a
    model's query prefix takes a task, as that of large-instruct does, it gets the instruction that
    mteb has for the task.
    """

    def __init__(
        self,
        model_name: str | Path,
        revision: str | None = None,
        *,
        device: str | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        """Load a model.

        model_name  a folder or a hub id
        name        the name that results are stored under, "organisation/model". The default is
                    the hub id, or "local/" and the folder's name
        options     for E5.from_pretrained
        """
        self.model = E5.from_pretrained(model_name, revision=revision, device=device, **options)
        if name is None:
            folder = Path(model_name).expanduser()
            name = f"local/{folder.resolve().name}" if folder.is_dir() else str(model_name)
        config = self.model.config
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": name,
                "revision": revision or "no_revision_available",
                "n_parameters": config.num_parameters,
                "max_tokens": self.model.max_length,
                "embed_dim": self.model.dimension,
                "framework": ["PyTorch"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": True,
            }
        )

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        show_progress_bar: bool | None = None,
        **options: Any,
    ) -> Vectors:
        """Embed the texts of a task's data loader.

        inputs   a DataLoader of batches with the texts under "text"
        options  ignored: mteb passes them for other encoders. `batch_size` is among them, but
                 packed batches have a budget of tokens

        returns  [texts, hidden_size] float32, of unit length
        """
        texts = [text for batch in inputs for text in _texts(batch)]
        if prompt_type == PromptType.document:
            return self.model.encode_passage(texts, show_progress=show_progress_bar)
        task = None
        if "{task}" in (self.model.prompts or {}).get("query", ""):
            task = self.get_instruction(task_metadata, prompt_type)
        return self.model.encode_query(texts, task=task, show_progress=show_progress_bar)


def _texts(batch: Any) -> list[str]:
    """The texts of one batch of a data loader."""
    if not isinstance(batch, Mapping) or "text" not in batch:
        raise TypeError(
            f"inputs holds {batch!r:.80} of type {type(batch).__name__}, expected batches with "
            'the texts under "text", as a DataLoader of mteb gives them; for texts of your own '
            "call encode_query and encode_passage of .model"
        )
    return list(several(batch["text"], 'batch["text"]'))
