"""Exported models in ONNX Runtime, beside e5core."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.conversions import MEMORY, content, convert, convert_in_process, refused
from support.models import TINY

from e5core import E5, Encoder, EncoderConfig, save_checkpoint
from e5core.formats.files import read_json_object, write_json
from e5core.parity.samples import QUERIES, SENTENCES, spread, spread_weights
from e5core.parity.tolerances import UNIT_VECTOR_FLOAT32
from e5core.parity.vectors import encode_ids
from e5core.texts.cutting import cut

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from e5core.convert import to_onnx  # noqa: E402

Make = Callable[..., Path]
TEXTS = [*spread([*SENTENCES, *QUERIES], 24), "", "long " * 100]

# The same text in another padding: other blocks of the same sums. Measured: at most 2e-7.
PADDING = 1e-6


@pytest.fixture(params=["mean", "cls"])
def pooled_folder(tiny_folder: Path, request: pytest.FixtureRequest) -> Path:
    """A tiny model of each dialect with each pooling."""
    flag = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}[request.param]
    write_json(tiny_folder / "1_Pooling" / "config.json", {flag: True})
    return tiny_folder


def session(folder: Path) -> Any:
    return onnxruntime.InferenceSession(
        str(folder / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"]
    )


def run(model: Any, ids: Sequence[Sequence[int]], left: bool = False) -> Any:
    (vectors,) = model.run(["sentence_embedding"], to_onnx.pad(ids, left))
    return vectors


def test_texts_get_the_vectors_of_e5core(pooled_folder: Path, tmp_path: Path) -> None:
    """Text by text and together, padded on either side, from one token to the longest."""
    convert("onnx", pooled_folder, tmp_path / "new", "--verify")
    model, exported = E5.from_pretrained(pooled_folder), session(tmp_path / "new")
    expected = model.encode(TEXTS, input_type=None)
    ids = [cut(model.tokenizer.encode(text), 64) for text in TEXTS]
    for left in (False, True):
        assert np.abs(run(exported, ids, left) - expected).max() < UNIT_VECTOR_FLOAT32
    for text, vector in zip(ids, expected, strict=True):
        assert np.abs(run(exported, [text]) - vector).max() < UNIT_VECTOR_FLOAT32
    for length in (1, 2, 64):
        part = ids[-1][:length]
        expected_part = encode_ids(model, [part], 1)
        assert np.abs(run(exported, [part]) - expected_part).max() < UNIT_VECTOR_FLOAT32


def test_padding_changes_nothing(pooled_folder: Path, tmp_path: Path) -> None:
    convert("onnx", pooled_folder, tmp_path / "new")
    exported = session(tmp_path / "new")
    text = [0, *range(10, 30), 2]
    (alone,) = run(exported, [text])
    assert abs(np.linalg.norm(alone) - 1) < 1e-6
    other = run(exported, [[0, *range(11, 31), 2]])[0]
    assert np.abs(other - alone).max() > 100 * PADDING
    for more in (1, 5, 42):
        longer = [7] * (len(text) + more)
        for left in (False, True):
            found = run(exported, [text, longer], left)[0]
            assert np.abs(found - alone).max() < PADDING
    inputs = to_onnx.pad([text, text])
    inputs["input_ids"][1], inputs["attention_mask"][1] = 119, 0  # nothing but padding
    found = exported.run(None, inputs)[0]
    assert np.abs(found[0] - alone).max() < PADDING
    assert not found[1].any()


def test_the_tokenizer_that_travels_along(
    tiny_folder: Path, tmp_path: Path, oracle: ModuleType
) -> None:
    """What a user of ONNX Runtime does, with nothing of e5core."""
    convert("onnx", tiny_folder, tmp_path / "new")
    tokenizer: Any = oracle.transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    inputs = tokenizer(["query: " + text for text in TEXTS], padding=True, truncation=True)
    names = ("input_ids", "attention_mask")
    found = session(tmp_path / "new").run(None, {name: np.array(inputs[name]) for name in names})[0]
    expected = E5.from_pretrained(tiny_folder).encode_query(TEXTS)
    assert np.abs(found - expected).max() < UNIT_VECTOR_FLOAT32


def test_large_weights_lie_in_a_second_file(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert("onnx", tiny_folder, tmp_path / "one")
    size = (tmp_path / "one" / "onnx" / "model.onnx").stat().st_size
    weights = sum(t.nbytes for t in load_file(tiny_folder / "model.safetensors").values())
    for limit in (weights, weights - 1, 0):
        capsys.readouterr()
        folder = tmp_path / str(limit)
        convert("onnx", tiny_folder, folder, "--largest-in-file", str(limit), "--verify")
        files = {path.name: path.stat().st_size for path in (folder / "onnx").iterdir()}
        printed = capsys.readouterr().out
        if limit == weights:
            assert files == {"model.onnx": size}
            assert "model.onnx_data" not in printed
            continue
        assert files.keys() == {"model.onnx", "model.onnx_data"}
        assert files["model.onnx"] < size - weights + 10_000
        assert "model.onnx_data: " in printed
        # Relative to the model, so that the folder can move; and on pages, to be mapped.
        folder = folder.rename(tmp_path / "moved")
        loaded = onnx.load(folder / "onnx" / "model.onnx", load_external_data=False)
        for tensor in loaded.graph.initializer:
            if tensor.external_data:
                place = {entry.key: entry.value for entry in tensor.external_data}
                assert place["location"] == "model.onnx_data"
                assert int(place["offset"]) % 4096 == 0
        onnx.checker.check_model(folder / "onnx" / "model.onnx", full_check=True)
        ids = [[0, 5, 6, 7, 2], [0, 9, 2]]
        one, two = run(session(tmp_path / "one"), ids), run(session(folder), ids)
        assert np.array_equal(one, two)
        folder.rename(tmp_path / str(limit))


@pytest.mark.parametrize("limit", [0, 1_000_000_000])
def test_the_file_is_what_onnx_reads(tiny_folder: Path, tmp_path: Path, limit: int) -> None:
    """Every weight bit by bit, matrices turned; and a graph that onnx itself finds valid."""
    convert("onnx", tiny_folder, tmp_path / "new", "--largest-in-file", str(limit))
    path = tmp_path / "new" / "onnx" / "model.onnx"
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    assert [entry.name for entry in model.graph.input] == ["input_ids", "attention_mask"]
    assert [entry.name for entry in model.graph.output] == [
        "sentence_embedding",
        "last_hidden_state",
    ]
    stored = load_file(tiny_folder / "model.safetensors")
    found = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for name, tensor in stored.items():
        matrix = name.startswith("encoder.") and tensor.ndim == 2
        assert np.array_equal(found[name], (tensor.T if matrix else tensor).numpy())
    assert all(found[name].size <= 4 for name in found.keys() - stored.keys())  # constants
    assert model.SerializeToString() == onnx.load(path).SerializeToString()


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float16"])
def test_a_source_in_low_precision(tiny_folder: Path, tmp_path: Path, dtype: str) -> None:
    low = tmp_path / "low"
    convert("dtype", tiny_folder, low, "--dtype", dtype)
    convert("onnx", low, tmp_path / "new", "--verify")
    expected = E5.from_pretrained(low, dtype="float32").encode_passage("tea")
    ids = E5.from_pretrained(low).tokenizer.encode("passage: tea")
    assert np.abs(run(session(tmp_path / "new"), [ids]) - expected).max() < UNIT_VECTOR_FLOAT32


def test_what_travels_along(tiny_folder: Path, tmp_path: Path) -> None:
    convert("onnx", tiny_folder, tmp_path / "new")
    assert {name for name in content(tmp_path / "new") if "/" not in name} == {
        "config.json",
        "config_sentence_transformers.json",
        "modules.json",
        "sentence_bert_config.json",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.mark.parametrize(
    "name", ["encoder.layer.1.output.dense.bias", "embeddings.position_embeddings.weight"]
)
def test_a_difference_is_found(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    """One number of one tensor, a tenth off."""
    check_finite = to_onnx.check_finite

    def changed(found: str, tensor: torch.Tensor) -> torch.Tensor:
        tensor = check_finite(found, tensor)
        if found == name:
            tensor = tensor.clone()
            tensor.view(-1)[tensor.numel() // 2] += 0.1
        return tensor

    monkeypatch.setattr(to_onnx, "check_finite", changed)
    line = refused("onnx", capsys, tmp_path / "new", tiny_folder, tmp_path / "new", "--verify")
    assert "tokens differ from e5core's by" in line
    assert not (tmp_path / "new").exists()


def test_a_number_that_is_none_is_named(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_file(tiny_folder / "model.safetensors")
    state["encoder.layer.0.intermediate.dense.weight"][3, 4] = float("nan")
    save_file(state, tiny_folder / "model.safetensors")
    line = refused("onnx", capsys, tmp_path / "new", tiny_folder, tmp_path / "new")
    assert "encoder.layer.0.intermediate.dense.weight holds a NaN" in line
    assert not (tmp_path / "new").exists()


def test_a_package_that_is_missing_is_named(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(to_onnx, "find_spec", lambda name: None if name == "onnxruntime" else name)
    line = refused("onnx", capsys, tmp_path / "new", tiny_folder, tmp_path / "new", "--verify")
    assert "onnxruntime is not installed; python -m pip install 'e5core[onnx]'" in line
    convert("onnx", tiny_folder, tmp_path / "new")


@pytest.mark.parametrize("largest_in_file", [0, 2_000_000_000])
def test_a_full_disk(make_tiny: Make, tmp_path: Path, largest_in_file: int) -> None:
    folder = make_tiny()
    config = EncoderConfig("bert", 8_000, 64, 1, 4, 128, 64, 0, 2, 1e-12)
    save_checkpoint(Encoder(config), folder)  # 2 MB, larger than the tokenizer
    (tmp_path / "beside").mkdir()
    arguments = (folder, tmp_path / "beside" / "new", "--largest-in-file", str(largest_in_file))
    done = convert_in_process("onnx", *arguments, limit=1_500_000)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "model.onnx" in done.stderr
    assert "File too large" in done.stderr
    assert not list((tmp_path / "beside").iterdir())


@pytest.mark.exhaustive(sample=0)
def test_the_real_model(real_folder: Path, tmp_path: Path, measured: Callable[[str], None]) -> None:
    done = convert_in_process("onnx", real_folder, tmp_path / "new", "--verify")
    assert done.returncode == 0, done.stderr
    measured("e5-small: " + done.stdout.splitlines()[0].removeprefix("verified: "))


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize("largest_in_file", [0, 2_000_000_000])
def test_memory_is_that_of_the_largest_tensor(
    make_tiny: Make, tmp_path: Path, measured: Callable[[str], None], largest_in_file: int
) -> None:
    folder = make_tiny()
    config = EncoderConfig("bert", 20_000, 512, 12, 8, 2048, 64, 0, 2, 1e-12)
    save_checkpoint(Encoder(config), folder)
    size, largest = (folder / "model.safetensors").stat().st_size, 20_000 * 512 * 4
    arguments = (folder, tmp_path / "new", "--largest-in-file", str(largest_in_file))
    done = convert_in_process("onnx", *arguments, wrapper=MEMORY)
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout.split("grown by")[1])
    measured(
        f"onnx: {size / 1e6:.0f} MB of weights, largest tensor {largest / 1e6:.0f} MB: "
        f"memory grew by {grown / 1e6:.0f} MB"
    )
    assert grown < largest + 50e6


def test_a_number_that_float32_does_not_hold(
    make_tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, target = make_tiny(), tmp_path / "new"
    state = load_file(folder / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    state[name] = state[name].double()
    state[name][3, 4] = 1e300
    save_file(state, folder / "model.safetensors")
    line = refused("onnx", capsys, target, folder, target)
    assert f"{name} holds 1e+300, but torch.float32 ends at" in line


def test_an_instruct_model_needs_its_task(
    make_tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As for sentence-transformers, which takes the prompts as they are written."""
    folder, target = make_tiny(name="multilingual-e5-large-instruct"), tmp_path / "new"
    (folder / "config_sentence_transformers.json").unlink()
    line = refused("onnx", capsys, target, folder, target)
    assert "its queries start with an instruction" in line
    convert("onnx", folder, target, "--task", "Find it", "--verify")
    prompts = read_json_object(target / "config_sentence_transformers.json")["prompts"]
    assert prompts["query"] == "Instruct: Find it\nQuery: "


