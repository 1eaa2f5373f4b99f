"""The weights and the config of a model into a folder, under their published names."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from e5core.checkpoint.headers import WEIGHTS_FILE
from e5core.checkpoint.names import head_names, task_name, tensor_names
from e5core.config import CONFIG_FILE
from e5core.encoder import ClassificationHead, Encoder
from e5core.formats.files import replacing, write_json


def save_checkpoint(
    encoder: Encoder, folder: str | Path, head: ClassificationHead | None = None
) -> None:
    """Write model.safetensors, under the published names, and config.json into a folder.

    head  of a cross-encoder, whose config counts its labels

    transformers and load_checkpoint read them back. The folder is made if it is missing.
    Both files are written in full before either takes the place of an older one.
    """
    folder = Path(folder)
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
        task_name(published, encoder.config): state[ours].detach().cpu().contiguous()
        for state, names in parts
        for published, ours in names.items()
    }
    weights = folder / WEIGHTS_FILE
    with replacing(folder / CONFIG_FILE) as new_config, replacing(weights) as new_weights:
        write_json(new_config, config)
        try:
            # The metadata says that these are torch's tensors, as transformers expects.
            save_file(tensors, new_weights, metadata={"format": "pt"})
        except SafetensorError as error:  # safetensors' error for a full disk
            raise OSError(f"cannot write {weights}: {error}") from error
