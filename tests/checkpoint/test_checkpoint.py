"""Weights in and out: every published layout loads alike, every fault is named, none is silent."""

import json
import pickle
import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import TINY, tiny_encoder
from torch import Tensor

import e5core.formats.files
from e5core import CheckpointError, Encoder, EncoderConfig, load_checkpoint, save_checkpoint
from e5core.batching import pack
from e5core.checkpoint.headers import INDEX_FILE, WEIGHTS_FILE
from e5core.checkpoint.names import tensor_names, tensor_shapes
from e5core.parity.tolerances import STORED_FLOAT32

IDS = [[0, 17, 33, 99, 2], [0, 5, 119, 2]]
WORD = "embeddings.word_embeddings.weight"
QUERY = "encoder.layer.0.attention.self.query.weight"
Tensors = dict[str, Tensor]


@pytest.fixture
def folder(tmp_path: Path, dialect: str) -> Path:
    save_checkpoint(tiny_encoder(dialect), tmp_path / "tiny")
    return tmp_path / "tiny"


def load(path: Path, dialect: str, dtype: torch.dtype = torch.float32, meta: bool = True):
    with torch.device("meta" if meta else "cpu"):
        encoder = Encoder(TINY[dialect], "plain").to(dtype)
    load_checkpoint(encoder, path)
    return encoder.eval()


def states(encoder: Encoder) -> Tensor:
    with torch.no_grad():
        return encoder(pack(IDS, encoder.config))


def assert_restored(loaded: Encoder, original: Encoder | None = None) -> None:
    """The very same weights, and the same hidden states.

    Those within rounding: matrix libraries add in another order where memory, here a mapped
    file, is aligned in another way.
    """
    original = original or tiny_encoder(loaded.config.model_type)
    weights = original.state_dict()
    assert loaded.state_dict().keys() == weights.keys()
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == weights[name].dtype, name
        assert torch.equal(tensor, weights[name]), name
    if original.embeddings.word.weight.dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(states(loaded), states(original), atol=STORED_FLOAT32, rtol=0)


def rewrite(folder: Path, change: Callable[[Tensors], Tensors | None]) -> None:
    """Replace the weights of a folder by what `change` makes of them, or does to them."""
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file(change(tensors) or tensors, folder / WEIGHTS_FILE)


def split(folder: Path, shards: int = 3) -> dict[str, str]:
    """Turn the one file into several and an index, tensors dealt like cards; the weight_map."""
    tensors = load_file(folder / WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).unlink()
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[number::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_index(folder, {"metadata": {}, "weight_map": weight_map})
    return weight_map


def write_index(folder: Path, content: object) -> None:
    (folder / INDEX_FILE).write_text(json.dumps(content))


def refused(path: Path, dialect: str, *says: str, error: type[Exception] = CheckpointError) -> None:
    """Loading fails with this very error, which names all of `says`."""
    with pytest.raises(error) as caught:
        load(path, dialect)
    assert type(caught.value) is error
    for words in says:
        assert words in str(caught.value)


# ---- names


def test_names_are_a_bijection_with_the_encoder(dialect: str) -> None:
    names = tensor_names(TINY[dialect])
    with torch.device("meta"):
        ours = Encoder(TINY[dialect]).state_dict()
    assert len(set(names.values())) == len(names)
    assert set(names.values()) == set(ours)
    shapes = {name: tuple(ours[names[name]].shape) for name in names}
    assert tensor_shapes(TINY[dialect]) == shapes


def test_names_are_those_of_transformers(oracle: ModuleType, dialect: str) -> None:
    """Name by name with shapes; every dimension of the tiny models is another number."""
    encoder = tiny_encoder(dialect)
    config = oracle.transformers.AutoConfig.for_model(**encoder.config.to_dict())
    with torch.device("meta"):
        theirs = oracle.transformers.AutoModel.from_config(
            config, add_pooling_layer=False
        ).state_dict()
    ours = encoder.state_dict()
    assert {
        published: ours[name].shape for published, name in tensor_names(encoder.config).items()
    } == {name: tensor.shape for name, tensor in theirs.items()}


# ---- loading


def _task_model(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()} | {
        prefix + "pooler.dense.weight": torch.ones(24, 24),
        "lm_head.dense.weight": torch.ones(24, 24),
        "classifier.out_proj.bias": torch.ones(2),
        "cls.predictions.transform.LayerNorm.gamma": torch.ones(24),
        "cls.predictions.bias": torch.ones(120),
        prefix + "embeddings.position_ids": torch.arange(64)[None],
    }


def _old_norms(tensors: Tensors) -> Tensors:
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }


