"""A model's folder: what it says of itself, and that its files are opened once."""

import builtins
import copy
import io
import pickle
import sys
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from support.adapters import write_adapter
from support.conversions import run_convert
from support.models import IN_FLOAT32, TINY, write_tiny_reranker

from e5core import E5, Reranker
from e5core.checkpoint import headers, hub
from e5core.checkpoint.folder import ModelFolder
from e5core.formats.files import write_json
from e5core.prompts import E5_INSTRUCT_PROMPTS, E5_PROMPTS


def test_what_a_folder_says(tiny_folder: Path, dialect: str) -> None:
    folder = ModelFolder.open(str(tiny_folder))
    assert folder == ModelFolder.read(tiny_folder)
    assert (folder.path, folder.name) == (tiny_folder, str(tiny_folder))
    assert folder.config == TINY[dialect]
    assert (folder.pooling, folder.prompts, folder.normalizes) == ("mean", E5_PROMPTS, False)
    assert folder.max_length == TINY[dialect].max_length
    assert folder.stored_dtype == torch.float32
    assert folder.tokenizer_file == tiny_folder / "sentencepiece.bpe.model"
    assert folder.load_tokenizer().vocab_size <= TINY[dialect].vocab_size


def test_the_limit_is_never_more_than_the_position_table_holds(make_tiny: Any) -> None:
    folder = make_tiny()
    for says, limit in ((20, 20), (999, TINY["bert"].max_length)):
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": says})
        assert ModelFolder.read(folder).max_length == limit
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": "twenty"})
    with pytest.raises(ValueError, match="max_seq_length is 'twenty', expected a whole number"):
        ModelFolder.read(folder)


def test_a_hub_id_tells_prompts(make_tiny: Any) -> None:
    name = "intfloat/multilingual-e5-large-instruct"
    assert ModelFolder.read(make_tiny(), name).prompts == E5_INSTRUCT_PROMPTS


