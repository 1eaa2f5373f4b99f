"""The dimensions of an encoder, read from a published config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e5core.formats.files import read_json_object

CONFIG_FILE = "config.json"
MODEL_TYPES = ("bert", "xlm-roberta")

# The model_type of a folder whose weights are in int8. Other libraries refuse it, so none of them
# takes the integers for weights. The folder's encoder_type is then one of MODEL_TYPES.
INT8_MODEL_TYPE = "e5core-int8"

# Settings that a config.json may leave out, with the values that transformers then assumes.
_DEFAULTS = {
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "pad_token_id": 1,
}

# Settings that change the arithmetic, with the only values that this encoder computes.
_REQUIRED_VALUES: dict[str, Any] = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


@dataclass(frozen=True)
class EncoderConfig:
    """The dimensions of a BERT-like encoder with learned absolute positions.

    The two dialects differ in values alone. `bert` (multilingual-e5-small) counts positions from 0.
    `xlm-roberta` (base, large, large-instruct) counts them from pad_token_id + 1 = 2, so its 514
    position rows hold 512 tokens.

    Raises ValueError if the dimensions contradict each other.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int  # rows of the position table
    first_position: int  # the row of a text's first token
    type_vocab_size: int
    layer_norm_eps: float
    hidden_dropout: float = 0.1  # in training only
    attention_dropout: float = 0.1  # in training only
    num_labels: int = 0  # outputs of a classification head; 0 for an encoder without one

    def __post_init__(self) -> None:
        _check_model_type(self.model_type)
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide into "
                f"{self.num_attention_heads} attention heads"
            )
        if self.max_length < 3:
            raise ValueError(
                f"{self.max_position_embeddings} position rows from row {self.first_position} "
                f"hold {self.max_length} tokens, expected room for at least 3"
            )

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def max_length(self) -> int:
        """The number of tokens of the longest input."""
        return self.max_position_embeddings - self.first_position

    @property
    def num_parameters(self) -> int:
        """The number of weights and biases of the encoder, without pooler and heads."""
        hidden, inner = self.hidden_size, self.intermediate_size
        rows = self.vocab_size + self.max_position_embeddings + self.type_vocab_size
        attention = 4 * (hidden * hidden + hidden)
        feed_forward = hidden * inner + inner + inner * hidden + hidden
        norm = 2 * hidden
        return rows * hidden + norm + self.num_hidden_layers * (attention + feed_forward + 2 * norm)

    @classmethod
    def from_file(cls, path: str | Path) -> "EncoderConfig":
        """Read a config.json. Raises ValueError, which names the file and the setting at fault."""
        published = read_json_object(Path(path))
        try:
            return cls.from_dict(published)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, published: Mapping[str, Any]) -> "EncoderConfig":
        """Make a config from the fields of a config.json.

        Raises ValueError, which names the setting at fault.
        """
        # The model type comes first, because another kind of model may lack the other settings.
        in_int8 = published.get("model_type") == INT8_MODEL_TYPE
        model_type = _check_model_type(published.get("encoder_type" if in_int8 else "model_type"))
        for name, expected in _REQUIRED_VALUES.items():
            found = published.get(name, expected)
            if found != expected:
                raise ValueError(f"{name} is {found!r}, this encoder computes {expected!r} only")

        def whole(name: str, least: int = 1) -> int:
            value = published.get(name, _DEFAULTS.get(name))
            if type(value) is not int or value < least:  # excludes bool and 12.0
                raise ValueError(f"{name} is {value!r}, expected a whole number from {least} on")
            return value

        def fraction(name: str) -> float:
            value = published.get(name, _DEFAULTS.get(name))
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise ValueError(f"{name} is {value!r}, expected a number from 0 to below 1")
            return float(value)

        return cls(
            model_type=model_type,
            vocab_size=whole("vocab_size"),
            hidden_size=whole("hidden_size"),
            num_hidden_layers=whole("num_hidden_layers"),
            num_attention_heads=whole("num_attention_heads"),
            intermediate_size=whole("intermediate_size"),
            max_position_embeddings=whole("max_position_embeddings"),
            # BERT takes nothing from pad_token_id: multilingual-e5-small says 0 and pads with 1.
            first_position=0 if model_type == "bert" else whole("pad_token_id", 0) + 1,
            type_vocab_size=whole("type_vocab_size"),
            layer_norm_eps=fraction("layer_norm_eps"),
            hidden_dropout=fraction("hidden_dropout_prob"),
            attention_dropout=fraction("attention_probs_dropout_prob"),
            num_labels=_count_labels(published),
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields of a config.json, which transformers and from_dict read back.

        Raises ValueError if model_type and first_position contradict each other: a config.json
        cannot say that.
        """
        bert = self.model_type == "bert"
        if bert != (self.first_position == 0):
            raise ValueError(
                f"first_position is {self.first_position} in a {self.model_type} config, but as "
                "published bert counts from 0 and xlm-roberta from pad_token_id + 1"
            )
        task = "ForSequenceClassification" if self.num_labels else "Model"
        head = {"id2label": {str(i): f"LABEL_{i}" for i in range(self.num_labels)}}
        return {
            "architectures": [("Bert" if bert else "XLMRoberta") + task],
            **(head if self.num_labels else {}),
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "type_vocab_size": self.type_vocab_size,
            "layer_norm_eps": self.layer_norm_eps,
            "hidden_act": "gelu",
            "hidden_dropout_prob": self.hidden_dropout,
            "attention_probs_dropout_prob": self.attention_dropout,
            "bos_token_id": 0,
            "pad_token_id": 0 if bert else self.first_position - 1,
            "eos_token_id": 2,
        }


def _count_labels(published: Mapping[str, Any]) -> int:
    """The outputs of the head that a config.json describes, as transformers counts them."""
    names = published.get("architectures") or ()  # a list, or a single one
    if "ForSequenceClassification" not in str(names):
        return 0
    labels = published.get("id2label")
    count = len(labels) if isinstance(labels, dict) else published.get("num_labels", 2)
    if type(count) is not int or count < 1:
        raise ValueError(f"num_labels is {count!r}, expected a whole number from 1 on")
    return count


def _check_model_type(model_type: Any) -> str:
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f"model_type is {model_type!r}, expected {' or '.join(MODEL_TYPES)}: e5core runs the "
            "encoders of multilingual E5 and nothing else"
        )
    return str(model_type)
