"""hub.py against a stand-in of the hub: what is fetched, the cache, and every refusal."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load, save
from support.adapters import write_adapter
from support.hub_server import Files, HubServer, Repository, read_files
from support.models import write_tiny_model

from e5core import E5, cli
from e5core.checkpoint import hub
from e5core.checkpoint.hub import needed_files, resolve
from e5core.formats.fast_tokenizer import TextStep, TextSteps
from e5core.formats.tokenizer_json import tokenizer_json, with_steps

NAME = "someone/model"
PLAIN = "intfloat/multilingual-e5-base"  # whose tokenizer.json is known to add nothing
TEXTS = ["the query", "日本 é", ""]
# Published beside every model and never read.
OTHERS = {
    "pytorch_model.bin": b"a pickle",
    "onnx/model.onnx": b"an export",
    "README.md": b"a model card",
}
NEEDED = {
    "config.json",
    "1_Pooling/config.json",
    "config_sentence_transformers.json",
    "sentencepiece.bpe.model",
    "model.safetensors",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models that differ in their weights."""
    base = tmp_path_factory.mktemp("published")
    return [write_tiny_model(base / str(seed), "xlm-roberta", seed) for seed in range(2)]


@pytest.fixture(scope="module")
def vectors(folders: list[Path]) -> list[np.ndarray]:
    return [embed(E5.from_pretrained(folder)) for folder in folders]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub of its own for each test, and nothing of the user's: no token, no settings."""
    from huggingface_hub import constants

    server = HubServer()
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    # huggingface_hub before 1.0 has a copy of the template.
    monkeypatch.setattr(
        "huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False
    )
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.stop()


@pytest.fixture
def published(server: HubServer, folders: list[Path]) -> Repository:
    """someone/model with the first folder's files on main."""
    return server.add(NAME, {**read_files(folders[0]), **OTHERS})


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def load_model(cache: Path) -> Callable[..., E5]:
    return lambda **options: E5.from_pretrained(NAME, cache_dir=cache, **options)


def embed(model: E5) -> np.ndarray:
    return model.encode(TEXTS, input_type="query")


def sharded(folder: Path) -> Files:
    """A folder's files with the weights in two parts and an index."""
    files = read_files(folder)
    tensors = load(files.pop("model.safetensors"))
    names = sorted(tensors)
    weight_map = {}
    for part, chosen in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{part}-of-00002.safetensors"
        files[file] = save({name: tensors[name] for name in chosen})
        weight_map |= dict.fromkeys(chosen, file)
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    return files


