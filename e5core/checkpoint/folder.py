"""The content of a model's folder, read once: encoder, tokenizer and settings."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from e5core.checkpoint import hub, load
from e5core.checkpoint.adapters import Adapter, find_adapter, lies_elsewhere, merge
from e5core.checkpoint.contents import PROMPTS_FILE, Contents, read_contents
from e5core.checkpoint.dense import Dense, DensePooling
from e5core.checkpoint.headers import StoredTensor, check_headers, read_headers
from e5core.checkpoint.limits import read_limit
from e5core.checkpoint.names import WORD_EMBEDDINGS
from e5core.checkpoint.options import AUTO, DTYPES, LoadOptions
from e5core.checkpoint.pickling import travels_as
from e5core.checkpoint.prompts import Prompts, find_prompts
from e5core.checkpoint.sentence_transformers import read_steps
from e5core.checkpoint.tokenizers import added_tokens, load_tokenizer
from e5core.config import CONFIG_FILE, EncoderConfig
from e5core.encoder import ClassificationHead, Encoder
from e5core.formats.fast_tokenizer import AddedToken
from e5core.formats.safetensors import DTYPES_BY_NAME
from e5core.kernels import BY_NAME, select, warn_of_missing, why_not
from e5core.tokenizer import SentencePieceTokenizer


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk, as its files describe it.

    path        where the files lie
    name        the hub id or the folder as the caller named it
    config_file  config.json, beside which the tokenizer lies
    pooling     "mean" or "cls"
    dense       linear layers behind the pooling
    prompts     of "query" and "passage", None if nothing tells them
    named_prompts  all that the folder holds, under its names
    default_prompt_name  of the one that sentence-transformers puts where it is given none
    max_length  tokens that a text may have, `<s>` and `</s>` included
    truncate_dim  numbers of a vector that are kept, None for all
    normalizes  whether the vectors have unit length by modules.json
    activation  the class that sentence-transformers applies to a cross-encoder's logits
    tokenizer_file  the first of hub.TOKENIZER_FILES that is there
    lower_case  whether texts are lowered before they are tokenized
    added_tokens  tokens beyond XLM-R's that small files beside the tokenizer name
    tensors     the weights by published name, as the headers of their files describe them; None
                if they were left aside
    base        of an adapter: the model that it was trained on, where that lies elsewhere
    """

    path: Path
    name: str
    config_file: Path
    config: EncoderConfig
    pooling: str
    dense: tuple[Dense, ...]
    prompts: dict[str, str] | None
    named_prompts: Mapping[str, str]
    default_prompt_name: str | None
    max_length: int
    truncate_dim: int | None
    normalizes: bool
    activation: str | None
    tokenizer_file: Path | None
    lower_case: bool
    added_tokens: tuple[AddedToken, ...]
    tensors: Mapping[str, StoredTensor] | None = field(repr=False)
    base: "ModelFolder | None" = field(default=None, repr=False)

    @classmethod
    def open(
        cls, model: str | Path, options: LoadOptions = LoadOptions(), weights: bool = True
    ) -> "ModelFolder":
        """Find a model, on the hub if it is no folder, and read what it says of itself.

        model    a folder, or an id like "intfloat/multilingual-e5-large"
        options  those that say where the model comes from; the others are not looked at
        weights  False leaves them on the hub

        Raises OSError if files are missing, ValueError if they are not what they should be.
        """
        path = hub.resolve(
            model,
            revision=options.revision,
            cache_dir=options.cache_dir,
            token=options.token,
            local_files_only=options.local_files_only,
            weights=weights,
        )
        # Other processes, which pickles of it go to, may work elsewhere.
        folder = cls.read(path.absolute(), str(model), weights, options)
        if folder.prompts is None and not Path(model).expanduser().is_dir():
            hub.fetch_card(str(model), options, path)
            known = find_prompts(read_contents(path), folder.name).known
            folder = replace(folder, prompts=known)
        return folder

    @classmethod
    def read(
        cls,
        path: Path,
        name: str | None = None,
        weights: bool = True,
        options: LoadOptions = LoadOptions(),
    ) -> "ModelFolder":
        """Read a folder; of the weights only the headers, with all their faults in one error.

        name     the hub id that the folder was found by, which may tell the prompts
        weights  False for a folder that has none, or has them in another layout
        options  as for `open`: an adapter's base model may lie elsewhere
        """
        name = str(path) if name is None else name
        contents = read_contents(path)
        inner = contents.transformer
        adapter, published = find_adapter(inner), inner.objects.get(CONFIG_FILE)
        if adapter is not None and lies_elsewhere(adapter, published is not None):
            try:
                base = cls.open(adapter.base, replace(options, revision=adapter.revision), weights)
            except OSError as error:
                raise type(error)(f"the base model of the adapter in {path}: {error}") from error
            folder = cls._from_contents(contents, name, base.config)
            return _with_adapter(_of_adapter(folder, contents, base), adapter)
        if published is None:
            raise FileNotFoundError(
                f"{inner.folder} has no {CONFIG_FILE}: it is no model folder in Hugging Face layout"
            )
        try:
            config = EncoderConfig.from_dict(published)
        except ValueError as error:
            raise ValueError(f"{inner.folder / CONFIG_FILE}: {error}") from error
        folder = cls._from_contents(contents, name, config)
        if weights:
            folder = replace(folder, tensors=read_headers(inner.folder))
            check_headers(folder.tensors or {}, config, inner.folder)
        return folder if adapter is None else _with_adapter(folder, adapter)

    @classmethod
    def _from_contents(cls, contents: Contents, name: str, config: EncoderConfig) -> "ModelFolder":
        """All but the weights."""
        inner = contents.transformer
        steps = read_steps(contents, config.hidden_size)
        limit = read_limit(inner)
        settings = inner.objects.get(inner.transformer_file, {})
        # A cross-encoder's name may tell of E5 too, but it reads texts as they are.
        prompts = Prompts(None, {}, None) if config.num_labels else find_prompts(contents, name)
        files = (inner.folder / file for file in hub.TOKENIZER_FILES)
        return cls(
            contents.folder,
            name,
            inner.folder / CONFIG_FILE,
            config,
            steps.pooling,
            steps.dense,
            prompts.known,
            prompts.named,
            prompts.default,
            # Some folders say 514: they count position rows, which hold only 512 tokens.
            config.max_length if limit is None else min(limit, config.max_length),
            steps.truncate_dim,
            steps.normalizes,
            steps.activation,
            next((file for file in files if file.is_file()), None),
            bool(settings.get("do_lower_case")),
            tuple(added_tokens(inner)),
            None,
        )

    @property
    def stored_dtype(self) -> torch.dtype | None:
        """The dtype of the token table in its file; None if the weights were left aside."""
        if self.tensors is None:
            return None
        return DTYPES_BY_NAME[self.tensors[WORD_EMBEDDINGS].dtype]

    def load_encoder(
        self, dtype: str | torch.dtype = AUTO, device: str | torch.device | None = None,
        kernels: str = AUTO, training: bool = False,
    ) -> Encoder:  # fmt: skip
        """The encoder, ready for inference; the arguments are LoadOptions'.

        training  take kernels that gradients can flow through

        Raises ValueError for a dtype, a device or kernels that cannot be had, CheckpointError
        for weights that are no numbers.
        """
        device = _usable_device(device)
        torch_dtype = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        if dtype == AUTO:
            torch_dtype = self._made_for(device, kernels)
        elif torch_dtype not in DTYPES.values():
            raise ValueError(f"dtype is {dtype!r}, expected {AUTO} or one of {', '.join(DTYPES)}")
        assert torch_dtype is not None
        assert self.tensors is not None, "read with weights=False"
        scores = self.config.num_labels > 0
        chosen = select(kernels, device, torch_dtype, training, scores)
        if kernels == AUTO and not training:
            warn_of_missing(chosen, device)
        encoder = load.load_encoder(self.config, self.tensors, torch_dtype, device, chosen)
        return travels_as(encoder, self, "encoder", dtype, device, kernels, training)

    def load_head(self) -> ClassificationHead:
        """The head of a cross-encoder, in float32 or wider.

        Raises ValueError if the model has none, or one that does not give a single score.
        """
        labels = self.config.num_labels
        if not labels:
            raise ValueError(
                f"{self.name} has no classification head, a reranker has one of 1 label; load an "
                "embedding model with E5.from_pretrained (e5core embed, e5core search)"
            )
        if labels != 1:
            raise ValueError(
                f"{self.name} has a head of {labels} labels, a reranker has one of 1 label; "
                "take a model that was trained to rerank"
            )
        assert self.tensors is not None, "read with weights=False"
        return load.load_head(self.config, self.tensors)

    def check_embeds(self) -> None:
        """ValueError for a cross-encoder, which gives scores and no vectors."""
        if self.config.num_labels:
            way = "load it with Reranker.from_pretrained (e5core rerank)"
            raise ValueError(f"{self.name} is a cross-encoder, whose head scores pairs; {way}")

    def load_pooling(self, device: torch.device) -> str | DensePooling:
        """The way from token states to a vector: a pooling's name, or the pooling and its Dense."""
        return DensePooling(self.pooling, self.dense, device) if self.dense else self.pooling

    def load_tokenizer(self) -> SentencePieceTokenizer:
        """The tokenizer; FileNotFoundError says so if there is none.

        Raises ValueError if it is damaged, or has more ids than the token table has rows.
        """
        if self.tokenizer_file is None:
            raise FileNotFoundError(f"{self.path} has no {' and no '.join(hub.TOKENIZER_FILES)}")
        beside = self.tokenizer_file.parent
        tokenizer = load_tokenizer(beside, self.tokenizer_file, self.lower_case, self.added_tokens)
        try:
            tokenizer.check_rows(self.config.vocab_size)
        except ValueError as error:
            raise ValueError(f"{self.tokenizer_file}: {error}") from None
        return travels_as(tokenizer, self, "tokenizer")

    def _made_for(self, device: torch.device, kernels: str) -> torch.dtype:
        """int8 if the files are in int8 and the kernels that are wanted run it, else float32."""
        if self.stored_dtype == torch.int8:
            wanted = [backend for name, backend in BY_NAME.items() if kernels in ("auto", name)]
            if any(why_not(backend, device, torch.int8) is None for backend in wanted):
                return torch.int8
        return torch.float32


