"""The weights and the config of a model into a folder, under their published names."""

from dataclasses import replace
from pathlib import Path
from typing import Protocol

from e5core.checkpoint.beside import copy_tokenizer, write_settings
from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.headers import WEIGHTS_FILE
from e5core.checkpoint.names import head_names, task_name, tensor_names
from e5core.checkpoint.pickling import origin
from e5core.config import CONFIG_FILE, EncoderConfig
from e5core.encoder import ClassificationHead, Encoder
from e5core.formats.files import replacing, write_json
from e5core.formats.safetensors import TensorHeader, write_tensors
from e5core.tokenizer import SentencePieceTokenizer


class Model(Protocol):
    """What is seen here of an E5."""

    tokenizer: SentencePieceTokenizer
    prompts: dict[str, str] | None
    max_length: int


def save_checkpoint(
    encoder: Encoder,
    folder: str | Path,
    head: ClassificationHead | None = None,
    *,
    like: "str | Path | Model | None" = None,
) -> None:
    """Write model.safetensors, under the published names, and config.json into a folder.

    head  of a cross-encoder, whose config counts its labels
    like  an E5, a folder or a hub id: its tokenizer, and its pooling, steps, prompts and limit
          where there is no head, are written too. E5, transformers and sentence-transformers
          then load the folder; without them it is for transformers' encoder and load_checkpoint

    The folder is made if it is missing. Weights and config are written in full before either
    takes the place of an older one.
    """
    folder = Path(folder)
    source = None if like is None else _source(like, encoder.config)
    config = encoder.config.to_dict()
    labels = 0 if head is None else head.output.out_features
    if labels != encoder.config.num_labels:
        raise ValueError(
            f"the config counts {encoder.config.num_labels} labels, the head gives {labels}; pass "
            "a cross-encoder's head as head=, and none for an encoder alone"
        )
    if any(parameter.is_meta for parameter in encoder.parameters()):
        raise ValueError(
            "the encoder holds no weights to save: prepare_for_inference gave them to its "
            f"{encoder.kernels.name} kernels; load it with load_checkpoint, which leaves it whole"
        )
    folder.mkdir(parents=True, exist_ok=True)
    parts = [(encoder.state_dict(), tensor_names(encoder.config))]
    if head is not None:
        parts.append((head.state_dict(), head_names(encoder.config)))
    tensors = {
        task_name(published, encoder.config): state[ours]
        for state, names in parts
        for published, ours in names.items()
    }
    headers = {name: TensorHeader(each.dtype, tuple(each.shape)) for name, each in tensors.items()}
    with replacing(folder / CONFIG_FILE) as new_config:
        write_json(new_config, config)
        write_tensors(headers, lambda name: tensors[name].cpu(), folder / WEIGHTS_FILE)
    if source is not None:
        copy_tokenizer(source, folder)
        if head is None:
            write_settings(source, folder, source.prompts)


def _source(like: str | Path | Model, config: EncoderConfig) -> ModelFolder:
    """The folder that is saved along, checked to fit an encoder.

    Raises ValueError if it does not, or if there is none.
    """
    if isinstance(like, str | Path):
        source = ModelFolder.open(like, weights=False)
    else:
        source = origin(like.tokenizer)
        if source is None:
            raise ValueError(
                "like is a model that was put together from its parts; pass the folder of its "
                "tokenizer, like=FOLDER"
            )
        source = replace(source, prompts=like.prompts, max_length=like.max_length)
    source.load_tokenizer().check_rows(config.vocab_size)
    if source.dense and source.config.hidden_size != config.hidden_size:
        raise ValueError(
            f"the steps Dense of {source.name} take {source.config.hidden_size} numbers, the "
            f"encoder gives {config.hidden_size}"
        )
    return replace(source, config=config, max_length=min(source.max_length, config.max_length))
