"""The independent side of parity checks: transformers, and its fast tokenizer.

Importing this raises ModuleNotFoundError where transformers is not installed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece
import torch
import transformers

from e5core import Encoder
from e5core.checkpoint.names import head_names, task_name, tensor_names
from e5core.encoder import ClassificationHead

TOKENIZER_FILE = "sentencepiece.bpe.model"


def quiet() -> None:
    """No progress bars, and no report on the pooler that E5 leaves unused."""
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def fast_tokenizer(folder: Path, charsmap: Path) -> Any:
    """The Hugging Face fast tokenizer with the pieces and scores of the same SentencePiece file.

    folder    with sentencepiece.bpe.model; one that has only tokenizer.json has that read
    charsmap  the normaliser's table, which the SentencePiece file must hold too

    The vocabulary is put together as transformers' converter for XLM-R does it. Raises
    ValueError if the file holds another table: the two would not be the same tokenizer.
    """
    tokenizer_class: Any
    file = folder / TOKENIZER_FILE
    if not file.is_file():
        tokenizer_class = transformers.PreTrainedTokenizerFast
        return tokenizer_class(tokenizer_file=str(folder / "tokenizer.json"))
    table = charsmap.read_bytes()
    if table not in file.read_bytes():
        raise ValueError(
            f"{file} holds another normalisation table than {charsmap.name} ({len(table)} bytes), "
            "the one of XLM-R; replace it by the model's own tokenizer.json to check against that"
        )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    vocabulary = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    vocabulary += [
        (processor.IdToPiece(i), processor.GetScore(i)) for i in range(3, processor.GetPieceSize())
    ]
    vocabulary.append(("<mask>", 0.0))
    tokenizer_class = transformers.XLMRobertaTokenizer
    return tokenizer_class(vocab=vocabulary, _spm_precompiled_charsmap=table)


def load_reference(folder: Path, attention: str = "eager") -> torch.nn.Module:
    """transformers' model in float32 from the files of a folder, by its own reader."""
    model: torch.nn.Module = transformers.AutoModel.from_pretrained(
        folder, attn_implementation=attention, dtype=torch.float32, add_pooling_layer=False
    )
    return model.eval()


def load_classifier(folder: Path, attention: str = "eager") -> torch.nn.Module:
    """transformers' model with its head, in float32 from the files of a folder."""
    auto: Any = transformers.AutoModelForSequenceClassification
    model: torch.nn.Module = auto.from_pretrained(
        folder, attn_implementation=attention, dtype=torch.float32
    )
    return model.eval()


def reference_model(
    encoder: Encoder, attention: str = "eager", head: ClassificationHead | None = None
) -> torch.nn.Module:
    """transformers' model of the same config, holding the very same weight tensors."""
    published = encoder.config.to_dict()
    config = transformers.AutoConfig.for_model(
        **{name: value for name, value in published.items() if name != "architectures"}
    )
    auto: Any = transformers.AutoModel
    options: dict[str, Any] = {"attn_implementation": attention}
    parts = [(encoder.state_dict(), tensor_names(encoder.config))]
    if head is None:
        options["add_pooling_layer"] = False
    else:
        auto = transformers.AutoModelForSequenceClassification
        parts.append((head.state_dict(), head_names(encoder.config)))
    with torch.device("meta"):
        model = auto.from_config(config, **options)
    tensors = {
        task_name(name, encoder.config): state[ours]
        for state, names in parts
        for name, ours in names.items()
    }
    model.load_state_dict(tensors, assign=True)
    # Buffers are no part of a state dict; on the meta device they have no values.
    embeddings = model.base_model.embeddings
    embeddings.position_ids = torch.arange(embeddings.position_ids.shape[1])[None]
    embeddings.token_type_ids = torch.zeros_like(embeddings.position_ids)
    reference: torch.nn.Module = model.eval()
    return reference


def reference_hidden_states(
    model: torch.nn.Module, ids: Sequence[Sequence[int]]
) -> list[torch.Tensor]:
    """The last hidden states [tokens, hidden_size] of each text, from one padded batch."""
    with torch.no_grad():
        states = model(**padded(ids, model.device)).last_hidden_state
    return [row[: len(text)] for row, text in zip(states, ids, strict=True)]


def padded(ids: Sequence[Sequence[int]], device: Any) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask [texts, longest] of a batch."""
    longest = max(map(len, ids))
    # The pad id is the tokenizer's, 1: e5-small's config says 0, which is <s>.
    input_ids = [[*text, *[1] * (longest - len(text))] for text in ids]
    mask = [[1] * len(text) + [0] * (longest - len(text)) for text in ids]
    return {
        "input_ids": torch.tensor(input_ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def pair_ids(fast: Any, pairs: Sequence[tuple[str, str]], max_length: int) -> list[list[int]]:
    """The ids of pairs as the fast tokenizer lays them out, cut by its longest_first.

    No text may be empty: the tokenizer then takes the other one for a text alone.
    """
    options = {"truncation": "longest_first", "max_length": max_length}
    encoded = fast([q for q, _ in pairs], [p for _, p in pairs], **options)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def reference_logits(
    model: torch.nn.Module, ids: Sequence[Sequence[int]], batch_size: int = 32
) -> npt.NDArray[Any]:
    """Logits [pairs, num_labels] in the model's dtype, from padded batches."""
    logits = []
    for start in range(0, len(ids), batch_size):
        with torch.no_grad():
            logits.append(model(**padded(ids[start : start + batch_size], model.device)).logits)
    return torch.cat(logits).cpu().numpy()


def reference_vectors(
    model: torch.nn.Module,
    ids: Sequence[Sequence[int]],
    batch_size: int = 32,
    pooling: str = "mean",
) -> npt.NDArray[np.float32]:
    """Unit vectors [texts, hidden_size], as the models' cards compute them.

    pooling  "mean", or "cls" for the first token's state
    """
    vectors = []
    for start in range(0, len(ids), batch_size):
        for states in reference_hidden_states(model, ids[start : start + batch_size]):
            pooled = states[0] if pooling == "cls" else states.sum(dim=0) / len(states)
            vectors.append((pooled / pooled.norm()).cpu().numpy())
    return np.stack(vectors)
