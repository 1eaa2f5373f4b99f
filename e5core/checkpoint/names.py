"""Published tensor names, the names in Encoder and the shapes, as data."""

from collections.abc import Iterable, Sequence

from e5core.config import EncoderConfig

# Published name, name in Encoder, axes as fields of EncoderConfig. {i} runs over layers, {p} over
# weight and bias; a bias has the first axis of its weight.
TENSORS = (
    ("embeddings.word_embeddings.weight", "embeddings.word.weight", "vocab_size hidden_size"),
    (
        "embeddings.position_embeddings.weight",
        "embeddings.position.weight",
        "max_position_embeddings hidden_size",
    ),
    (
        "embeddings.token_type_embeddings.weight",
        "embeddings.token_type.weight",
        "type_vocab_size hidden_size",
    ),
    ("embeddings.LayerNorm.{p}", "embeddings.layer_norm.{p}", "hidden_size"),
    (
        "encoder.layer.{i}.attention.self.query.{p}",
        "layers.{i}.attention.query.{p}",
        "hidden_size hidden_size",
    ),
    (
        "encoder.layer.{i}.attention.self.key.{p}",
        "layers.{i}.attention.key.{p}",
        "hidden_size hidden_size",
    ),
    (
        "encoder.layer.{i}.attention.self.value.{p}",
        "layers.{i}.attention.value.{p}",
        "hidden_size hidden_size",
    ),
    (
        "encoder.layer.{i}.attention.output.dense.{p}",
        "layers.{i}.attention.output.{p}",
        "hidden_size hidden_size",
    ),
    (
        "encoder.layer.{i}.attention.output.LayerNorm.{p}",
        "layers.{i}.attention_layer_norm.{p}",
        "hidden_size",
    ),
    (
        "encoder.layer.{i}.intermediate.dense.{p}",
        "layers.{i}.intermediate.{p}",
        "intermediate_size hidden_size",
    ),
    (
        "encoder.layer.{i}.output.dense.{p}",
        "layers.{i}.output.{p}",
        "hidden_size intermediate_size",
    ),
    ("encoder.layer.{i}.output.LayerNorm.{p}", "layers.{i}.output_layer_norm.{p}", "hidden_size"),
)
WORD_EMBEDDINGS, POSITION_EMBEDDINGS, TOKEN_TYPE_EMBEDDINGS = (row[0] for row in TENSORS[:3])

# The classification head of each dialect, as TENSORS. Sources: XLMRobertaForSequenceClassification
# and BertForSequenceClassification in transformers.
HEADS = {
    "xlm-roberta": (
        ("classifier.dense.{p}", "dense.{p}", "hidden_size hidden_size"),
        ("classifier.out_proj.{p}", "output.{p}", "num_labels hidden_size"),
    ),
    "bert": (
        ("pooler.dense.{p}", "dense.{p}", "hidden_size hidden_size"),
        ("classifier.{p}", "output.{p}", "num_labels hidden_size"),
    ),
}

# The scales [rows] of a tensor in int8 stand beside it in a file, under its name and this.
SCALE_SUFFIX = "_scale"

# The encoder's tensors carry the name of the model inside a file saved from a task model.
PREFIXES = ("", "roberta.", "bert.")
TASK_PREFIXES = {"xlm-roberta": "roberta.", "bert": "bert."}

CLASSIFIER = "classifier."  # stands in front of a head's tensors, in both dialects

# Other tensors in such files: how the name starts after the prefix, and why each is left out.
IGNORED = {
    "embeddings.position_ids": "a buffer that older files hold; positions are computed",
    "pooler.dense.": "E5 pools by mean, bge-m3 and others by the first token",
    "lm_head.": "head of a masked language model",
    "cls.": "head of a masked language model",
    CLASSIFIER: "head of a classifier, unless the config has labels",
    "qa_outputs.": "head for question answering",
}

# LayerNorm's names in files that were born in TensorFlow.
OLD_SUFFIXES = {".gamma": ".weight", ".beta": ".bias"}


PARAMETERS = (("weight", "weight"), ("bias", "bias"))


def expand(
    table: Iterable[tuple[str, str]],
    num_layers: int,
    parameters: Sequence[tuple[str, str]] = PARAMETERS,
) -> dict[str, str]:
    """The pairs of a table, once for each layer {i} and once for each of weight and bias {p}.

    parameters  what {p} stands for on the left and on the right
    """
    return {
        left.format(i=i, p=left_p): right.format(i=i, p=right_p)
        for left, right in table
        for i in (range(num_layers) if "{i}" in left else (0,))
        for left_p, right_p in (parameters if "{p}" in left else (("", ""),))
    }


def tensor_names(config: EncoderConfig) -> dict[str, str]:
    """Published name → name in Encoder, for every tensor of an encoder of this size."""
    return expand(((published, ours) for published, ours, _ in TENSORS), config.num_hidden_layers)


def head_names(config: EncoderConfig) -> dict[str, str]:
    """Published name → name in ClassificationHead; empty for an encoder without a head."""
    rows = HEADS[config.model_type] if config.num_labels else ()
    return expand(((published, ours) for published, ours, _ in rows), 0)


def tensor_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Published name → shape, for every tensor of an encoder of this size and of its head."""
    rows = (*TENSORS, *(HEADS[config.model_type] if config.num_labels else ()))
    table = ((published, axes) for published, _, axes in rows)
    shapes = {}
    for name, axes in expand(table, config.num_hidden_layers).items():
        shape = tuple(getattr(config, axis) for axis in axes.split())
        shapes[name] = shape[:1] if name.endswith(".bias") else shape
    return shapes


def task_name(name: str, config: EncoderConfig) -> str:
    """What a published name is in the file of a model with a head, or of one without."""
    if not config.num_labels or name.startswith(CLASSIFIER):
        return name
    return TASK_PREFIXES[config.model_type] + name


def names_by_part(config: EncoderConfig) -> list[dict[str, str]]:
    """Published name → name in its part: for the embeddings, then for each layer."""
    names = tensor_names(config)
    prefixes = ["embeddings.", *(f"layers.{i}." for i in range(config.num_hidden_layers))]
    return [
        {name: ours.removeprefix(prefix) for name, ours in names.items() if ours.startswith(prefix)}
        for prefix in prefixes
    ]