@pytest.fixture
def long_model(make_tiny: Make, dialect: str, tmp_path: Path) -> tuple[E5, Any]:
    """A tiny model with room for 512 tokens, in e5core and in ONNX Runtime."""
    folder = make_tiny(dialect)
    rows = TINY[dialect].first_position + 512
    config = replace(TINY[dialect], max_position_embeddings=rows)
    save_checkpoint(spread_weights(Encoder(config)), folder)
    convert("onnx", folder, tmp_path / "new")
    return E5.from_pretrained(folder, device="cpu"), session(tmp_path / "new")


def test_lengths_and_batch_shapes(
    long_model: tuple[E5, Any], dialect: str, measured: Callable[[str], None]
) -> None:
    model, exported = long_model
    generator = np.random.default_rng(0)
    lengths = [1, 2, 3, 31, 64, 100, 511, 512] * 2
    ids = [[0, 119, *generator.integers(0, 120, n).tolist()][:n] for n in lengths]
    expected = encode_ids(model, ids, 1)
    differences = [
        np.abs(run(exported, ids[start : start + size], left) - expected[start : start + size])
        for size in (1, 2, 7, len(ids))
        for left in (False, True)
        for start in range(0, len(ids), size)
    ]
    worst = max(float(difference.max()) for difference in differences)
    assert worst < UNIT_VECTOR_FLOAT32
    measured(f"ONNX, {dialect}, 1 to 512 tokens: vectors differ by at most {worst:.1e}")


