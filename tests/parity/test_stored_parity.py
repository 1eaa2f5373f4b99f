"""Parity with stored references: runs without transformers, and catches every mutation.

scripts/make_reference.py wrote them with transformers in float64. Compared are the ids, the
keys and hidden states of every layer, the vectors, and the gradient of every parameter.
"""

import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from support.models import IN_FLOAT32
from torch import Tensor

from e5core import E5, Encoder, PackedBatch, l2_normalize, mean_pool, pack
from e5core.checkpoint.names import tensor_names
from e5core.kernels import BACKENDS, Kernels
from e5core.parity.tolerances import STORED_FLOAT32, STORED_FLOAT64
from e5core.texts.cutting import cut

PARITY = Path(__file__).parent / "data"
LONGEST = 48


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def folder(request) -> Path:
    return PARITY / request.param


@pytest.fixture(scope="module")
def reference(folder) -> dict[str, Tensor]:
    return load_file(folder / "reference.safetensors")


@pytest.fixture(scope="module")
def texts(folder) -> list[str]:
    with safe_open(folder / "reference.safetensors", framework="pt") as file:
        given = json.loads(file.metadata()["input"])
    assert given["prefix"] == "query: "
    return given["texts"]


@pytest.fixture(scope="module")
def model(folder) -> E5:
    return E5.from_pretrained(folder, dtype="float64", kernels="plain", prompts="e5")


def reference_batch(model: E5, reference: dict[str, Tensor]) -> PackedBatch:
    """The stored ids, as the library packs them."""
    ids = [part.tolist() for part in reference["input_ids"].split(lengths(reference))]
    return pack(ids, model.config)


def lengths(reference: dict[str, Tensor]) -> list[int]:
    return reference["cu_seqlens"].diff().tolist()


