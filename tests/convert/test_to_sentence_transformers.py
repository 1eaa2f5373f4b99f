"""A folder of e5core in sentence-transformers and transformers, loaded by the libraries."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import keep_rows
from support.conversions import MEMORY, content, convert, convert_in_process, refused, run_convert

from e5core import E5, Encoder, EncoderConfig, save_checkpoint
from e5core.checkpoint import beside
from e5core.formats.files import read_json_object, write_json
from e5core.formats.tokenizer_json import write_fast_tokenizer
from e5core.parity.samples import QUERIES, SENTENCES, spread, spread_weights
from e5core.parity.tolerances import UNIT_VECTOR_FLOAT32

Make = Callable[..., Path]
TEXTS = [*spread([*SENTENCES, *QUERIES], 24), "", "a  b", "long " * 600]


@pytest.fixture
def library() -> Any:
    return pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )


def assert_same_vectors(
    library: Any, source: Path, target: Path, texts: Sequence[str] = TEXTS, **options: Any
) -> float:
    """Queries and passages, by the methods that know prompts; returns the largest difference."""
    ours = E5.from_pretrained(source, **options)
    theirs = library.SentenceTransformer(str(target), device="cpu")
    queries, passages = ours.encode_query(texts), ours.encode_passage(texts)
    worst = 0.0
    for expected, found in (
        (queries, theirs.encode_query(texts)),
        (passages, theirs.encode_document(texts)),
        (passages, theirs.encode(texts, prompt_name="passage")),
        (ours.encode(texts, input_type=None), theirs.encode(texts)),
    ):
        worst = max(worst, float(abs(expected - found).max()))
    assert worst < UNIT_VECTOR_FLOAT32
    return worst


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sentence_transformers_gives_the_same_vectors(
    tiny_folder: Path, tmp_path: Path, library: Any, pooling: str
) -> None:
    flag = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}[pooling]
    write_json(tiny_folder / "1_Pooling" / "config.json", {flag: True})
    convert("sentence-transformers", tiny_folder, tmp_path / "new")
    assert_same_vectors(library, tiny_folder, tmp_path / "new")
    # Nothing of it is the library's guess.
    model = library.SentenceTransformer(str(tmp_path / "new"), device="cpu")
    assert model.max_seq_length == 64
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]


def test_a_lower_limit_and_other_prompts_travel(
    make_tiny: Make, tmp_path: Path, library: Any
) -> None:
    folder = make_tiny()
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 20})
    settings = {"prompts": {"query": "the: ", "passage": ""}, "default_prompt_name": None}
    write_json(folder / "config_sentence_transformers.json", settings)
    convert("sentence-transformers", folder, tmp_path / "new", "--verify")
    assert_same_vectors(library, folder, tmp_path / "new")


@pytest.mark.parametrize("dialect", ["bert", "xlm-roberta"])
def test_transformers_takes_the_folder(
    make_tiny: Make, dialect: str, tmp_path: Path, oracle: ModuleType
) -> None:
    folder = make_tiny(dialect)
    convert("sentence-transformers", folder, tmp_path / "new")
    transformers: Any = oracle.transformers
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    ids = tokenizer(TEXTS, truncation=True)["input_ids"]
    expected = oracle.reference_vectors(oracle.load_reference(tmp_path / "new"), ids)
    found = E5.from_pretrained(folder).encode(TEXTS, input_type=None)
    assert abs(found - expected).max() < UNIT_VECTOR_FLOAT32


def test_e5core_takes_the_result_as_the_source(tiny_folder: Path, tmp_path: Path) -> None:
    """To the bit, and once more converted it stays as it is."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    convert("sentence-transformers", tiny_folder, once)
    before, after = E5.from_pretrained(tiny_folder), E5.from_pretrained(once)
    assert (before.prompts, before.pooling) == (after.prompts, after.pooling)
    assert np.array_equal(before.encode_query(TEXTS), after.encode_query(TEXTS))
    weights = (tiny_folder / "model.safetensors").read_bytes()
    assert (once / "model.safetensors").read_bytes() == weights
    convert("sentence-transformers", once, twice)
    assert content(twice) == content(once)