def run_python(code: str, **environment: str) -> str:
    """Standard output of a program in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=Path(hub.__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# What is fetched.


@pytest.mark.usefixtures("published")
def test_a_hub_id_gives_the_vectors_of_the_folder(load_model, vectors):
    np.testing.assert_array_equal(embed(load_model()), vectors[0])


@pytest.mark.usefixtures("published")
def test_only_the_needed_files_are_fetched(server, load_model):
    load_model()
    assert sorted(server.fetched()) == sorted(NEEDED)


@pytest.mark.usefixtures("published")
def test_the_weights_are_fetched_last(server, load_model):
    load_model()
    assert server.fetched()[-1] == "model.safetensors"


@pytest.mark.usefixtures("published")
def test_a_second_load_fetches_no_file(server, load_model):
    load_model()
    before = len(server.fetched())
    load_model()
    assert len(server.fetched()) == before


def test_tokenizer_json_is_fetched_where_sentencepiece_is_missing(server, folders, cache):
    files = {**read_files(folders[0]), **OTHERS, "tokenizer.json": b"{}"}
    del files["sentencepiece.bpe.model"]
    server.add(NAME, files)
    folder = resolve(NAME, cache_dir=cache)
    assert "tokenizer.json" in server.fetched()
    assert (folder / "tokenizer.json").read_bytes() == b"{}"


def test_tokenizer_json_is_left_where_it_is_known_to_add_nothing(server, folders, cache, vectors):
    server.add(PLAIN, {**read_files(folders[0]), **OTHERS, "tokenizer.json": b"17 MB"})
    np.testing.assert_array_equal(embed(E5.from_pretrained(PLAIN, cache_dir=cache)), vectors[0])
    assert sorted(server.fetched()) == sorted(NEEDED)


def test_what_tokenizer_json_adds_is_not_ignored(server, folders, load_model, vectors):
    """Fine-tuned models publish one beside a SentencePiece model, and it may do more to texts."""
    files = read_files(folders[0])
    content = tokenizer_json(files["sentencepiece.bpe.model"])
    server.add(NAME, {**files, "tokenizer.json": json.dumps(content).encode()})
    np.testing.assert_array_equal(embed(load_model()), vectors[0])
    changed = with_steps(content, TextSteps(before=(TextStep("Replace", "the", "a"),)))
    server.add(NAME, {**files, "tokenizer.json": json.dumps(changed).encode()})
    model = load_model()
    assert model.tokenizer.encode("the query") == model.tokenizer.encode("a query")
    content["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Digits"})
    server.add(NAME, {**files, "tokenizer.json": json.dumps(content).encode()})
    with pytest.raises(ValueError, match=r"tokenizer\.json asks for pre_tokenizer 'Digits'"):
        load_model()


@pytest.mark.parametrize("revision", [None, "v1"])
def test_an_adapter_and_its_base_may_both_lie_on_the_hub(
    two_commits, server, load_model, tmp_path, cache, revision
):
    """The base in the revision that the adapter's config names."""
    adapter = write_adapter(tmp_path / "adapter", NAME, revision=revision)
    server.add("someone/adapter", read_files(adapter))
    local = write_adapter(tmp_path / "local", resolve(NAME, revision=revision, cache_dir=cache))
    found = E5.from_pretrained("someone/adapter", cache_dir=cache, prompts="e5")
    expected = embed(E5.from_pretrained(local, prompts="e5"))
    assert np.abs(expected - embed(load_model(revision=revision))).max() > 0.01
    np.testing.assert_array_equal(embed(found), expected)


def test_sharded_weights_give_the_vectors_of_the_folder(server, load_model, folders, vectors):
    server.add(NAME, sharded(folders[0]))
    np.testing.assert_array_equal(embed(load_model()), vectors[0])
    assert sum("-of-00002" in file for file in server.fetched()) == 2


def test_needed_files_prefers_one_file_of_weights_to_parts():
    parts = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    assert needed_files({"model.safetensors", *parts}) == ["model.safetensors"]
    assert needed_files({"model.bin", *parts}) == sorted(parts)
    assert needed_files({"model.safetensors", *parts}, weights=False) == []


def test_a_download_is_refused_where_only_pickles_are_published(server, load_model, folders):
    files = {**read_files(folders[0]), **OTHERS}
    del files["model.safetensors"]
    server.add(NAME, files)
    with pytest.raises(FileNotFoundError, match=f"{NAME} publishes no safetensors weights.*conv"):
        load_model()
    assert "pytorch_model.bin" not in server.fetched()


# Revisions.


@pytest.fixture
def two_commits(published: Repository, folders: list[Path]) -> dict[str, str]:
    """The second model's weights on main and tag v2; the first one's on tag v1."""
    first = published.refs["main"]
    published.refs["v1"] = first
    second = published.commit({**read_files(folders[1]), **OTHERS}, "main", "v2")
    return {"v1": "v1", "v2": "v2", "first commit": first, "second commit": second}


@pytest.mark.parametrize(
    ("kind", "model"), [("v1", 0), ("v2", 1), ("first commit", 0), ("second commit", 1)]
)
def test_a_revision_gives_its_weights(two_commits, load_model, vectors, kind, model):
    assert not np.allclose(vectors[0], vectors[1])
    np.testing.assert_array_equal(embed(load_model(revision=two_commits[kind])), vectors[model])


def test_a_branch_that_moved_is_followed(published, load_model, folders, vectors):
    load_model()
    published.commit({**read_files(folders[1]), **OTHERS})
    np.testing.assert_array_equal(embed(load_model()), vectors[1])


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("revision", ["v9", "0" * 40])
def test_an_unknown_revision_is_named(load_model, revision):
    with pytest.raises(FileNotFoundError, match=f"{NAME} has no revision '{revision}'"):
        load_model(revision=revision)


# Without a network.


