"""The files by which sentence-transformers, and e5core, know a model's pooling and prompts."""

from collections.abc import Mapping
from pathlib import Path

from e5core.convert.common import PROMPTS_FILE
from e5core.formats.files import read_json_object, write_json

# As sentence-transformers named them up to 5; newer releases take these names too.
POOLING_FLAGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
STEPS = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))


def write_sentence_transformers_files(
    folder: Path,
    hidden_size: int,
    max_length: int,
    pooling: str,
    prompts: Mapping[str, str] | None,
) -> None:
    """Write what the published folders of multilingual E5 hold.

    max_length  tokens that a text is cut at
    pooling     "mean" or "cls"
    prompts     of "query" and "passage", None if they are not known

    What config_sentence_transformers.json says beside prompts stays.
    """
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": hidden_size,
            **{flag: name == pooling for name, flag in POOLING_FLAGS.items()},
        },
    )
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(STEPS)
    ]
    write_json(folder / "modules.json", modules)
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": max_length, "do_lower_case": False},
    )
    path = folder / PROMPTS_FILE
    settings = read_json_object(path) if path.is_file() else {}
    if prompts is not None:
        # encode_document looks for "document" before "passage", and is given an empty one if
        # there is none.
        settings["prompts"] = {**prompts, "document": prompts["passage"]}
    write_json(path, {**settings, "similarity_fn_name": "cosine"})