def test_the_hidden_states_are_those_that_were_pooled(long_model: tuple[E5, Any]) -> None:
    """As a library does that pools them itself."""
    _, exported = long_model
    inputs = to_onnx.pad([[0, 5, 6, 7, 2], [0, 2], [0] * 40])
    vectors, states = exported.run(["sentence_embedding", "last_hidden_state"], inputs)
    assert states.shape == (3, 40, 24)
    sums = (states * inputs["attention_mask"][..., None]).sum(axis=1)
    expected = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    assert np.abs(vectors - expected).max() < UNIT_VECTOR_FLOAT32


@pytest.mark.parametrize("ids", [[5] * 513, [5, 120], [5, -121]])
def test_the_runtime_refuses_what_has_no_row(long_model: tuple[E5, Any], ids: list[int]) -> None:
    """A token too many, and ids that are none."""
    _, exported = long_model
    with pytest.raises(Exception, match="out of data bounds"):
        run(exported, [ids])


def test_a_runtime_that_is_too_old(
    make_tiny: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from e5core.convert import onnx_graph

    encoder_model = onnx_graph.encoder_model

    def of_tomorrow(*arguments: Any, **options: Any) -> Any:
        model = encoder_model(*arguments, **options)
        model.ir_version = 99
        return model

    folder, target = make_tiny(), tmp_path / "new"
    monkeypatch.setattr(onnx_graph, "encoder_model", of_tomorrow)
    line = refused("onnx", capsys, target, folder, target, "--verify")
    assert f"ONNX Runtime {onnxruntime.__version__} does not read the result" in line


KILLED = """
import os, signal, e5core.convert.weights as weights
check_finite, calls = weights.check_finite, []

def killed(name, tensor):
    calls.append(name)
    if len(calls) == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    return check_finite(name, tensor)

weights.check_finite = killed
"""


def test_a_run_killed_while_it_writes(make_tiny: Make, tmp_path: Path) -> None:
    source, target = make_tiny(), tmp_path / "beside" / "new"
    target.parent.mkdir()
    make_tiny(seed=1, name="old").rename(target)
    before = content(target)
    done = convert_in_process("onnx", source, target, "--force", wrapper=KILLED)
    assert done.returncode == -9, done.stderr
    assert (target.parent / ".new.partial" / "onnx" / "model.onnx").stat().st_size > 0
    assert content(target) == before
    convert("onnx", source, target, "--force")
    convert("onnx", source, tmp_path / "fresh")
    assert content(target.parent) == {
        f"new/{name}": data for name, data in content(tmp_path / "fresh").items()
    }


def test_token_types_are_an_input_on_request(tiny_folder: Path, tmp_path: Path) -> None:
    """Runtimes that feed three inputs whatever the model get the same vectors."""
    convert("onnx", tiny_folder, tmp_path / "new", "--token-type-ids", "--verify")
    exported = session(tmp_path / "new")
    names = {"input_ids", "attention_mask", "token_type_ids"}
    assert {entry.name for entry in exported.get_inputs()} == names
    model = E5.from_pretrained(tiny_folder)
    inputs = to_onnx.pad([cut(model.tokenizer.encode(text), 64) for text in TEXTS])
    inputs["token_type_ids"] = np.zeros_like(inputs["input_ids"])
    (found,) = exported.run(["sentence_embedding"], inputs)
    assert np.abs(found - model.encode(TEXTS, input_type=None)).max() < UNIT_VECTOR_FLOAT32


@pytest.mark.parametrize("activation", ["Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU"])
@pytest.mark.parametrize("residual", [False, True])
def test_steps_dense_are_part_of_the_graph(
    make_tiny: Make, tmp_path: Path, activation: str, residual: bool
) -> None:
    folder = make_tiny()
    step = folder / "2_Dense"
    step.mkdir()
    config = {"in_features": 24, "out_features": 10, "bias": not residual}
    config |= {"activation_function": f"torch.nn.modules.activation.{activation}"}
    write_json(step / "config.json", {**config, "use_residual": residual})
    torch.manual_seed(1)
    # As wide as a trained layer: larger numbers would enlarge the rounding of what goes in.
    tensors = {"linear.weight": torch.randn(10, 24) / 24**0.5}
    tensors["residual.weight" if residual else "linear.bias"] = (
        torch.randn(10, 24) / 24**0.5 if residual else torch.randn(10)
    )
    save_file(tensors, step / "model.safetensors")
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
    modules = [{"path": path, "type": f"x.{kind}"} for path, kind in kinds.items()]
    write_json(folder / "modules.json", modules)
    convert("onnx", folder, tmp_path / "new", "--verify")
    model = E5.from_pretrained(folder)
    assert model.dimension == 10
    ids = [cut(model.tokenizer.encode(text), 64) for text in TEXTS]
    found = run(session(tmp_path / "new"), ids)
    assert np.abs(found - model.encode(TEXTS, input_type=None)).max() < UNIT_VECTOR_FLOAT32