@pytest.mark.parametrize("revision", [None, "v1"])
@pytest.mark.parametrize("asked", ["server stopped", "local_files_only"])
def test_the_cache_serves_without_the_hub(
    server, two_commits, load_model, vectors, revision, asked
):
    load_model(revision=revision)
    if asked == "server stopped":
        server.stop()
    server.log.clear()
    model = load_model(revision=revision, local_files_only=asked == "local_files_only")
    np.testing.assert_array_equal(embed(model), vectors[1 if revision is None else 0])
    assert server.log == []


@pytest.mark.usefixtures("published")
def test_a_commit_is_found_in_the_cache(server, published, load_model, vectors):
    load_model()
    server.stop()
    model = load_model(revision=published.refs["main"])
    np.testing.assert_array_equal(embed(model), vectors[0])


def test_hf_hub_offline_uses_the_cache(server, two_commits, load_model, cache, vectors, tmp_path):
    load_model()
    load_model(revision="v1")
    server.log.clear()
    code = (
        "import numpy; from e5core import E5\n"
        "for revision, file in ((None, 'main'), ('v1', 'v1')):\n"
        f"    model = E5.from_pretrained({NAME!r}, revision=revision, cache_dir={str(cache)!r})\n"
        f"    vectors = model.encode({TEXTS!r}, input_type='query')\n"
        f"    numpy.save({str(tmp_path)!r} + '/' + file, vectors)\n"
    )
    run_python(code, HF_HUB_OFFLINE="1", HF_ENDPOINT=server.url)
    np.testing.assert_array_equal(np.load(tmp_path / "main.npy"), vectors[1])
    np.testing.assert_array_equal(np.load(tmp_path / "v1.npy"), vectors[0])
    assert server.log == []