def test_weights_can_be_left_aside(make_tiny: Any) -> None:
    folder = make_tiny()
    (folder / headers.WEIGHTS_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors and no"):
        ModelFolder.open(folder)
    assert ModelFolder.open(folder, weights=False).stored_dtype is None


def test_a_folder_without_config_or_tokenizer(make_tiny: Any) -> None:
    folder = make_tiny()
    (folder / "sentencepiece.bpe.model").unlink()
    read = ModelFolder.read(folder)
    assert read.tokenizer_file is None
    with pytest.raises(FileNotFoundError, match=r"no sentencepiece\.bpe\.model and no tokenizer\."):
        read.load_tokenizer()
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json: it is no model folder"):
        ModelFolder.read(folder)


def test_faults_of_the_weights_are_said_before_anything_is_loaded(make_tiny: Any) -> None:
    folder = make_tiny()
    config = TINY["bert"].to_dict() | {"intermediate_size": 41}
    write_json(folder / "config.json", config)
    with pytest.raises(headers.CheckpointError, match=r"config\.json says \[41, 24\]"):
        ModelFolder.read(folder)


def test_the_way_from_a_folder_to_its_headers_is_straight(make_tiny: Any) -> None:
    """No file is entered again, by a function of another one, after it was left."""
    rooms = Path(hub.__file__).parents[1]
    way: list[tuple[str, str]] = []

    def follow(frame: FrameType, event: str, _: Any) -> None:
        code, caller = frame.f_code, frame.f_back
        if event != "call" or rooms not in Path(code.co_filename).parents:
            return
        while caller is not None and rooms not in Path(caller.f_code.co_filename).parents:
            caller = caller.f_back
        # Methods are data, and what is asked of it.
        if (
            caller is not None
            and caller.f_code.co_filename != code.co_filename
            and code.co_name in frame.f_globals
        ):
            step = (Path(caller.f_code.co_filename).stem, Path(code.co_filename).stem)
            way.extend([step] if way[-1:] != [step] else [])

    folder = make_tiny()
    sys.setprofile(follow)
    try:
        ModelFolder.open(folder)
    finally:
        sys.setprofile(None)
    steps = groupby(callee for caller, callee in way if caller == "folder")
    assert [step for step, _ in steps] == [
        "hub",
        "contents",
        "adapters",
        "sentence_transformers",
        "limits",
        "prompts",
        "tokenizers",
        "headers",
    ]
    assert ("contents", "files") in way
    assert {caller for caller, callee in way if callee == "files"} == {"contents"}


def test_workers_can_be_handed_a_folder(make_tiny: Any) -> None:
    folder = ModelFolder.read(make_tiny())
    assert pickle.loads(pickle.dumps(folder)) == folder


@pytest.mark.parametrize("stored", ["float32", "int8"])
def test_everything_is_opened_once(
    make_tiny: Any, tmp_path: Path, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the dtype, for which the headers have to be looked at."""
    folder = make_tiny()
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 20})
    if stored == "int8":
        assert run_convert("dtype", folder, tmp_path / "int8", "--dtype", "int8") == 0
        folder = tmp_path / "int8"
    opened: Counter[str] = Counter()

    def counting(open_file: Callable[..., Any]) -> Callable[..., Any]:
        def opening(path: Any, *arguments: Any, **options: Any) -> Any:
            opened[str(path)] += 1
            return open_file(path, *arguments, **options)

        return opening

    header_reads: Counter[str] = Counter()
    read_headers = headers.read_headers

    def counting_headers(path: Path) -> Any:
        header_reads[path.name] += 1
        return read_headers(path)

    if sys.version_info < (3, 11):  # its pathlib keeps io.open under a name of its own
        opening = staticmethod(counting(io.open))
        monkeypatch.setattr("pathlib._NormalAccessor.open", opening)
    monkeypatch.setattr(io, "open", counting(io.open))
    monkeypatch.setattr(builtins, "open", counting(builtins.open))
    monkeypatch.setattr("e5core.checkpoint.folder.read_headers", counting_headers)
    monkeypatch.setattr("e5core.checkpoint.load.read_headers", counting_headers)
    model = E5.from_pretrained(folder, device="cpu")
    monkeypatch.undo()
    assert model.max_length == 20
    assert header_reads == {folder.name: 1}
    json_files = {str(path): 1 for path in folder.rglob("*.json")}
    assert len(json_files) == 4
    assert {path: n for path, n in opened.items() if path in json_files} == json_files


@pytest.mark.parametrize("kernels", IN_FLOAT32)
def test_models_travel_whatever_their_kernels(make_tiny: Any, tmp_path: Path, kernels: str) -> None:
    """And give the same bits, whether they are loaded anew or take their weights along."""
    options = {"kernels": kernels, "device": "cpu"}
    adapter = write_adapter(tmp_path / "adapter", make_tiny())
    model = E5.from_pretrained(adapter, **options)
    reranker = Reranker.from_pretrained(write_tiny_reranker(tmp_path / "rr", "bert"), **options)
    for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert copied.encoder.kernels.name == kernels
        np.testing.assert_array_equal(
            copied.encode_query(["a text"]), model.encode_query(["a text"])
        )
    for copied in (pickle.loads(pickle.dumps(reranker)), copy.deepcopy(reranker)):
        np.testing.assert_array_equal(
            copied.score("q", ["a", "b"]), reranker.score("q", ["a", "b"])
        )


@pytest.mark.parametrize("size", [0, -1, 25, True, "8", 8.5])
def test_a_size_that_is_none(make_tiny: Any, size: Any) -> None:
    """A 0 is no None."""
    folder = make_tiny()
    with pytest.raises(ValueError, match=rf"truncate_dim is {size!r}, .*pass 1 to 24"):
        E5.from_pretrained(folder, truncate_dim=size)
    with pytest.raises(ValueError, match=rf"truncate_dim is {size!r}, .*pass 1 to 24"):
        E5.from_pretrained(folder).encode_query("x", truncate_dim=size)


@pytest.mark.parametrize("limit", [0, 2, 65, True, "8", 8.5])
def test_a_limit_that_is_none(make_tiny: Any, limit: Any) -> None:
    with pytest.raises(ValueError, match=rf"max_length is {limit!r}, this model takes 3 to 64"):
        E5.from_pretrained(make_tiny(), max_length=limit)


def test_a_limit_may_be_any_whole_number(make_tiny: Any) -> None:
    for limit in (8.0, np.int64(8)):
        model = E5.from_pretrained(make_tiny(name=f"m{limit!r}"), max_length=limit)
        assert model.embed("a " * 30, input_type="query").truncated.all()