def _of_adapter(folder: ModelFolder, contents: Contents, base: ModelFolder) -> ModelFolder:
    """An adapter's folder with what its base model says in the files that it lacks."""
    inner = contents.transformer
    inherited = ["config_file", "tensors"]
    if contents.modules is None:
        inherited += ["pooling", "dense", "normalizes"]
    if PROMPTS_FILE not in contents.objects:
        inherited += ["named_prompts", "default_prompt_name", "truncate_dim"]
    inherited += [name for name in ("prompts", "activation") if getattr(folder, name) is None]
    if folder.tokenizer_file is None:
        inherited += ["tokenizer_file", "added_tokens"]
    if read_limit(inner) is None:
        inherited.append("max_length")
    if inner.transformer_file not in inner.objects:
        inherited.append("lower_case")
    return replace(folder, base=base, **{name: getattr(base, name) for name in inherited})


def _with_adapter(folder: ModelFolder, adapter: Adapter) -> ModelFolder:
    """A model with an adapter merged into its weights, unless these were left aside."""
    if folder.tensors is None:
        return folder
    return replace(folder, tensors=merge(adapter, folder.tensors))


def _usable_device(device: str | torch.device | None) -> torch.device:
    """The device, if it holds data; ValueError in one sentence if not."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).tolist()  # the meta device holds none
    except (RuntimeError, AssertionError, TypeError) as error:  # the second without CUDA
        reason = re.split(r"\.\s|\n", str(error))[0]  # torch goes on for pages
        raise ValueError(f"device {str(device)!r} cannot be used: {reason}") from None
    return torch.device(device)