class Recorder:
    """The kernels of an encoder, with the keys of each layer kept."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self.keys: list[Tensor] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.kernels, name)

    def attention(self, qkv: Tensor, *rest: object) -> Tensor:
        self.keys.append(qkv[:, 1].flatten(1))
        return self.kernels.attention(qkv, *rest)


def forward(encoder: Encoder, batch: PackedBatch) -> dict[str, Tensor]:
    """Hidden states, keys and vectors, under the names of the reference."""
    recorder = Recorder(encoder.kernels)
    x = encoder.embeddings(batch.input_ids, batch.position_ids, recorder)
    found = {"hidden_states.0": x}
    for i, layer in enumerate(encoder.layers, 1):
        x = layer(x, batch.cu_seqlens, batch.max_seqlen, recorder)
        found[f"hidden_states.{i}"] = x
    found["vectors"] = l2_normalize(mean_pool(x, batch.cu_seqlens))
    return found | {f"keys.{i}": key for i, key in enumerate(recorder.keys)}


def recorded(encoder: Encoder, batch: PackedBatch) -> dict[str, Tensor]:
    """What the reference holds, computed by e5core, under the same names."""
    encoder.zero_grad()
    encoder.requires_grad_()
    found = forward(encoder, batch)
    vectors = found["vectors"]
    weights = torch.linspace(-1, 1, vectors.numel()).to(vectors.dtype).view_as(vectors)
    found["scalar"] = (vectors * weights).sum()
    found["scalar"].backward()
    parameters = dict(encoder.named_parameters())
    for name, ours in tensor_names(encoder.config).items():
        found[f"gradient.{name}"] = parameters[ours].grad
    return {name: tensor.detach().double() for name, tensor in found.items()}


def faults(found: dict[str, Tensor], reference: dict[str, Tensor], bound: float) -> list[str]:
    """The names of what differs by more than `bound`, or is not there."""
    expected = {n: t for n, t in reference.items() if n not in ("input_ids", "cu_seqlens")}
    assert found.keys() == expected.keys()
    assert len(expected) > 60
    return [
        f"{name}: {(found[name] - tensor).abs().max():.1e}"
        for name, tensor in expected.items()
        # A gradient can be missing where a mutation drops its parameter: a fault as well.
        if found[name].shape != tensor.shape or not ((found[name] - tensor).abs() <= bound).all()
    ]


def test_the_manifest_describes_the_files(folder):
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest["versions"]) == {"python", "torch", "transformers", "sentencepiece"}
    names = {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert names == set(manifest["sha256"])
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name


def test_the_reference_is_worth_comparing_with(reference):
    """Texts differ, lengths reach the limit, and every parameter has a gradient."""
    vectors = reference["vectors"]
    cosines = (vectors @ vectors.T)[torch.triu_indices(*[len(vectors)] * 2, 1).unbind()]
    assert cosines.median() < 0.98
    assert min(lengths(reference)) == 6
    assert max(lengths(reference)) == LONGEST
    assert 3 in reference["input_ids"]  # an unknown character
    for name, tensor in reference.items():
        # A key bias adds the same to every score of a query: it cannot change attention.
        if name.startswith("gradient.") and not name.endswith("key.bias"):
            assert tensor.abs().max() > 1e-4, name


def test_ids(model, reference, texts):
    found = [cut(model.tokenizer.encode("query: " + text), LONGEST) for text in texts]
    assert found == [part.tolist() for part in reference["input_ids"].split(lengths(reference))]


def test_vectors_through_the_public_path(folder, reference, texts):
    for kernels in IN_FLOAT32:
        model = E5.from_pretrained(folder, kernels=kernels, prompts="e5")
        assert model.encoder.kernels.name == kernels
        for budget in (1, 100, 10_000):
            found = model.encode_query(texts, max_tokens_per_batch=budget)
            assert np.abs(found - reference["vectors"].numpy()).max() <= STORED_FLOAT32


@pytest.mark.parametrize("kernels", [name for name in IN_FLOAT32 if not BACKENDS[name].trainable])
def test_every_layer_of_kernels_that_only_infer(folder, reference, kernels):
    model = E5.from_pretrained(folder, kernels=kernels)
    with torch.inference_mode():
        found = forward(model.encoder, reference_batch(model, reference))
    assert len(found) == 8  # embeddings, three layers' states and keys, vectors
    for name, tensor in found.items():
        assert (tensor - reference[name]).abs().max() <= STORED_FLOAT32, name


@pytest.mark.parametrize("kernels", [name for name in IN_FLOAT32 if BACKENDS[name].trainable])
@pytest.mark.parametrize(
    ("dtype", "bound"), [("float64", STORED_FLOAT64), ("float32", STORED_FLOAT32)]
)
def test_every_layer_and_every_gradient(folder, reference, kernels, dtype, bound):
    model = E5.from_pretrained(folder, dtype=dtype, kernels=kernels)
    assert (
        faults(recorded(model.encoder, reference_batch(model, reference)), reference, bound) == []
    )


# Mutations: the suite is worth something only if it catches what could go wrong.


class Mutated(Kernels):
    """Plain kernels of which a test replaces one operation."""


def test_tanh_gelu_is_caught(model, reference):
    class Tanh(Mutated):
        def linear_gelu(self, x, layer):
            return F.gelu(self.linear(x, layer), approximate="tanh")

    assert mutation_faults(model, reference, kernels=Tanh())


@pytest.mark.parametrize("factor", [100, 0.01])
def test_another_eps_is_caught(model, reference, factor):
    class Eps(Mutated):
        def layer_norm(self, x, norm):
            return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps * factor)

    assert mutation_faults(model, reference, kernels=Eps())


def test_a_forgotten_scale_is_caught(model, reference):
    class Unscaled(Mutated):
        def attention(self, qkv, *rest):
            query, key, value = qkv.unbind(1)
            scaled = torch.stack([query * query.shape[-1] ** 0.5, key, value], dim=1)
            return super().attention(scaled, *rest)

    assert mutation_faults(model, reference, kernels=Unscaled())


@pytest.mark.parametrize("shift", [1, -1])
def test_shifted_positions_are_caught(model, reference, shift):
    batch = reference_batch(model, reference)
    rows = model.config.max_position_embeddings
    # The longest text touches the end of the table: there the shift wraps around.
    positions = (batch.position_ids + shift) % rows
    found = recorded(copy.deepcopy(model.encoder), replace(batch, position_ids=positions))
    assert faults(found, reference, STORED_FLOAT64)


def test_positions_that_run_on_through_the_batch_are_caught(model, reference):
    batch = reference_batch(model, reference)
    positions = torch.arange(len(batch.position_ids)) % model.config.max_position_embeddings
    found = recorded(copy.deepcopy(model.encoder), replace(batch, position_ids=positions))
    assert faults(found, reference, STORED_FLOAT64)


def test_a_leak_between_texts_is_caught(model, reference):
    batch = reference_batch(model, reference)

    class Leaking(Mutated):
        def attention(self, qkv, cu_seqlens, max_seqlen, dropout):
            merged = torch.cat([cu_seqlens[:1], cu_seqlens[2:]])
            return super().attention(qkv, merged, 10**6, dropout)

    encoder = copy.deepcopy(model.encoder)
    encoder.kernels = Leaking()
    assert faults(recorded(encoder, batch), reference, STORED_FLOAT64)


def mutation_faults(model: E5, reference: dict[str, Tensor], kernels: Kernels) -> list[str]:
    encoder = copy.deepcopy(model.encoder)
    encoder.kernels = kernels
    return faults(recorded(encoder, reference_batch(model, reference)), reference, STORED_FLOAT64)


def each_bias_and_table(encoder: Encoder) -> Iterator[str]:
    for name, _ in encoder.named_parameters():
        if name.endswith("bias") or "token_type" in name or "position" in name:
            yield name


def test_every_dropped_bias_and_embedding_is_caught(model, reference):
    batch = reference_batch(model, reference)
    names = list(each_bias_and_table(model.encoder))
    assert len(names) == 1 + 3 * 8 + 2
    for name in names:
        encoder = copy.deepcopy(model.encoder)
        encoder.get_parameter(name).data.zero_()
        assert faults(recorded(encoder, batch), reference, STORED_FLOAT64), name


def test_every_swap_of_two_tensors_is_caught(model, reference):
    batch = reference_batch(model, reference)
    # Forward alone: enough to see each of them, and the pairs are many.
    expected = {n: t for n, t in reference.items() if n.startswith(("hidden", "keys", "vectors"))}
    parameters = dict(model.encoder.named_parameters())
    pairs = [
        (one, other)
        for one, other in combinations(parameters, 2)
        if parameters[one].shape == parameters[other].shape
    ]
    assert len(pairs) > 300
    encoder = copy.deepcopy(model.encoder)
    for one, other in pairs:
        a, b = encoder.get_parameter(one), encoder.get_parameter(other)
        a.data, b.data = b.data, a.data
        with torch.no_grad():
            found = forward(encoder, batch)
        assert any((found[n] - t).abs().max() > STORED_FLOAT64 for n, t in expected.items()), (
            f"{one} ↔ {other} went unseen"
        )
        a.data, b.data = b.data, a.data
    found = forward(encoder, batch)
    assert all((found[n] - t).abs().max() <= STORED_FLOAT64 for n, t in expected.items())
