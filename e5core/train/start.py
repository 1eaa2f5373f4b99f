"""The model that a run starts from, ready to be trained."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from e5core.bulk.journal import model_digests
from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.options import LoadOptions
from e5core.checkpoint.tokenizers import steps_of
from e5core.encoder import ClassificationHead, Encoder
from e5core.formats.sentencepiece import read_charsmap, read_model, read_pieces
from e5core.model import E5
from e5core.prompts import check_prompts
from e5core.reranker import Reranker
from e5core.train.average import Start
from e5core.train.cached import draw_seed
from e5core.train.embedding import EmbeddingTask
from e5core.train.lora import add_low_rank
from e5core.train.optimizer import TokenRows
from e5core.train.ranking import RankingTask
from e5core.train.ranks import local_device
from e5core.train.settings import Settings

Task = EmbeddingTask | RankingTask

# oneDNN keeps what it has compiled for a shape, 1,024 of them unless this variable says otherwise
# when it multiplies first. Those of attention in bfloat16 differ from chunk to chunk, and took
# 220 MB after 120 chunks of two layers (torch 2.13, 2026-11).
KEPT_PRIMITIVES = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128"


def load_task(model: str | Path, settings: Settings, options: LoadOptions, reranker: bool) -> Task:
    """Load a model with its weights on kernels that train it.

    reranker  train a cross-encoder. A model without a head gets a fresh one

    Raises OSError or ValueError as E5.from_pretrained does.
    """
    if options.dtype != "auto":
        raise ValueError(f"dtype is {options.dtype!r}; the arithmetic of training is precision=")
    os.environ.setdefault(*KEPT_PRIMITIVES)
    folder = ModelFolder.open(model, options)
    config = folder.config
    if settings.dropout is not None:
        rate = settings.dropout
        config = replace(config, hidden_dropout=rate, attention_dropout=rate)
        folder = replace(folder, config=config)
    wide = torch.float64 if settings.precision == "float64" else torch.float32
    encoder = folder.load_encoder(wide, local_device(options.device), options.kernels, True)
    device, fastest = encoder.device, encoder.kernels.fastest_training_dtype(encoder.device)
    where = device.type, config.hidden_size, str(fastest).removeprefix("torch.")
    settings = settings.resolved(reranker, *where)
    if reranker:
        task: Task = _ranking_task(folder, encoder, settings, options)
    else:
        task = _embedding_task(folder, encoder, settings, options)
    asked = None if options.device is None else str(options.device)
    told = {"max_length": task.model.max_length, "kernels": options.kernels, "device": asked}
    task.made_from |= {**told, **_digests("model", folder)}
    return task


def _ranking_task(
    folder: ModelFolder, encoder: Encoder, settings: Settings, options: LoadOptions
) -> RankingTask:
    """A model that reads pairs, with its own head or a fresh one."""
    for name in ("prompts", "truncate_dim"):
        if (value := getattr(options, name)) is not None:
            what = "a reranker reads texts as they are and gives scores"
            raise ValueError(f"{name} is {value!r}, but {what}; leave it out")
    head = folder.load_head() if folder.config.num_labels else None
    encoder.config = replace(encoder.config, num_labels=1)
    if head is None:
        with torch.random.fork_rng([]):
            torch.manual_seed(draw_seed(settings.seed))
            head = ClassificationHead(encoder.config)
            head.apply(_initialize)
    head.to(encoder.device, encoder.dtype)
    head.kernels.dtype = encoder.dtype
    scorer = Reranker(encoder, head, folder.load_tokenizer(), max_length=_limit(folder, options))
    return RankingTask(scorer, settings, folder.name)


def _embedding_task(
    folder: ModelFolder, encoder: Encoder, settings: Settings, options: LoadOptions
) -> EmbeddingTask:
    """A model that gives vectors, and its guide if there is to be one."""
    if folder.config.num_labels or folder.dense:
        what = "is a cross-encoder; pass reranker=True (--reranker)"
        if folder.dense:
            what = "has linears behind its pooling, which are not trained here"
        raise ValueError(f"{folder.name} {what}")
    if options.truncate_dim is not None:
        raise ValueError("truncate_dim is given; train sizes with matryoshka= (--matryoshka)")
    model = E5(
        encoder,
        folder.load_tokenizer(),
        pooling=folder.pooling,
        prompts=folder.prompts if options.prompts is None else check_prompts(options.prompts),
        max_length=_limit(folder, options),
    )
    made_from: dict[str, Any] = {"prompts": model.prompts}
    guide = None
    if settings.guide is not None:
        guide, theirs = load_guide(settings.guide, options, folder, model)
        made_from |= _digests("guide", theirs)
    task = EmbeddingTask(model, settings, guide)
    task.made_from = made_from
    return task


def _limit(folder: ModelFolder, options: LoadOptions) -> int:
    return folder.max_length if options.max_length is None else options.max_length


def _digests(whose: str, folder: ModelFolder) -> dict[str, str]:
    """What a run knows a model by: each of its files."""
    return {f"the {whose}'s {name}": digest for name, digest in model_digests(folder).items()}


def load_guide(
    name: str, options: LoadOptions, folder: ModelFolder, model: E5
) -> tuple[E5, ModelFolder]:
    """Load the guide of a model, whose ids it is given, from its folder.

    folder  the model's

    Raises ValueError if it has other prompts, or its tokenizer makes other ids of a text.
    """
    options = replace(options.for_another(), device=model.encoder.device, kernels="auto")
    theirs = ModelFolder.open(name, options)
    guide = E5.from_folder(theirs, options)
    if guide.prompts not in (None, model.prompts):
        raise ValueError(
            f"the guide {name} has the prompts {guide.prompts}, the model {model.prompts}; both "
            "must read a text alike"
        )
    if (limit := guide.config.max_length) < model.max_length:
        raise ValueError(
            f"the guide {name} takes {limit} tokens, the model {model.max_length}; pass "
            f"max_length={limit} (--max-length {limit})"
        )
    files = [file for file in (theirs.tokenizer_file, folder.tokenizer_file) if file is not None]
    if steps_of(guide.tokenizer) != steps_of(model.tokenizer) or not same_pieces(*files):
        raise ValueError(
            f"the guide {name} has another vocabulary than {folder.name}, whose ids mean other "
            "texts to it; take a guide with the same tokenizer"
        )
    return guide, theirs


def same_pieces(one: Path, other: Path) -> bool:
    """Whether two tokenizer files, of either format, hold the same vocabulary and table."""
    ours, theirs = read_model(one), read_model(other)
    if ours == theirs:
        return True
    pieces = [[piece.text for piece in read_pieces(content)] for content in (ours, theirs)]
    return pieces[0] == pieces[1] and read_charsmap(ours) == read_charsmap(theirs)


def choose_trained(task: Task) -> tuple[dict[str, nn.Parameter], Start]:
    """Let gradients flow to what is to be trained, in memory of its own.

    returns  what is trained by name, and the weights of the start

    Weights that stay as they are remain the mapped file.
    """
    if not task.encoder.kernels.trainable:
        raise ValueError(f"the {task.encoder.kernels.name} kernels only infer; leave kernels out")
    settings, table, before = task.settings, task.encoder.embeddings.word, {}
    mode = settings.token_table
    for path, module in task.module.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if module is table and mode == "frozen":
                continue
            trained = not (settings.lora or (module is table and mode == "rows"))
            setattr(module, name, nn.Parameter(parameter.detach().clone(), requires_grad=trained))
            if trained or module is table:
                before[f"{path}.{name}"] = parameter.detach()
    if mode == "rows":
        start = next(weights for name, weights in before.items() if name.endswith(".word.weight"))
        task.rows = TokenRows(table, table.weight.detach(), start)
    if settings.lora:
        add_low_rank(task.encoder, settings.lora, settings.seed)
        if isinstance(task, RankingTask):
            task.model.head.requires_grad_()
        # An update is nothing at the start, so its share of the result is that of its outer matrix.
        updates = task.module.named_parameters()
        before |= {n: torch.zeros_like(p) for n, p in updates if n.endswith(".up")}
    parameters = {name: p for name, p in task.module.named_parameters() if p.requires_grad}
    return parameters, Start(before, settings.keep or 0.0)


def _initialize(module: nn.Module) -> None:
    """A fresh head as BERT's are."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