LAYOUTS: dict[str, Callable[[Tensors], Tensors | None]] = {
    "plain": lambda tensors: tensors,
    "pooler": lambda t: t | {"pooler.dense.weight": torch.ones(24, 24)},
    "position-ids": lambda t: t | {"embeddings.position_ids": torch.arange(64)[None]},
    "roberta": lambda tensors: _task_model(tensors, "roberta."),
    "bert": lambda tensors: _task_model(tensors, "bert."),
    "gamma-beta": _old_norms,
    "bert-gamma-beta": lambda tensors: _task_model(_old_norms(tensors), "bert."),
    "float64": lambda tensors: {name: tensor.double() for name, tensor in tensors.items()},
}


@pytest.mark.parametrize("meta", [True, False], ids=["meta", "memory"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_alike(folder: Path, dialect: str, layout: str, meta: bool) -> None:
    rewrite(folder, LAYOUTS[layout])
    assert_restored(load(folder, dialect, meta=meta))


@pytest.mark.parametrize("meta", [True, False], ids=["meta", "memory"])
@pytest.mark.parametrize("layout", ["plain", "roberta"])
def test_shards_load_alike(folder: Path, dialect: str, layout: str, meta: bool) -> None:
    rewrite(folder, LAYOUTS[layout])
    weight_map = split(folder)
    assert len({file for name, file in weight_map.items() if "layer.0." in name}) == 3
    assert_restored(load(folder, dialect, meta=meta))


def test_a_file_loads_without_its_folder(folder: Path, dialect: str) -> None:
    file = (folder / WEIGHTS_FILE).rename(folder.parent / "other-name.safetensors")
    assert_restored(load(file, dialect))


def test_a_header_of_any_length_loads(folder: Path, dialect: str) -> None:
    """The format asks for no alignment; transformers' files have it, others' may not."""
    header, data = _parts(folder)
    for spaces in range(1, 8):
        _write_parts(folder, header + b" " * spaces, data)
        assert_restored(load(folder, dialect))


@pytest.mark.parametrize("meta", [True, False], ids=["meta", "memory"])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_are_rounded_once(
    make_folder: Path, stored: torch.dtype, wanted: torch.dtype, meta: bool
) -> None:
    rewrite(make_folder, lambda tensors: {n: t.to(stored) for n, t in tensors.items()})
    loaded = load(make_folder, "bert", wanted, meta).state_dict()
    for name, tensor in tiny_encoder("bert").state_dict().items():
        assert loaded[name].dtype == wanted
        assert torch.equal(loaded[name], tensor.to(stored).to(wanted)), name


@pytest.fixture
def make_folder(tmp_path: Path) -> Path:
    """One dialect, where the other would take the same path."""
    save_checkpoint(tiny_encoder("bert"), tmp_path / "tiny")
    return tmp_path / "tiny"


def test_an_optimizer_made_before_loading_still_trains(folder: Path, dialect: str) -> None:
    encoder = Encoder(TINY[dialect], "plain").eval()
    parameters = dict(encoder.named_parameters())
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    load_checkpoint(encoder, folder)
    assert all(parameters[name] is now for name, now in encoder.named_parameters())
    encoder(pack(IDS, encoder.config)).square().sum().backward()
    optimizer.step()
    query = encoder.layers[0].attention.query.weight
    assert not torch.equal(query, tiny_encoder(dialect).layers[0].attention.query.weight)


def test_training_on_mapped_memory_leaves_the_file(folder: Path, dialect: str) -> None:
    before = (folder / WEIGHTS_FILE).read_bytes()
    encoder = load(folder, dialect)
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
    assert (folder / WEIGHTS_FILE).read_bytes() == before
    # Saving over the file that the encoder is mapped from.
    save_checkpoint(encoder, folder)
    assert_restored(load(folder, dialect), encoder)


MEASURE = """
import sys, torch
from pathlib import Path
from types import ModuleType
from e5core.checkpoint.folder import ModelFolder

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":"))

before = status("RssAnon"), status("VmHWM")
encoder = ModelFolder.read(Path(sys.argv[1])).load_encoder(device="cpu")
print(status("RssAnon") - before[0], status("VmHWM") - before[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_loading_maps_the_file(real_folder: Path) -> None:
    """Measured 2026-11 on the 448 MiB of small: 68 MiB of modules torch imports, peak 528."""
    command = [sys.executable, "-c", MEASURE, str(real_folder)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    private, peak = map(float, printed.split())
    file = (real_folder / WEIGHTS_FILE).stat().st_size / 2**20
    assert private < 200
    assert peak < file + 200


# ---- files that are not there or not whole


def test_no_weights(folder: Path, dialect: str) -> None:
    (folder / WEIGHTS_FILE).unlink()
    refused(folder, dialect, str(folder), WEIGHTS_FILE, "download", error=FileNotFoundError)
    refused(folder / "nowhere", dialect, "nowhere does not exist", error=FileNotFoundError)


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.marker,)


def test_a_pickle_is_never_opened(folder: Path, dialect: str) -> None:
    marker = folder / "executed"
    (folder / WEIGHTS_FILE).unlink()
    bomb = folder / "pytorch_model.bin"
    bomb.write_bytes(pickle.dumps(Bomb(marker)))
    refused(folder, dialect, "pytorch_model.bin", "convert it", error=FileNotFoundError)
    refused(bomb, dialect, "pytorch_model.bin", "not a whole safetensors file")
    bomb.rename(folder / WEIGHTS_FILE)
    refused(folder, dialect, "not a whole safetensors file")
    assert not marker.exists()
    pickle.loads((folder / WEIGHTS_FILE).read_bytes())
    assert marker.exists()  # the bomb works


@pytest.mark.parametrize("length", [0, 4, 7, 8, 9, 1000, -40000, -5, -1])
def test_truncated(folder: Path, dialect: str, length: int) -> None:
    content = (folder / WEIGHTS_FILE).read_bytes()[:length]
    (folder / WEIGHTS_FILE).write_bytes(content)
    refused(folder, dialect, f"{WEIGHTS_FILE} ({len(content)} bytes)", "download it again")


def _parts(folder: Path) -> tuple[bytes, bytes]:
    content = (folder / WEIGHTS_FILE).read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return content[8:end], content[end:]


def _write_parts(folder: Path, header: bytes, data: bytes, length: int | None = None) -> None:
    size = struct.pack("<Q", (len(header) if length is None else length) % 2**64)
    (folder / WEIGHTS_FILE).write_bytes(size + header + data)


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**62, -1])
def test_header_length_lies(make_folder: Path, length: int) -> None:
    _write_parts(make_folder, *_parts(make_folder), length)
    refused(make_folder, "bert", "not a whole safetensors file")


@pytest.mark.parametrize(
    "header", [b"", b"hello", b"[]", b"7", b'{"a":1}', b'{"\xff":1}', b"[" * 9999]
)
def test_header_is_no_header(make_folder: Path, header: bytes) -> None:
    _write_parts(make_folder, header, _parts(make_folder)[1])
    refused(make_folder, "bert", "not a whole safetensors file")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shape", [24, 23]),
        ("shape", [24, 24, 1, 2]),
        ("shape", [2**62, 24]),
        ("shape", [-24, -24]),
        ("data_offsets", [0, 10**12]),
        ("data_offsets", [0, 2304]),
        ("data_offsets", [2304, 0]),
        ("dtype", "F16"),
        ("dtype", "F99"),
    ],
)
def test_header_lies(make_folder: Path, field: str, value: object) -> None:
    header, data = _parts(make_folder)
    content = json.loads(header)
    content[QUERY][field] = value
    _write_parts(make_folder, json.dumps(content).encode(), data)
    refused(make_folder, "bert", "not a whole safetensors file")


# test_hard_use.py has every byte of the header, every length, and random damage.


# ---- content that is not the encoder's


def test_all_faults_in_one_error(folder: Path, dialect: str) -> None:
    def damage(tensors: Tensors) -> None:
        del tensors["encoder.layer.1.output.dense.bias"]
        tensors["encoder.layer.9.output.dense.bias"] = torch.zeros(24)
        tensors["embeddings.extra"] = torch.zeros(1)
        tensors[QUERY] = torch.zeros(24, 25)
        tensors["embeddings.position_embeddings.weight"] = torch.zeros(60, 24)
        tensors["encoder.layer.2.intermediate.dense.weight"] = torch.zeros(40, 24, dtype=torch.int8)
        # The headers are checked before any value: this one stays unseen.
        tensors[WORD].fill_(float("nan"))

    rewrite(folder, damage)
    rows = TINY[dialect].max_position_embeddings
    refused(
        folder,
        dialect,
        str(folder),
        "(6 faults)",
        "missing: encoder.layer.1.output.dense.bias",
        "unexpected: encoder.layer.9.output.dense.bias",
        "unexpected: embeddings.extra",
        f"misshapen: {QUERY} is [24, 25], config.json says [24, 24]",
        f"embeddings.position_embeddings.weight is [60, 24], config.json says [{rows}, 24]",
        "dtype: encoder.layer.2.intermediate.dense.weight is I8",
    )


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("num_hidden_layers", 2, "unexpected: encoder.layer.2.attention.self.query.weight"),
        ("num_hidden_layers", 4, "missing: encoder.layer.3.attention.self.query.weight"),
        ("hidden_size", 28, f"misshapen: {WORD} is [120, 24], config.json says [120, 28]"),
        ("intermediate_size", 41, "intermediate.dense.bias is [40], config.json says [41]"),
        ("vocab_size", 121, f"misshapen: {WORD}"),
        ("max_position_embeddings", 99, "misshapen: embeddings.position_embeddings.weight"),
        ("type_vocab_size", 3, "misshapen: embeddings.token_type_embeddings.weight"),
    ],
)
def test_config_and_weights_disagree(
    folder: Path, dialect: str, field: str, value: int, says: str
) -> None:
    content = TINY[dialect].to_dict() | {field: value}
    with torch.device("meta"):
        encoder = Encoder(EncoderConfig.from_dict(content))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(encoder, folder)
    assert says in str(caught.value)


def test_another_architecture(folder: Path, dialect: str) -> None:
    save_file({"wte.weight": torch.zeros(3, 4)}, folder / WEIGHTS_FILE)
    refused(folder, dialect, WORD, "roberta. or bert.", "wte.weight", "not a BERT")
    save_file({}, folder / WEIGHTS_FILE)
    refused(folder, dialect, WORD)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int32", "int64", "float8_e4m3fn"])
def test_quantised_tensors(folder: Path, dialect: str, dtype: str) -> None:
    rewrite(folder, lambda tensors: tensors | {QUERY: tensors[QUERY].to(getattr(torch, dtype))})
    refused(folder, dialect, f"dtype: {QUERY} is", "expected F16/BF16/F32/F64", "(1 faults)")


@pytest.mark.parametrize("meta", [True, False], ids=["meta", "memory"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_that_are_not_numbers(
    make_folder: Path, dtype: torch.dtype, value: float, meta: bool
) -> None:
    """In the word embeddings and in the last tensor; the encoder stays as it was."""
    good = {
        name: tensor.to(dtype) for name, tensor in load_file(make_folder / WEIGHTS_FILE).items()
    }
    for name in (WORD, "encoder.layer.2.output.LayerNorm.bias"):
        tensor = good[name].clone()
        tensor.view(-1)[-3] = value
        save_file(good | {name: tensor}, make_folder / WEIGHTS_FILE)
        with torch.device("meta" if meta else "cpu"):
            encoder = Encoder(TINY["bert"], "plain")
        before = {key: parameter.clone() for key, parameter in encoder.named_parameters()}
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(encoder, make_folder)
        assert f"{WEIGHTS_FILE}: {name} holds a NaN or an infinity" in str(caught.value)
        for key, parameter in encoder.named_parameters():
            assert parameter.is_meta == meta
            assert meta or torch.equal(parameter, before[key])


def test_every_tensor_is_looked_at(make_folder: Path) -> None:
    good = load_file(make_folder / WEIGHTS_FILE)
    for name in tensor_names(TINY["bert"]):
        tensor = good[name].clone()
        tensor.view(-1)[0] = float("nan")
        save_file(good | {name: tensor}, make_folder / WEIGHTS_FILE)
        refused(make_folder, "bert", f"{name} holds a NaN")


def test_too_large_for_float16(make_folder: Path) -> None:
    def enlarge(tensors: Tensors) -> None:
        tensors[QUERY][3, 4] = -70000.0

    rewrite(make_folder, enlarge)
    with pytest.raises(CheckpointError, match=r"holds 70000, too large for torch.float16; load it"):
        load(make_folder, "bert", torch.float16)
    # No sum is taken that could overflow, and the large number itself is no fault.
    loaded = load(make_folder, "bert", torch.bfloat16)
    assert loaded.layers[0].attention.query.weight[3, 4] == torch.tensor(-70000.0).bfloat16()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("embeddings.LayerNorm.weight", "embeddings.LayerNorm.gamma"),
        (QUERY, f"roberta.{QUERY}"),
    ],
)
def test_one_tensor_under_two_names(folder: Path, dialect: str, old: str, new: str) -> None:
    """Whichever won, half of such files would load as a wrong model."""

    def twice(tensors: Tensors) -> Tensors:
        tensors |= {new: tensors[old] + 1}
        if new.startswith("roberta."):
            tensors["roberta." + WORD] = tensors.pop(WORD)
        return tensors

    rewrite(folder, twice)
    refused(folder, dialect, old, new, "same tensor")


# ---- shards


def test_a_shard_is_missing(folder: Path, dialect: str) -> None:
    split(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(folder, dialect, INDEX_FILE, "model-00002-of-00003", error=FileNotFoundError)


def test_a_shard_is_truncated(folder: Path, dialect: str) -> None:
    split(folder)
    file = folder / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    refused(folder, dialect, file.name, "not a whole safetensors file")


@pytest.mark.parametrize(
    "outside", ["../other.safetensors", "/other.safetensors", "a/b", "", 7, []]
)
def test_an_index_cannot_leave_its_folder(folder: Path, dialect: str, outside: object) -> None:
    """Even where the file is there and good."""
    weight_map = split(folder)
    file = folder / weight_map[QUERY]
    file.rename(folder.parent / "other.safetensors")
    leading = {n: outside if f == file.name else f for n, f in weight_map.items()}
    if outside == "/other.safetensors":
        leading = {n: str(folder.parent) + f if f == outside else f for n, f in leading.items()}
    write_index(folder, {"weight_map": leading})
    refused(folder, dialect, INDEX_FILE, "expected the name of a file beside the index")


@pytest.mark.parametrize(
    "content", [{}, {"weight_map": None}, {"weight_map": {}}, {"weight_map": [1]}]
)
def test_an_index_without_a_map(folder: Path, dialect: str, content: object) -> None:
    split(folder)
    write_index(folder, content)
    refused(folder, dialect, INDEX_FILE, "has no weight_map")


@pytest.mark.parametrize(
    ("text", "says"), [("[1]", "list"), ("{", "not valid JSON"), ("[" * 99999, "JSON")]
)
def test_an_index_that_is_no_object(folder: Path, dialect: str, text: str, says: str) -> None:
    split(folder)
    (folder / INDEX_FILE).write_text(text)
    refused(folder, dialect, INDEX_FILE, says)


def test_a_tensor_lies_in_another_shard(folder: Path, dialect: str) -> None:
    weight_map = split(folder)
    other = next(file for file in weight_map.values() if file != weight_map[QUERY])
    write_index(folder, {"weight_map": weight_map | {QUERY: other}})
    refused(folder, dialect, QUERY, weight_map[QUERY], other, INDEX_FILE)


def test_a_tensor_in_two_shards(folder: Path, dialect: str) -> None:
    weight_map = split(folder)
    other = next(file for file in weight_map.values() if file != weight_map[QUERY])
    # Not in the index under that name, so that only the double is at fault.
    save_file(load_file(folder / other) | {QUERY: torch.zeros(24, 24)}, folder / other)
    write_index(folder, {"weight_map": {n: f for n, f in weight_map.items() if n != QUERY}})
    refused(folder, dialect, QUERY, weight_map[QUERY], other, "same tensor")


# ---- saving


def test_transformers_loads_what_is_saved(oracle: ModuleType, folder: Path, dialect: str) -> None:
    encoder = load(folder, dialect)
    theirs, info = oracle.transformers.AutoModel.from_pretrained(
        folder, add_pooling_layer=False, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    # Bit for bit the model that was given the tensors by hand, and ours within rounding.
    read = oracle.reference_hidden_states(theirs.eval(), IDS)
    given = oracle.reference_hidden_states(oracle.reference_model(encoder), IDS)
    assert all(torch.allclose(a, b, atol=STORED_FLOAT32) for a, b in zip(read, given, strict=True))
    torch.testing.assert_close(torch.cat(read), states(encoder), atol=STORED_FLOAT32, rtol=0)


def test_the_way_there_and_back_keeps_every_byte(
    oracle: ModuleType, tmp_path: Path, dialect: str
) -> None:
    torch.manual_seed(3)
    config = oracle.transformers.AutoConfig.for_model(**TINY[dialect].to_dict())
    theirs = oracle.transformers.AutoModel.from_config(config, add_pooling_layer=False)
    theirs.save_pretrained(tmp_path / "theirs")
    with torch.device("meta"):
        encoder = Encoder(EncoderConfig.from_file(tmp_path / "theirs" / "config.json"))
    assert encoder.config == TINY[dialect]
    load_checkpoint(encoder, tmp_path / "theirs")
    save_checkpoint(encoder, tmp_path / "ours")
    before, after = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(
        torch.equal(before[name].view(torch.int32), after[name].view(torch.int32))
        for name in before
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_saving_keeps_the_dtype(tmp_path: Path, dialect: str, dtype: torch.dtype) -> None:
    encoder = tiny_encoder(dialect).to(dtype)
    save_checkpoint(encoder, tmp_path)
    stored = load_file(tmp_path / WEIGHTS_FILE)
    for published, ours in tensor_names(encoder.config).items():
        assert stored[published].dtype == dtype
        assert torch.equal(stored[published], encoder.state_dict()[ours])
    assert_restored(load(tmp_path, dialect, dtype), encoder)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@contextmanager
def full_disk(space: int) -> Iterator[None]:
    """No file may grow past `space` bytes; Python ignores the signal and gets the error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (space, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("space", [0, 1000, 50_000])
def test_a_full_disk_leaves_the_old_files(folder: Path, dialect: str, space: int) -> None:
    before = contents(folder)
    with full_disk(space), pytest.raises(OSError, match=r"too large|cannot write"):
        save_checkpoint(tiny_encoder(dialect, seed=1), folder)
    assert contents(folder) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_broken_save_leaves_the_old_files(
    folder: Path, dialect: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder)

    def half(_: Tensors, path: Path, **__: object) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr("e5core.checkpoint.save.save_file", half)
    with pytest.raises(error):
        save_checkpoint(tiny_encoder(dialect, seed=1), folder)
    assert contents(folder) == before


def test_a_config_that_cannot_be_published_is_not_saved(tmp_path: Path) -> None:
    config = EncoderConfig("bert", 120, 24, 1, 4, 40, 66, 2, 2, 1e-12)
    with pytest.raises(ValueError, match="first_position is 2 in a bert config"):
        save_checkpoint(Encoder(config), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_saving_again_replaces_both_files(folder: Path, dialect: str) -> None:
    save_checkpoint(tiny_encoder(dialect, seed=1), folder)
    assert sorted(contents(folder)) == ["config.json", WEIGHTS_FILE]
    assert_restored(load(folder, dialect), tiny_encoder(dialect, seed=1))
    plain = folder / "plain"
    plain.touch()
    assert {file.stat().st_mode for file in folder.iterdir()} == {plain.stat().st_mode}
    assert e5core.formats.files.read_json(folder / "config.json") == TINY[dialect].to_dict()
