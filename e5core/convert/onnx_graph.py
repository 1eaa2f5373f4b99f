"""The encoder, pooling and unit length as an ONNX graph over padded texts.

Operators: docs/Operators.md of github.com/onnx/onnx. Built node by node: 25% faster in ONNX Runtime
at 512 tokens than what torch.onnx.export makes of transformers' model (1.32, two cores, 2026-11).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from e5core.checkpoint.dense import Dense
from e5core.checkpoint.names import (
    HEADS,
    POSITION_EMBEDDINGS,
    TOKEN_TYPE_EMBEDDINGS,
    WORD_EMBEDDINGS,
)
from e5core.config import EncoderConfig

# Gelu came with opset 20; ONNX Runtime reads it from 1.17 on.
OPSET = 20

INPUT_IDS, ATTENTION_MASK, OUTPUT = "input_ids", "attention_mask", "sentence_embedding"
TOKEN_TYPE_IDS = "token_type_ids"
HIDDEN_STATES = "last_hidden_state"  # sentence-transformers and optimum look for it
LOGITS = "logits"  # and for this, of a cross-encoder

# torch's activations whose operators are called otherwise.
OPERATORS = {"ReLU": "Relu", "GELU": "Gelu"}

LOWEST = float(np.finfo(np.float32).min)
SMALLEST_NORM = 1e-12  # of torch.nn.functional.normalize


def is_matrix(name: str) -> bool:
    """Whether a tensor, by its published name, is what a linear layer multiplies by.

    The graph has these as [inputs, outputs], where checkpoints have [outputs, inputs].
    """
    linears = name.startswith(("encoder.", "classifier.", "pooler.", dense_name("")))
    return linears and ".LayerNorm." not in name and name.endswith(".weight")


def dense_name(number: int | str) -> str:
    """The start of the names that a step Dense's tensors have."""
    return f"dense.{number}"


def encoder_model(
    config: EncoderConfig,
    pooling: str,
    hidden_states: bool = False,
    dense: Sequence[Dense] = (),
    token_types: bool = False,
) -> ModelProto:
    """The model without its weights, which nodes name as they are published.

    input_ids           [batch, length] int64
    attention_mask      [batch, length] int64, 1 for tokens and 0 for padding, on either side
    token_type_ids      [batch, length] int64, if `token_types`: a third input, for runtimes that
                        feed it whatever the model; texts are of type 0
    sentence_embedding  [batch, hidden_size] float32 of unit length; zeros where all is padding.
                        Behind steps Dense it has as many numbers as the last of them gives
    last_hidden_state   [batch, length, hidden_size] float32, if `hidden_states`: a second output,
                        for libraries that pool themselves; under padding it means nothing
    logits              [batch, num_labels] float32, of a model with a head in place of the two
    """
    graph = EncoderGraph(config)
    x = graph.embeddings(token_types)
    graph.prepare_attention()
    for layer in range(config.num_hidden_layers):
        x = graph.layer(x, f"encoder.layer.{layer}")
    if config.num_labels:
        graph.head(graph.pool(x, "cls"))
        outputs = [(LOGITS, TensorProto.FLOAT, ["batch", config.num_labels])]
    else:
        graph.unit(graph.dense(graph.pool(x, pooling), dense))
        size = dense[-1].out_features if dense else config.hidden_size
        outputs = [(OUTPUT, TensorProto.FLOAT, ["batch", size])]
        if hidden_states:
            graph.add("Identity", x, output=HIDDEN_STATES)
            axes = ["batch", "length", config.hidden_size]
            outputs.append((HIDDEN_STATES, TensorProto.FLOAT, axes))
    texts = (TensorProto.INT64, ["batch", "length"])
    inputs = [(INPUT_IDS, *texts), (ATTENTION_MASK, *texts)]
    if token_types:
        inputs.append((TOKEN_TYPE_IDS, *texts))
    described = [
        [helper.make_tensor_value_info(*value) for value in values] for values in (inputs, outputs)
    ]
    whole = helper.make_graph(graph.nodes, "e5core", *described, graph.constants)
    return helper.make_model_gen_version(
        whole, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="e5core"
    )


class Graph:
    """Nodes in the order of computation; each has one output, named by its operator and place."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[TensorProto] = []

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Append a node; returns the name of its output."""
        name = output or f"{operator}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, value: Any) -> str:
        """Add an array or a number; returns its name."""
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name


