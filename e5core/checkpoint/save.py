"""An encoder's weights and config into a folder, under their published names."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from e5core.checkpoint.headers import WEIGHTS_FILE
from e5core.checkpoint.names import tensor_names
from e5core.config import CONFIG_FILE
from e5core.encoder import Encoder
from e5core.formats.files import replacing, write_json


def save_checkpoint(encoder: Encoder, folder: str | Path) -> None:
    """Write model.safetensors, under the published names, and config.json into a folder.

    transformers and load_checkpoint read them back. The folder is made if it is missing.
    Both files are written in full before either takes the place of an older one.
    """
    folder = Path(folder)
    config = encoder.config.to_dict()
    if any(parameter.is_meta for parameter in encoder.parameters()):
        raise ValueError(
            "the encoder holds no weights to save: prepare_for_inference gave them to its "
            f"{encoder.kernels.name} kernels; load it with load_checkpoint, which leaves it whole"
        )
    folder.mkdir(parents=True, exist_ok=True)
    state = encoder.state_dict()
    tensors = {
        published: state[ours].detach().cpu().contiguous()
        for published, ours in tensor_names(encoder.config).items()
    }
    weights = folder / WEIGHTS_FILE
    with replacing(folder / CONFIG_FILE) as new_config, replacing(weights) as new_weights:
        write_json(new_config, config)
        try:
            # The metadata says that these are torch's tensors, as transformers expects.
            save_file(tensors, new_weights, metadata={"format": "pt"})
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(f"cannot write {weights}: {error}") from error
