"""The independent side of parity tests: transformers, and its fast tokenizer."""

from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch

from e5core import Encoder
from e5core.checkpoint import tensor_names

transformers = pytest.importorskip("transformers", reason="transformers is the oracle of parity")


def fast_tokenizer(folder: Path, charsmap: Path) -> "transformers.PreTrainedTokenizerBase":
    """The Hugging Face fast tokenizer with the pieces and scores of the same SentencePiece file.

    The vocabulary is put together as transformers' converter for XLM-R does it.
    """
    processor = sentencepiece.SentencePieceProcessor(
        model_file=str(folder / "sentencepiece.bpe.model")
    )
    vocabulary = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    vocabulary += [
        (processor.IdToPiece(i), processor.GetScore(i)) for i in range(3, processor.GetPieceSize())
    ]
    vocabulary.append(("<mask>", 0.0))
    return transformers.XLMRobertaTokenizer(
        vocab=vocabulary, _spm_precompiled_charsmap=charsmap.read_bytes()
    )


def reference_model(encoder: Encoder, attention: str = "eager") -> torch.nn.Module:
    """transformers' model of the same config, holding the very same weight tensors."""
    published = encoder.config.to_dict()
    config = transformers.AutoConfig.for_model(
        **{name: value for name, value in published.items() if name != "architectures"}
    )
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(
            config, attn_implementation=attention, add_pooling_layer=False
        )
    state = encoder.state_dict()
    names = tensor_names(encoder.config)
    model.load_state_dict({name: state[ours] for name, ours in names.items()}, assign=True)
    # Buffers are no part of a state dict; on the meta device they have no values.
    embeddings = model.embeddings
    embeddings.position_ids = torch.arange(embeddings.position_ids.shape[1])[None]
    embeddings.token_type_ids = torch.zeros_like(embeddings.position_ids)
    return model.eval()


def reference_hidden_states(model: torch.nn.Module, ids: list[list[int]]) -> list[torch.Tensor]:
    """The last hidden states [tokens, hidden_size] of each text, from one padded batch."""
    longest = max(map(len, ids))
    # The pad id is the tokenizer's, 1: e5-small's config says 0, which is <s>.
    input_ids = torch.tensor([[*text, *[1] * (longest - len(text))] for text in ids])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in ids])
    with torch.no_grad():
        states = model(input_ids=input_ids, attention_mask=mask).last_hidden_state
    return [row[: len(text)] for row, text in zip(states, ids, strict=True)]


def reference_vectors(
    model: torch.nn.Module, ids: list[list[int]], batch_size: int = 32
) -> np.ndarray:
    """Unit vectors [texts, hidden_size] by mean pooling, as the models' cards compute them."""
    vectors = []
    for start in range(0, len(ids), batch_size):
        for states in reference_hidden_states(model, ids[start : start + batch_size]):
            mean = states.sum(dim=0) / len(states)
            vectors.append((mean / mean.norm()).numpy())
    return np.stack(vectors)