class EncoderGraph(Graph):
    """The parts of an encoder, each method adding the nodes of one."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.one = self.constant("one", np.int64(1))
        self.one_float = self.constant("one.float", np.float32(1))
        self.axis = {n: self.constant(f"axis.{n}", np.array([n], np.int64)) for n in (-1, 1)}
        self.mask = self.add("Cast", ATTENTION_MASK, to=TensorProto.FLOAT)  # [batch, length]
        # Each token's number in its text, from 1 on. Padding is not counted, so on the left it
        # shifts nothing. There it gets 1 instead of 0, for which a position might not exist.
        self.count = self.add("Max", self.add("CumSum", ATTENTION_MASK, self.one), self.one)

    def embeddings(self, token_types: bool) -> str:
        """The sum of the three tables' rows, normalised: [batch, length, hidden_size]."""
        first = np.int64(self.config.first_position - 1)
        before_first = self.constant("position.before_first", first)
        places = self.add("Add", self.count, before_first)
        position = self.add("Gather", POSITION_EMBEDDINGS, places)
        types = TOKEN_TYPE_IDS if token_types else self.constant("type", np.int64(0))
        kind = self.add("Gather", TOKEN_TYPE_EMBEDDINGS, types)
        word = self.add("Gather", WORD_EMBEDDINGS, INPUT_IDS)
        x = self.add("Add", self.add("Add", word, kind), position)  # in transformers' order
        return self.layer_norm(x, "embeddings.LayerNorm")

    def prepare_attention(self) -> None:
        """Add the nodes that the attention of all layers shares."""
        axes = self.constant("axes.wide", np.array([1, 2], np.int64))
        wide = self.add("Unsqueeze", self.mask, axes)  # [batch, 1, 1, length]
        lowest = self.constant("lowest", np.float32(LOWEST))
        # This is added to the scores. A text of padding alone gets equal weights and no NaN.
        self.padding = self.add("Mul", self.add("Sub", self.one_float, wide), lowest)
        config = self.config
        apart = [0, 0, config.num_attention_heads, config.head_size]  # 0: as it is
        together = [0, 0, config.hidden_size]
        self.heads_apart = self.constant("shape.heads", np.array(apart, np.int64))
        self.heads_together = self.constant("shape.hidden", np.array(together, np.int64))
        self.root = self.constant("root_of_head_size", np.float32(config.head_size**0.5))

    def layer(self, x: str, name: str) -> str:
        """One encoder layer over [batch, length, hidden_size]."""
        attended = self.attention(x, f"{name}.attention.self")
        x = self.add("Add", self.linear(attended, f"{name}.attention.output.dense"), x)
        x = self.layer_norm(x, f"{name}.attention.output.LayerNorm")
        inner = self.add("Gelu", self.linear(x, f"{name}.intermediate.dense"))
        x = self.add("Add", self.linear(inner, f"{name}.output.dense"), x)
        return self.layer_norm(x, f"{name}.output.LayerNorm")

    def attention(self, x: str, name: str) -> str:
        """softmax(Q Kᵀ / √head_size) V, before the output's linear layer."""
        query = self.heads(x, f"{name}.query", [0, 2, 1, 3])
        key = self.heads(x, f"{name}.key", [0, 2, 3, 1])
        value = self.heads(x, f"{name}.value", [0, 2, 1, 3])
        scores = self.add("Div", self.add("MatMul", query, key), self.root)
        weights = self.add("Softmax", self.add("Add", scores, self.padding), axis=-1)
        context = self.add("Transpose", self.add("MatMul", weights, value), perm=[0, 2, 1, 3])
        return self.add("Reshape", context, self.heads_together)

    def heads(self, x: str, name: str, order: list[int]) -> str:
        """[batch, heads, length, head_size], or with the last two swapped."""
        reshaped = self.add("Reshape", self.linear(x, name), self.heads_apart)
        return self.add("Transpose", reshaped, perm=order)

    def pool(self, x: str, pooling: str) -> str:
        """The mean of the tokens' states, or the first one's."""
        mask = self.mask
        if pooling == "cls":  # the mean of the first token alone
            first = self.add("Equal", self.add("Mul", self.count, ATTENTION_MASK), self.one)
            mask = self.add("Cast", first, to=TensorProto.FLOAT)
        share = self.add("Unsqueeze", mask, self.axis[-1])
        total = self.add("ReduceSum", self.add("Mul", x, share), self.axis[1], keepdims=0)
        tokens = self.add("ReduceSum", share, self.axis[1], keepdims=0)
        return self.add("Div", total, self.add("Max", tokens, self.one_float))

    def dense(self, x: str, steps: Sequence[Dense]) -> str:
        """sentence-transformers' steps Dense on [batch, in_features]."""
        for number, step in enumerate(steps):
            name = dense_name(number)
            if step.normalized:
                x = self.unit(x, output="")
            y = self.add("MatMul", x, f"{name}.linear.weight")
            if step.bias:
                y = self.add("Add", y, f"{name}.linear.bias")
            if step.activation == "SiLU":
                y = self.add("Mul", y, self.add("Sigmoid", y))
            elif step.activation != "Identity":
                y = self.add(OPERATORS.get(step.activation, step.activation), y)
            if step.residual and step.in_features != step.out_features:
                x = self.add("MatMul", x, f"{name}.residual.weight")
            x = self.add("Add", y, x) if step.residual else y
        return x

    def unit(self, x: str, output: str = OUTPUT) -> str:
        """Vectors at unit length."""
        norm = self.add("ReduceL2", x, self.axis[-1], keepdims=1)
        place = len(self.nodes)
        smallest = self.constant(f"smallest_norm.{place}", np.float32(SMALLEST_NORM))
        return self.add("Div", x, self.add("Max", norm, smallest), output=output)

    def head(self, x: str) -> str:
        """The logits, of the first tokens' states."""
        dense, output = (name.removesuffix(".{p}") for name, _, _ in HEADS[self.config.model_type])
        return self.linear(self.add("Tanh", self.linear(x, dense)), output, LOGITS)

    def linear(self, x: str, name: str, output: str = "") -> str:
        product = self.add("MatMul", x, f"{name}.weight")
        return self.add("Add", product, f"{name}.bias", output=output)

    def layer_norm(self, x: str, name: str) -> str:
        parameters = (f"{name}.weight", f"{name}.bias")
        epsilon = self.config.layer_norm_eps
        return self.add("LayerNormalization", x, *parameters, axis=-1, epsilon=epsilon)
