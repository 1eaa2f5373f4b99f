"""A job that was stopped goes on: nothing is done twice, and the journal stays small."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.adapters import write_adapter
from support.bulk import TEXTS, embed, interrupt
from support.models import CPU, tiny_encoder, write_tiny_model

from e5core import E5, Index, save_checkpoint
from e5core.bulk import PartialOutputError, partial_folder
from e5core.bulk.queries import QueryOptions, query_model
from e5core.checkpoint.options import LoadOptions
from e5core.formats.fast_tokenizer import TextStep, TextSteps
from e5core.formats.files import write_json
from e5core.formats.tokenizer_json import tokenizer_json, with_steps
from e5core.kernels import BACKENDS, select


def test_rows_that_are_done_are_not_computed_again(
    model: Path, texts: Path, npy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(model, texts, npy, after=3)
    embedded: list[str] = []
    original = E5.embed

    def spy(self: E5, texts: list[str], **options: Any) -> Any:
        embedded.extend(texts)
        return original(self, texts, **options)

    monkeypatch.setattr(E5, "embed", spy)
    assert embed(model, texts, npy).rows == 60
    assert embedded == TEXTS[21:]


def test_rows_added_at_the_end_are_taken_along(model: Path, texts: Path, npy: Path) -> None:
    interrupt(model, texts, npy)
    with texts.open("a") as file:
        file.write('{"text": "one more"}\n')
    assert embed(model, texts, npy).rows == 61


def test_a_journal_does_not_grow_with_the_files(model: Path, tmp_path: Path, npy: Path) -> None:
    sizes = []
    for count in (20, 200):
        folder = tmp_path / f"in{count:03}"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number:03}.txt").write_text("a\n")
        interrupt(model, folder, npy, after=2)
        journal = json.loads((partial_folder(npy) / "journal.json").read_text())
        journal["done"]["seconds"] = 0
        sizes.append(len(json.dumps(journal)))
        assert embed(model, folder, npy).rows == count
    assert sizes[0] == sizes[1]


def test_an_error_of_writing_the_journal_names_it(
    model: Path, texts: Path, npy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def full(number: int) -> None:
        if Path(f"/proc/self/fd/{number}").resolve().name == "journal.json.temporary":
            raise OSError(28, "No space left on device")
        fsync(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*journal\.json\.temporary"):
        embed(model, texts, npy)


def test_int8_does_not_go_on_with_float32(model: Path, texts: Path, npy: Path) -> None:
    """The kernels of both have one name, and their hidden states one dtype."""
    interrupt(model, texts, npy, kernels="onednn", dtype="float32")
    with pytest.raises(PartialOutputError, match="dtype was 'float32', is 'int8'"):
        embed(model, texts, npy, kernels="onednn", dtype="int8")


def test_kernels_that_are_missing_are_named_with_the_reason(
    model: Path, texts: Path, npy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that native began is not gone on with by others, and they say why they run."""
    if BACKENDS["native"].unavailable(CPU, torch.float32):
        pytest.skip("native cannot run here")
    label = select("native").label
    assert embed(model, texts, npy.with_name("whole.npy")).kernels == label
    interrupt(model, texts, npy)
    reason = "they were not compiled"
    monkeypatch.setattr(BACKENDS["native"], "unavailable", lambda *_: reason)
    expected = rf"kernels was '{label}', is 'onednn' \(native cannot be used: {reason}\)"
    with pytest.raises(PartialOutputError, match=expected):
        embed(model, texts, npy)
    done = embed(model, texts, npy.with_name("other.npy"))
    assert done.kernels == f"onednn (native cannot be used: {reason})"


def write_fast(model: Path, *steps: TextStep) -> None:
    """A tokenizer.json beside the SentencePiece model."""
    content = tokenizer_json((model / "sentencepiece.bpe.model").read_bytes())
    content = with_steps(content, TextSteps(before=steps))
    (model / "tokenizer.json").write_text(json.dumps(content))


def write_dense(model: Path, seed: int = 0) -> None:
    """A linear layer behind the pooling, in a folder that no release calls so."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "projection": "Dense"}
    write_json(
        model / "modules.json",
        [{"path": path, "type": f"sentence_transformers.models.{kinds[path]}"} for path in kinds],
    )
    (model / "projection").mkdir(exist_ok=True)
    sizes = {"in_features": 24, "out_features": 8, "bias": False}
    write_json(model / "projection" / "config.json", sizes)
    weight = torch.randn(8, 24, generator=torch.Generator().manual_seed(seed))
    save_file({"linear.weight": weight}, model / "projection" / "model.safetensors")


LOWER = TextStep("Lowercase")
# Each changes what a model makes of texts, and says which file is another then.
CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "steps come": (lambda folder: write_fast(folder, LOWER), r"tokenizer\.json"),
    "steps go": (lambda folder: write_fast(folder), r"tokenizer\.json"),
    "other steps": (
        lambda folder: write_fast(folder, LOWER, TextStep("StripAccents")),
        r"tokenizer\.json",
    ),
    "an adapter's base": (
        lambda folder: save_checkpoint(tiny_encoder("bert", 1), folder),
        r"base model's model\.safetensors",
    ),
    "the base's tokenizer": (
        lambda folder: write_fast(folder, LOWER),
        r"base model's tokenizer\.json",
    ),
    "a step Dense": (
        lambda folder: write_dense(folder, seed=1),
        r"projection/model\.safetensors",
    ),
    "the base's limit": (
        lambda folder: write_json(folder / "tokenizer_config.json", {"model_max_length": 60}),
        r"base model's tokenizer_config\.json",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_model_that_has_changed_is_named(
    tmp_path: Path, texts: Path, npy: Path, kind: str
) -> None:
    """While a job is stopped, or after it, whatever file of the model it was."""
    change, file = CHANGES[kind]
    folder = model = write_tiny_model(tmp_path / "tiny", "bert")
    if "base" in kind:
        model = write_adapter(tmp_path / "adapter", folder)
    elif kind == "a step Dense":
        write_dense(folder)
    elif kind != "steps come":
        write_fast(folder, LOWER)
    finished = npy.with_name("finished.npy")
    interrupt(model, texts, npy)
    embed(model, texts, finished)
    change(folder)
    with pytest.raises(PartialOutputError, match=rf"the model's {file} is another.*restart=True"):
        embed(model, texts, npy)
    with pytest.raises(FileExistsError, match=rf"the model's {file} is another.*force=True"):
        embed(model, texts, finished)
    options = QueryOptions(load=LoadOptions())
    with pytest.raises(ValueError, match=rf"made by another model.*the model's {file} is another"):
        query_model(Index.open(finished), finished, options)


def test_a_tokenizer_json_that_says_nothing_more_changes_no_model(
    model: Path, texts: Path, npy: Path
) -> None:
    """Other programs add it to a download."""
    interrupt(model, texts, npy)
    write_fast(model)
    assert embed(model, texts, npy).rows == len(TEXTS)
    (model / "tokenizer.json").unlink()
    assert embed(model, texts, npy).rows == len(TEXTS)
