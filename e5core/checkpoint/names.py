"""Published tensor names and the names in Encoder, as data."""

from e5core.config import EncoderConfig

# Published name ↔ name in Encoder. {i} runs over layers, {p} over weight and bias.
TENSORS = (
    ("embeddings.word_embeddings.weight", "embeddings.word.weight"),
    ("embeddings.position_embeddings.weight", "embeddings.position.weight"),
    ("embeddings.token_type_embeddings.weight", "embeddings.token_type.weight"),
    ("embeddings.LayerNorm.{p}", "embeddings.layer_norm.{p}"),
    ("encoder.layer.{i}.attention.self.query.{p}", "layers.{i}.attention.query.{p}"),
    ("encoder.layer.{i}.attention.self.key.{p}", "layers.{i}.attention.key.{p}"),
    ("encoder.layer.{i}.attention.self.value.{p}", "layers.{i}.attention.value.{p}"),
    ("encoder.layer.{i}.attention.output.dense.{p}", "layers.{i}.attention.output.{p}"),
    ("encoder.layer.{i}.attention.output.LayerNorm.{p}", "layers.{i}.attention_layer_norm.{p}"),
    ("encoder.layer.{i}.intermediate.dense.{p}", "layers.{i}.intermediate.{p}"),
    ("encoder.layer.{i}.output.dense.{p}", "layers.{i}.output.{p}"),
    ("encoder.layer.{i}.output.LayerNorm.{p}", "layers.{i}.output_layer_norm.{p}"),
)

# The encoder's tensors carry the name of the model inside a file saved from a task model.
WORD_EMBEDDINGS = TENSORS[0][0]
PREFIXES = ("", "roberta.", "bert.")

# What else such files hold, by the start of the name after the prefix, and why it is left.
IGNORED = {
    "embeddings.position_ids": "a buffer that older files hold; positions are computed",
    "pooler.dense.": "E5 pools by mean, bge-m3 and others by the first token",
    "lm_head.": "head of a masked language model",
    "cls.": "head of a masked language model",
    "classifier.": "head of a classifier",
    "qa_outputs.": "head for question answering",
}

# LayerNorm's names in files that were born in TensorFlow.
OLD_SUFFIXES = {".gamma": ".weight", ".beta": ".bias"}


def tensor_names(config: EncoderConfig) -> dict[str, str]:
    """Published name → name in Encoder, for every tensor of an encoder of this size."""
    names = {}
    for published, ours in TENSORS:
        for i in range(config.num_hidden_layers) if "{i}" in published else (0,):
            for p in ("weight", "bias") if "{p}" in published else ("",):
                names[published.format(i=i, p=p)] = ours.format(i=i, p=p)
    return names


def published_name(name: str, prefix: str) -> str:
    """The published name of a stored one: no task model's prefix, and today's suffix."""
    name = name.removeprefix(prefix)
    for old, new in OLD_SUFFIXES.items():
        if name.endswith("LayerNorm" + old):
            return name.removesuffix(old) + new
    return name