def test_old_names_in_and_published_names_out(
    make_tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_tiny("xlm-roberta")
    state = load_file(folder / "model.safetensors")
    before = (folder / "model.safetensors").read_bytes()
    renamed = {
        "roberta."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in state.items()
    }
    head = {"lm_head.bias": torch.zeros(3), "roberta.embeddings.position_ids": torch.arange(3)}
    save_file({**renamed, **head}, folder / "model.safetensors")
    convert("sentence-transformers", folder, tmp_path / "new", "--verify")
    assert (tmp_path / "new" / "model.safetensors").read_bytes() == before
    assert "encoder: lm_head.bias, roberta.embeddings.position_ids\n" in capsys.readouterr().out


def test_a_source_with_tokenizer_json_alone(make_tiny: Make, tmp_path: Path, library: Any) -> None:
    folder = make_tiny()
    file = folder / "sentencepiece.bpe.model"
    write_fast_tokenizer(file.read_bytes(), folder, 64)
    model = file.read_bytes()
    file.unlink()
    convert("sentence-transformers", folder, tmp_path / "new")
    assert (tmp_path / "new" / "sentencepiece.bpe.model").read_bytes() == model
    assert_same_vectors(library, folder, tmp_path / "new")


def test_shards_become_one_file(make_tiny: Make, tmp_path: Path) -> None:
    folder = make_tiny()
    whole = (folder / "model.safetensors").read_bytes()
    state = list(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    parts = {f"model-{i}.safetensors": dict(state[i::2]) for i in range(2)}
    for name, part in parts.items():
        save_file(part, folder / name)
    weight_map = {tensor: name for name, part in parts.items() for tensor in part}
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    convert("sentence-transformers", folder, tmp_path / "new", "--verify")
    assert (tmp_path / "new" / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_a_source_in_low_precision(
    make_tiny: Make, tmp_path: Path, library: Any, dtype: str
) -> None:
    """Stored as it was or, from int8, as what it stands for, and computed in float32."""
    convert("dtype", make_tiny(), tmp_path / "low", "--dtype", dtype)
    convert("sentence-transformers", tmp_path / "low", tmp_path / "new", "--verify")
    assert_same_vectors(library, tmp_path / "low", tmp_path / "new", dtype="float32")
    stored = {tensor.dtype for tensor in load_file(tmp_path / "new" / "model.safetensors").values()}
    assert stored == {torch.float32 if dtype == "int8" else getattr(torch, dtype)}


TASK = "Find the answer"


def test_an_instruct_model_needs_its_task(
    make_tiny: Make, tmp_path: Path, library: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, target = make_tiny(name="multilingual-e5-large-instruct"), tmp_path / "new"
    (folder / "config_sentence_transformers.json").unlink()
    line = refused("sentence-transformers", capsys, target, folder, target)
    assert "its queries start with an instruction" in line
    convert("sentence-transformers", folder, target, "--task", TASK, "--verify")
    ours = E5.from_pretrained(folder)
    theirs = library.SentenceTransformer(str(target), device="cpu")
    expected = ours.encode_query(TEXTS, task=TASK)
    assert abs(theirs.encode_query(TEXTS) - expected).max() < UNIT_VECTOR_FLOAT32
    assert np.array_equal(E5.from_pretrained(target).encode_query(TEXTS), expected)
    line = refused(
        "sentence-transformers", capsys, target, folder, target, "--prompts", "e5", "--task", TASK
    )
    assert "is there already" in line
    other = tmp_path / "other"
    line = refused(
        "sentence-transformers", capsys, other, folder, other, "--prompts", "e5", "--task", TASK
    )
    assert "its queries take no instruction; leave --task out" in line


def test_a_model_that_does_not_say_its_prompts(
    make_tiny: Make, tmp_path: Path, library: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_tiny()
    (folder / "config_sentence_transformers.json").unlink()
    convert("sentence-transformers", folder, tmp_path / "unknown")
    assert "no prompts: the source does not say which" in capsys.readouterr().out
    convert("sentence-transformers", folder, tmp_path / "known", "--prompts", "e5")
    assert_same_vectors(library, folder, tmp_path / "known", prompts="e5")


def test_a_difference_is_found(
    make_tiny: Make,
    tmp_path: Path,
    library: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """--verify against a result whose pooling is not the source's."""
    folder, target = make_tiny(), tmp_path / "new"
    written = beside.write_sentence_transformers_files

    def wrong(folder: Path, size: int, limit: int, pooling: str, prompts: Any) -> None:
        written(folder, size, limit, "cls", prompts)

    monkeypatch.setattr(beside, "write_sentence_transformers_files", wrong)
    assert run_convert("sentence-transformers", folder, target, "--verify") == 2
    line = capsys.readouterr().err
    assert "sentence-transformers' vectors differ from e5core's by" in line
    assert not target.exists()


def test_sources_that_are_wrong(
    make_tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new"
    whole = make_tiny()
    cases: list[tuple[str, Callable[[Path], object], str]] = [
        ("cut", lambda f: cut(f / "model.safetensors"), "is not a whole safetensors file"),
        ("no weights", lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        ("no tokenizer", lambda f: (f / "sentencepiece.bpe.model").unlink(), "has no sentencep"),
        ("cut tokenizer", lambda f: cut(f / "sentencepiece.bpe.model"), "not a SentencePiece"),
        ("type", lambda f: change(f, model_type="t5"), "model_type is 't5'"),
        ("size", lambda f: change(f, hidden_size=28), "embeddings.word_embeddings.weight is"),
        ("layers", lambda f: change(f, num_hidden_layers=4), "missing: encoder.layer.3."),
        ("rows", lambda f: keep_rows(f, 100), "they do not belong together"),
    ]
    for name, damage, message in cases:
        folder = Path(shutil.copytree(whole, tmp_path / name))
        damage(folder)
        assert message in refused("sentence-transformers", capsys, target, folder, target), name


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def change(folder: Path, **values: Any) -> None:
    config = read_json_object(folder / "config.json")
    write_json(folder / "config.json", {**config, **values})


def test_memory_is_that_of_the_largest_tensor(
    make_tiny: Make, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    folder = make_tiny()
    config = EncoderConfig("bert", 20_000, 512, 12, 8, 2048, 64, 0, 2, 1e-12)
    save_checkpoint(spread_weights(Encoder(config), 0), folder)
    size = (folder / "model.safetensors").stat().st_size
    largest = 20_000 * 512 * 4
    name = "sentence-transformers"
    done = convert_in_process(name, folder, tmp_path / "new", wrapper=MEMORY)
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout.split("grown by")[1])
    measured(
        f"{name}: {size / 1e6:.0f} MB of weights, largest tensor {largest / 1e6:.0f} MB: memory "
        f"grew by {grown / 1e6:.0f} MB"
    )
    assert grown < largest + 40e6 < size / 2


@pytest.mark.exhaustive(sample=0)
def test_the_real_model(
    real_folder: Path, tmp_path: Path, library: Any, measured: Callable[[str], None]
) -> None:
    convert("sentence-transformers", real_folder, tmp_path / "new")
    worst = assert_same_vectors(library, real_folder, tmp_path / "new", [*TEXTS[:6], TEXTS[-1]])
    measured(f"e5-small in sentence-transformers: vectors differ by at most {worst:.1e}")
    stored = (tmp_path / "new" / "model.safetensors").read_bytes()
    assert stored == (real_folder / "model.safetensors").read_bytes()
