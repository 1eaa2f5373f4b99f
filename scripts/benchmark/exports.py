"""The files that the other libraries of the benchmark read, made once for a model."""

import shutil
import tempfile
from pathlib import Path

from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.sentence_transformers import write_steps
from e5core.convert.weights import stored_weights
from e5core.formats.files import read_json_object, write_json
from e5core.formats.sentencepiece import CHARSMAP

EXPORTS = Path(__file__).parents[2] / "models" / "benchmark"
LIMIT = 512  # tokens of a text


def peer_folder(folder: Path) -> Path:
    """The model's files with the tokenizer and settings that transformers wants beside them."""
    target = EXPORTS / folder.name
    weights, ours = target / "model.safetensors", (folder / "model.safetensors").resolve()
    # Another folder of the same name may have been here before.
    if (target / "tokenizer.json").is_file() and weights.resolve() == ours:
        return target
    from e5core.parity.oracle import fast_tokenizer

    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    tokenizer = fast_tokenizer(folder, CHARSMAP)
    tokenizer.model_max_length = LIMIT
    weights.symlink_to(ours)
    config = read_json_object(folder / "config.json")
    # CTranslate2 4.8 reads an attribute that transformers 5 no longer gives by itself.
    write_json(target / "config.json", config | {"position_embedding_type": "absolute"})
    write_steps(target, config["hidden_size"], "mean")
    (target / "2_Normalize").mkdir(exist_ok=True)
    tokenizer.save_pretrained(target)  # last: it says that the folder is whole
    return target


def export_onnx(folder: Path, file: Path) -> None:
    """Write the graph of `e5core convert onnx`, which ONNX Runtime and OpenVINO take.

    In ONNX Runtime it is faster than the graph that torch.onnx.export makes of transformers' model.
    """
    from e5core.convert.onnx_graph import encoder_model
    from e5core.convert.to_onnx import LARGEST_IN_FILE, turn_matrices
    from e5core.formats.onnx_file import write_onnx

    source = ModelFolder.read(folder)
    weights = turn_matrices(stored_weights(source), source.config)
    with tempfile.TemporaryDirectory(dir=file.parent) as temporary:
        path = Path(temporary) / file.name
        model = encoder_model(source.config, "mean")
        files = write_onnx(model, weights.headers, weights.read, path, LARGEST_IN_FILE)
        for written in reversed(files):  # the model last, by which the next run knows of it
            written.replace(file.with_name(written.name))
