"""Weights out: what transformers reads back, and never half of a file."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import IDS, assert_restored, load, states
from support.models import TINY, tiny_encoder, write_tiny_reranker

from e5core import E5, Encoder, EncoderConfig, load_checkpoint, save_checkpoint
from e5core.checkpoint.headers import WEIGHTS_FILE
from e5core.checkpoint.names import tensor_names
from e5core.encoder import ClassificationHead
from e5core.formats.files import read_json, replacing
from e5core.parity.tolerances import STORED_FLOAT32, UNIT_VECTOR_FLOAT32
from e5core.tokenizer import SentencePieceTokenizer


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

    def half(_: object, __: object, path: Path) -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    monkeypatch.setattr("e5core.checkpoint.save.write_tensors", half)
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
    assert read_json(folder / "config.json") == TINY[dialect].to_dict()


def test_a_cross_encoder_keeps_its_head(oracle: ModuleType, tmp_path: Path, dialect: str) -> None:
    """transformers finds every tensor under the name that it publishes, and gives our logits."""
    folder = write_tiny_reranker(tmp_path / "reranker", dialect)
    theirs, info = oracle.transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs.save_pretrained(tmp_path / "theirs")
    before, after = (load_file(path / WEIGHTS_FILE) for path in (tmp_path / "theirs", folder))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_head_and_its_config_belong_together(tmp_path: Path, dialect: str) -> None:
    config = replace(TINY[dialect], num_labels=1)
    with pytest.raises(ValueError, match=r"counts 1 labels, the head gives 0; pass .* as head="):
        save_checkpoint(Encoder(config), tmp_path)
    with pytest.raises(ValueError, match="counts 0 labels, the head gives 1"):
        save_checkpoint(tiny_encoder(dialect), tmp_path, ClassificationHead(config))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", ["model", "folder"])
def test_the_way_there_and_back_of_a_whole_model(
    oracle: ModuleType, tiny_folder: Path, tmp_path: Path, source: str
) -> None:
    """E5, transformers and sentence-transformers load what was saved like a model."""
    model = E5.from_pretrained(tiny_folder, kernels="sdpa", max_length=40)
    texts, target = ["the first text", "query " * 60], tmp_path / "saved"
    if source == "model":
        model.prompts = {"query": "ask: ", "passage": "found: "}
    save_checkpoint(model.encoder, target, like=model if source == "model" else tiny_folder)
    again = E5.from_pretrained(target, kernels="sdpa")
    assert again.prompts == model.prompts
    assert again.max_length == (40 if source == "model" else 64)
    again.max_length = 40
    found = again.encode_query(texts)
    assert (found == model.encode_query(texts)).all()
    tokenizer = oracle.transformers.AutoTokenizer.from_pretrained(target)
    assert tokenizer("query: the first")["input_ids"] == model.tokenizer.encode("query: the first")
    library = pytest.importorskip("sentence_transformers").SentenceTransformer(
        str(target), device="cpu"
    )
    library.max_seq_length = 40
    assert abs(library.encode_query(texts) - found).max() <= UNIT_VECTOR_FLOAT32


def test_a_model_that_nothing_can_be_saved_like(
    tiny_folder: Path, tmp_path: Path, dialect: str
) -> None:
    loaded, encoder = E5.from_pretrained(tiny_folder), tiny_encoder(dialect)
    tokenizer = SentencePieceTokenizer(tiny_folder / "sentencepiece.bpe.model")
    target = tmp_path / "saved"
    with pytest.raises(ValueError, match="put together from its parts; pass the folder"):
        save_checkpoint(encoder, target, like=E5(loaded.encoder, tokenizer))
    small = Encoder(replace(TINY[dialect], vocab_size=100))
    with pytest.raises(ValueError, match="has 111 ids, the token table 100 rows"):
        save_checkpoint(small, target, like=loaded)
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        save_checkpoint(encoder, target, like="./nowhere")
    assert not target.exists()
