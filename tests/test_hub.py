"""Hub ids: what is fetched, revisions, the cache, and every way in which it can fail."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hub_server import Hub, serving
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from e5core import E5, cli, hub
from e5core.files import write_json

MODEL = "somebody/tiny-e5"
CLUTTER = ("pytorch_model.bin", "README.md", "tokenizer.json", "onnx/model.onnx", "tf_model.h5")


@pytest.fixture
def server(monkeypatch):
    with serving(Hub()) as running:
        # huggingface_hub reads its environment when it is imported.
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield running


@pytest.fixture
def folder(make_tiny, server):
    """A published repository with all that lies about in such repositories."""
    folder = make_tiny(name="published")
    for name in CLUTTER:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"never to be fetched")
    server.repositories[MODEL] = {"main": folder}
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def vector(model: E5) -> np.ndarray:
    return model.encode_query("a text")


def test_only_the_needed_files_are_fetched(server, folder, cache):
    model = E5.from_pretrained(MODEL, cache_dir=cache)
    assert np.array_equal(vector(model), vector(E5.from_pretrained(folder)))
    assert server.fetched() == {
        "config.json",
        "sentencepiece.bpe.model",
        "1_Pooling/config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
    }


def test_a_second_load_fetches_nothing(server, folder, cache):
    E5.from_pretrained(MODEL, cache_dir=cache)
    server.requests.clear()
    E5.from_pretrained(MODEL, cache_dir=cache)
    assert server.fetched() == set()


def test_sharded_weights(server, folder, cache):
    expected = vector(E5.from_pretrained(folder))
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{i}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    (folder / "model.safetensors").unlink()
    assert np.array_equal(vector(E5.from_pretrained(MODEL, cache_dir=cache)), expected)


def test_revisions(server, folder, make_tiny, cache):
    other = make_tiny(seed=1, name="other")
    server.repositories[MODEL]["v2"] = other
    newest = vector(E5.from_pretrained(MODEL, cache_dir=cache))
    pinned = vector(E5.from_pretrained(MODEL, cache_dir=cache, revision="v2"))
    assert np.array_equal(newest, vector(E5.from_pretrained(folder)))
    assert np.array_equal(pinned, vector(E5.from_pretrained(other)))
    assert not np.allclose(newest, pinned, atol=0.01)
    commit = server.commit(MODEL, "v2")
    assert np.array_equal(
        vector(E5.from_pretrained(MODEL, cache_dir=cache, revision=commit)), pinned
    )


@pytest.mark.parametrize("revision", [None, "main", "commit"])
def test_the_cache_serves_when_the_hub_does_not(server, folder, cache, revision, monkeypatch):
    if revision == "commit":
        revision = server.commit(MODEL, "main")
    expected = vector(E5.from_pretrained(MODEL, cache_dir=cache, revision=revision))
    server.requests.clear()
    offline = E5.from_pretrained(MODEL, cache_dir=cache, revision=revision, local_files_only=True)
    assert server.requests == []
    assert np.array_equal(vector(offline), expected)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    unreachable = E5.from_pretrained(MODEL, cache_dir=cache, revision=revision)
    assert np.array_equal(vector(unreachable), expected)


def test_offline_by_environment(server, folder, cache):
    expected = vector(E5.from_pretrained(MODEL, cache_dir=cache))
    code = (
        "import sys; from e5core import E5; m = E5.from_pretrained(sys.argv[1], "
        "cache_dir=sys.argv[2]); print(m.encode_query('a text')[:3].tolist())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, MODEL, str(cache)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert eval(found) == pytest.approx(expected[:3].tolist(), abs=1e-6)


def test_a_repository_with_tokenizer_json_alone(server, folder, cache):
    (folder / "sentencepiece.bpe.model").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json is not valid JSON"):
        E5.from_pretrained(MODEL, cache_dir=cache)
    assert "tokenizer.json" in server.fetched()


@pytest.mark.parametrize("local", [True, False])
def test_neither_cache_nor_hub(cache, monkeypatch, local):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    why = "local_files_only is set" if local else "the hub cannot be reached"
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match=f"{MODEL} is not whole in the cache and {why}"):
        E5.from_pretrained(MODEL, cache_dir=cache, local_files_only=local)
    assert time.monotonic() - start < 60  # no endless retries


def test_an_unknown_revision(server, folder, cache):
    with pytest.raises(FileNotFoundError, match=f"{MODEL} has no revision 'v9'"):
        E5.from_pretrained(MODEL, cache_dir=cache, revision="v9")


def test_an_unknown_repository(server, cache):
    with pytest.raises(FileNotFoundError, match="'nobody/nothing' is not a folder here and not"):
        E5.from_pretrained("nobody/nothing", cache_dir=cache)


def test_a_gated_repository(server, folder, cache):
    server.gated.add(MODEL)
    with pytest.raises(FileNotFoundError, match="pass token= for a private or gated one"):
        E5.from_pretrained(MODEL, cache_dir=cache)


def test_a_private_repository(server, folder, cache):
    server.tokens[MODEL] = "hf_secret"
    with pytest.raises(FileNotFoundError, match="pass token="):
        E5.from_pretrained(MODEL, cache_dir=cache)
    model = E5.from_pretrained(MODEL, cache_dir=cache, token="hf_secret")
    assert np.array_equal(vector(model), vector(E5.from_pretrained(folder)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nope", "'./nope' is not a folder"),
        ("/nope/nope", "is not a folder"),
        ("~/nope", "is not a folder"),
        ("a/b/c", "'a/b/c' is not a folder"),
        ("", "'' is not a folder"),
        ("bad name!/x", "neither a folder nor a hub id"),
        ("double--dash/x..y", "neither a folder nor a hub id"),
    ],
)
def test_names_that_are_none(server, name, message):
    with pytest.raises(FileNotFoundError, match=message):
        E5.from_pretrained(name)
    assert server.requests == []


def test_a_file_in_place_of_a_folder(folder):
    with pytest.raises(NotADirectoryError, match="is a file; give the folder"):
        E5.from_pretrained(folder / "model.safetensors")


def test_a_repository_without_safetensors(server, folder, cache):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="e5core loads safetensors only"):
        E5.from_pretrained(MODEL, cache_dir=cache)
    assert not {"pytorch_model.bin", "tf_model.h5"} & server.fetched()


def test_a_download_that_breaks_is_never_taken_for_whole(server, folder, cache):
    server.broken.add("model.safetensors")
    with pytest.raises(OSError, match=f"{MODEL} could not be downloaded"):
        E5.from_pretrained(MODEL, cache_dir=cache)
    with pytest.raises(FileNotFoundError, match=MODEL):
        E5.from_pretrained(MODEL, cache_dir=cache, local_files_only=True)
    server.broken.clear()
    model = E5.from_pretrained(MODEL, cache_dir=cache)
    assert np.array_equal(vector(model), vector(E5.from_pretrained(folder)))


def test_info_fetches_no_weights_and_loading_still_does(server, folder, cache, capsys, monkeypatch):
    assert cli.main(["info", MODEL, "--cache-dir", str(cache)]) == 0
    assert "bert, 3 layers" in capsys.readouterr().out
    assert "model.safetensors" not in server.fetched()
    with pytest.raises(FileNotFoundError, match=MODEL):
        E5.from_pretrained(MODEL, cache_dir=cache, local_files_only=True)
    model = E5.from_pretrained(MODEL, cache_dir=cache)
    assert np.array_equal(vector(model), vector(E5.from_pretrained(folder)))


def test_a_folder_needs_no_hub(folder, tmp_path):
    """In an interpreter of its own: huggingface_hub is not even imported, nor torch's compiler."""
    shutil.copytree(folder, tmp_path / "copy")
    code = (
        "import sys; from e5core import E5; E5.from_pretrained(sys.argv[1]).encode_query('x'); "
        "print({'huggingface_hub', 'torch._dynamo'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "copy")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "set()\n"


def test_patterns_leave_out_what_is_never_read():
    from fnmatch import fnmatch

    patterns = [*hub.SMALL_FILES, *hub.WEIGHTS_FILES]
    wanted = ("model-00001-of-00002.safetensors", "1_Pooling/config.json", "config.json")
    assert all(any(fnmatch(name, p) for p in patterns) for name in wanted)
    unwanted = (*CLUTTER, "onnx/config.json", "openvino/model.safetensors", "sparse_linear.pt")
    assert not any(fnmatch(name, p) for p in patterns for name in unwanted)


def test_expanding_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert hub.resolve(f"~/{folder.name}") == Path(folder)