def test_a_cache_in_the_home_folder_is_found(server, published, folders, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    resolve(NAME, cache_dir="~/models")
    server.stop()
    assert resolve(NAME, cache_dir="~/models").is_relative_to(tmp_path / "models")


@pytest.mark.parametrize("revision", [None, "v1"])
def test_an_unreachable_hub_and_no_cache_is_one_error(server, load_model, revision):
    server.stop()
    at = f"{NAME} at revision '{revision}'" if revision else NAME
    started = time.monotonic()
    with pytest.raises(FileNotFoundError, match=f"^{at} is not in the cache.* the hub cannot be r"):
        load_model(revision=revision)
    assert time.monotonic() - started < 5


def test_local_files_only_and_no_cache_asks_nobody(server, load_model):
    with pytest.raises(
        FileNotFoundError, match=r"not in the cache.*local_files_only.*connect once"
    ):
        load_model(local_files_only=True)
    assert server.log == []


def test_a_hub_that_never_answers_is_given_up(monkeypatch, server, load_model):
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
        started = time.monotonic()
        with pytest.raises(FileNotFoundError, match=r"cannot be reached \(.*Timeout"):
            load_model()
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("answer", [(503, b"busy"), (200, b"<html>Please log in</html>")])
def test_a_useless_answer_leaves_the_cache(server, published, load_model, vectors, answer):
    server.answer_all = answer
    with pytest.raises(FileNotFoundError, match=r"not in the cache.*cannot be reached"):
        load_model()
    server.answer_all = None
    load_model()
    server.answer_all = answer
    np.testing.assert_array_equal(embed(load_model()), vectors[0])


# Refusals.


@pytest.mark.usefixtures("server")
def test_an_unknown_repository_is_named(load_model):
    with pytest.raises(FileNotFoundError, match=f"'{NAME}' is not a folder here.*token="):
        load_model()


def test_a_gated_repository_says_so(server, load_model, folders):
    server.add(NAME, read_files(folders[0]), gated=True, token="secret")
    with pytest.raises(PermissionError, match=f"{NAME} is gated; ask for access"):
        load_model()


@pytest.mark.parametrize("gated", [False, True])
def test_a_token_opens_a_repository(server, load_model, folders, vectors, gated):
    server.add(NAME, read_files(folders[0]), gated=gated, token="secret")
    with pytest.raises(OSError, match="token="):
        load_model(token="wrong")
    np.testing.assert_array_equal(embed(load_model(token="secret")), vectors[0])


@pytest.mark.parametrize("local_files_only", [False, True])
@pytest.mark.parametrize(
    "name", ["", "./nope", "/nope", "../nope", "~/nope-e5", "a/b/c", "two words", "a--b", "a/"]
)
def test_what_is_neither_folder_nor_id_is_refused(server, name, local_files_only):
    with pytest.raises(FileNotFoundError, match=f"^{name!r} is neither a folder nor a hub id"):
        E5.from_pretrained(name, local_files_only=local_files_only)
    assert server.log == []


def test_a_file_is_no_folder(folders):
    file = folders[0] / "model.safetensors"
    with pytest.raises(NotADirectoryError, match="is a file; give the folder"):
        E5.from_pretrained(file)


# Downloads that break.


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub waits a second before each of its attempts."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)


@pytest.mark.usefixtures("published", "no_waiting")
def test_a_download_that_breaks_once_is_completed(server, load_model, vectors):
    server.breaks["model.safetensors"] = [10_000]
    # huggingface_hub 2.4 goes on by itself, 1.0 leaves the next attempt to the caller.
    with suppress(OSError):
        load_model()
    model = load_model()
    np.testing.assert_array_equal(embed(model), vectors[0])
    assert server.fetched().count("model.safetensors") == 2


@pytest.mark.usefixtures("published", "no_waiting")
def test_a_download_that_keeps_breaking_is_an_error(server, load_model, vectors):
    server.breaks["model.safetensors"] = [10_000, *[0] * 20]
    with pytest.raises(OSError, match=f"download of {NAME} broke off .*; try again"):
        load_model()
    with pytest.raises(FileNotFoundError, match="in the cache without its weights"):
        load_model(local_files_only=True)
    server.breaks.clear()
    np.testing.assert_array_equal(embed(load_model()), vectors[0])


@pytest.mark.usefixtures("published", "no_waiting")
def test_a_file_that_arrives_short_is_an_error(server, load_model):
    server.shortened["model.safetensors"] = 10_000
    with pytest.raises(OSError, match=f"download of {NAME} broke off"):
        load_model()
    with pytest.raises(FileNotFoundError, match="in the cache without its weights"):
        load_model(local_files_only=True)


# Without the weights.


@pytest.fixture
def info(cache: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """`e5core info someone/model`: its output."""

    def run() -> str:
        assert cli.main(["info", NAME, "--cache-dir", str(cache)]) == 0
        return capsys.readouterr().out

    return run


@pytest.mark.usefixtures("published")
def test_info_fetches_no_weights(server, info):
    assert "xlm-roberta, 3 layers" in info()
    assert set(server.fetched()) == NEEDED - {"model.safetensors"}


@pytest.mark.usefixtures("published")
def test_a_model_loads_after_info(info, load_model, vectors):
    info()
    np.testing.assert_array_equal(embed(load_model()), vectors[0])


def test_after_info_missing_weights_are_named(server, folders, info, load_model):
    for files in (read_files(folders[0]), sharded(folders[1])):
        server.add(NAME, files)
        info()
        with pytest.raises(FileNotFoundError, match=f"{NAME} is in the cache without its weights"):
            load_model(local_files_only=True)


@pytest.mark.usefixtures("published")
def test_info_needs_no_network_the_second_time(server, info):
    first = info()
    server.stop()
    assert info() == first


def test_loading_a_folder_imports_nothing_optional(folders):
    code = (
        "import sys, torch\n"  # torch itself imports tqdm where it is installed
        "optional = {'huggingface_hub', 'transformers', 'tqdm', 'onnxruntime', 'torch._dynamo'}\n"
        "optional -= set(sys.modules)\n"  # the last is torch's compiler, 1.4 s of import
        "import e5core\n"
        "print(sorted(optional & set(sys.modules)))\n"
        f"model = e5core.E5.from_pretrained({str(folders[0])!r})\n"
        "model.encode('the query', input_type='query', show_progress=False)\n"
        "print(sorted(optional & set(sys.modules)))\n"
        "print({'huggingface_hub', 'torch._dynamo'} <= optional)\n"
    )
    assert run_python(code).splitlines() == ["[]", "[]", "True"]
