"""mteb: its protocols of encoders and of cross-encoders. Needs mteb, the extra `mteb`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from e5core.integrations import extra
from e5core.model import E5, InputType, Vectors
from e5core.reranker import Reranker, Scores
from e5core.texts.containers import several

with extra("mteb", "mteb"):
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ScoringFunction
    from mteb.types import PromptType

SymmetricPrefix = Literal["query", "none"]
SYMMETRIC_PREFIXES = ("query", "none")


class E5Encoder(AbsEncoder):
    """A model that `mteb.evaluate` takes.

    >>> mteb.evaluate(E5Encoder("intfloat/multilingual-e5-small"), tasks)  # doctest: +SKIP

    Documents of a retrieval task get the passage prefix. Its queries get the query prefix, and so
    does every text of a symmetric task, for which mteb names no side. That is the rule of the
    models' cards; mteb's own E5 wrapper leaves texts of symmetric tasks without a prefix since
    version 1.15, which `symmetric_prefix="none"` does too. If a model's query prefix takes a task,
    as that of large-instruct does, it gets the instruction that mteb has for the task.
    """

    def __init__(
        self,
        model_name: str | Path,
        revision: str | None = None,
        *,
        device: str | None = None,
        name: str | None = None,
        symmetric_prefix: SymmetricPrefix = "query",
        **options: Any,
    ) -> None:
        """Load a model.

        model_name  a folder or a hub id
        name        the name that results are stored under, "organisation/model". The default is
                    the hub id, or "local/" and the folder's name
        symmetric_prefix  of the texts of symmetric tasks: "query", or "none"
        options     for E5.from_pretrained
        """
        if symmetric_prefix not in SYMMETRIC_PREFIXES:
            raise ValueError(f"symmetric_prefix is {symmetric_prefix!r}, expected query or none")
        self.symmetric_prefix = symmetric_prefix
        self.model = E5.from_pretrained(model_name, revision=revision, device=device, **options)
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": name or stored_name(model_name),
                "revision": revision or "no_revision_available",
                "n_parameters": self.model.config.num_parameters,
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
            return self.embed(texts, "passage", None, show_progress_bar)
        if prompt_type is None and self.symmetric_prefix == "none":
            return self.embed(texts, None, None, show_progress_bar)
        task = None
        if "{task}" in (self.model.prompts or {}).get("query", ""):
            task = self.get_instruction(task_metadata, prompt_type)
        return self.embed(texts, "query", task, show_progress_bar)

    def embed(
        self, texts: list[str], input_type: InputType, task: str | None, show: bool | None
    ) -> Vectors:
        """Embed texts whose side is known; the arguments are those of E5.embed."""
        return self.model.encode(texts, input_type=input_type, task=task, show_progress=show)


class E5CrossEncoder:
    """A cross-encoder that `mteb.evaluate` takes for tasks of reranking."""

    def __init__(
        self,
        model_name: str | Path,
        revision: str | None = None,
        device: str | None = None,
        *,
        name: str | None = None,
        **options: Any,
    ) -> None:
        """Load a model; the arguments are those of E5Encoder, options for Reranker's."""
        self.model = Reranker.from_pretrained(
            model_name, revision=revision, device=device, **options
        )
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": name or stored_name(model_name),
                "revision": revision or "no_revision_available",
                "n_parameters": self.model.config.num_parameters,
                "max_tokens": self.model.max_length,
                "framework": ["PyTorch"],
            }
        )

    def predict(
        self,
        inputs1: Any,
        inputs2: Any,
        *,
        show_progress_bar: bool | None = None,
        **options: Any,
    ) -> Scores:
        """Score pairs of a query and a document; of a pair that is too long the longer is cut.

        inputs1, inputs2  DataLoaders of as many texts each
        options           ignored: what mteb says of the task, and a `batch_size`

        returns  [pairs] float32, logits
        """
        queries, documents = (
            [text for batch in inputs for text in _texts(batch)] for inputs in (inputs1, inputs2)
        )
        pairs = list(zip(queries, documents, strict=True))
        return self.model.score_pairs(pairs, truncate="longest", show_progress=show_progress_bar)


def stored_name(model_name: str | Path) -> str:
    """The name that results are stored under: the hub id, or "local/" and the folder's name."""
    folder = Path(model_name).expanduser()
    return f"local/{folder.resolve().name}" if folder.is_dir() else str(model_name)


def _texts(batch: Any) -> list[str]:
    """The texts of one batch of a data loader."""
    if not isinstance(batch, Mapping) or "text" not in batch:
        raise TypeError(
            f"inputs holds {batch!r:.80} of type {type(batch).__name__}, expected batches with "
            'the texts under "text", as a DataLoader of mteb gives them; for texts of your own '
            "call encode_query and encode_passage of .model"
        )
    return list(several(batch["text"], 'batch["text"]'))
