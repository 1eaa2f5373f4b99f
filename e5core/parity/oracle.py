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
from e5core.checkpoint.names import tensor_names

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


def reference_model(encoder: Encoder, attention: str = "eager") -> torch.nn.Module:
    """transformers' model of the same config, holding the very same weight tensors."""
    published = encoder.config.to_dict()
    config = transformers.AutoConfig.for_model(
        **{name: value for name, value in published.items() if name != "architectures"}
    )
    auto: Any = transformers.AutoModel
    with torch.device("meta"):
        model = auto.from_config(config, attn_implementation=attention, add_pooling_layer=False)
    state = encoder.state_dict()
    names = tensor_names(encoder.config)
    model.load_state_dict({name: state[ours] for name, ours in names.items()}, assign=True)
    # Buffers are no part of a state dict; on the meta device they have no values.
    embeddings = model.embeddings
    embeddings.position_ids = torch.arange(embeddings.position_ids.shape[1])[None]
    embeddings.token_type_ids = torch.zeros_like(embeddings.position_ids)
    reference: torch.nn.Module = model.eval()
    return reference


def reference_hidden_states(
    model: torch.nn.Module, ids: Sequence[Sequence[int]]
) -> list[torch.Tensor]:
    """The last hidden states [tokens, hidden_size] of each text, from one padded batch."""
    longest = max(map(len, ids))
    # The pad id is the tokenizer's, 1: e5-small's config says 0, which is <s>.
    input_ids = torch.tensor([[*text, *[1] * (longest - len(text))] for text in ids])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in ids])
    with torch.no_grad():
        states = model(input_ids=input_ids, attention_mask=mask).last_hidden_state
    return [row[: len(text)] for row, text in zip(states, ids, strict=True)]


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
            vectors.append((pooled / pooled.norm()).numpy())
    return np.stack(vectors)
