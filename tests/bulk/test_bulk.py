"""Embedding files: nothing lost, nothing doubled, the same bytes however often it is stopped."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.bulk import embed
from support.conversions import content
from support.models import ROOT

from e5core import E5
from e5core.bulk import PartialOutputError, embed_files, partial_folder
from e5core.parity.samples import SENTENCES

SUFFIXES = [".npy", ".safetensors", ".parquet"]
TEXTS = SENTENCES[:60]
LONG = "the query passage " * 40  # more than the 64 tokens of a tiny model


@pytest.fixture
def model(make_tiny: Callable[..., Path]) -> Path:
    return make_tiny()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": text, "id": f"t{i}"}) for i, text in enumerate(TEXTS)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture(params=SUFFIXES)
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """In a folder of its own; comes in each form."""
    if request.param == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / f"vectors{request.param}"


@pytest.fixture
def npy(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "vectors.npy"


def read(output: Path) -> np.ndarray:
    if output.suffix == ".npy":
        return np.load(output)
    if output.suffix == ".safetensors":
        return load_file(output)["vectors"]
    from pyarrow import parquet

    column = parquet.read_table(output).column("vector").combine_chunks()
    return column.values.to_numpy().reshape(len(column), column.type.list_size)


def jsonl(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


# What comes out.


def test_vectors_are_those_of_the_library(model: Path, texts: Path, output: Path) -> None:
    summary = embed(model, texts, output, id_column="id")
    expected = E5.from_pretrained(model).embed(TEXTS, input_type="query")
    vectors = read(output)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, expected.vectors)
    assert (summary.output, summary.rows, summary.hidden_size) == (output, 60, 24)
    assert summary.tokens == expected.token_counts.sum()
    assert summary.cut == expected.truncated.sum() > 0
    assert summary.rejected == 0
    assert not partial_folder(output).exists()


def test_ids_stand_beside_the_vectors(model: Path, texts: Path, output: Path) -> None:
    other = texts.with_name("zebra.txt")
    other.write_text("a\nb\n")
    for options in ({}, {"id_column": "id"}):
        inputs = [texts] if options else [texts, other]
        embed_files(model, inputs, output, input_type="query", shard_rows=20, **options)
        expected = [{"file": str(texts), "line": i + 1} for i in range(60)]
        if options:
            expected = [{"id": f"t{i}", **line} for i, line in enumerate(expected)]
        else:
            expected += [{"file": str(other), "line": i + 1} for i in range(2)]
        if output.suffix == ".parquet":
            from pyarrow import parquet

            table = parquet.read_table(output)
            assert table.column_names[-1] == "vector"
            assert table.drop_columns("vector").to_pylist() == expected
            for file in sorted(output.iterdir()):
                file.unlink()
            output.rmdir()
        else:
            assert jsonl(output.with_name(output.name + ".ids.jsonl")) == expected


def test_no_rows(model: Path, tmp_path: Path, output: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    assert embed(model, tmp_path / "empty.jsonl", output).rows == 0
    assert read(output).shape == (0, 24)


def test_shards_hold_whole_chunks(model: Path, texts: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    embed(model, texts, tmp_path / "vectors.parquet")
    files = sorted((tmp_path / "vectors.parquet").iterdir())
    assert [file.name for file in files] == [f"part-0000{i}.parquet" for i in range(3)]
    assert [parquet.read_metadata(file).num_rows for file in files] == [21, 21, 18]


@pytest.mark.parametrize("truncate", ["end", "window"])
@pytest.mark.parametrize("normalize", [True, False])
def test_options_of_embed(
    model: Path, tmp_path: Path, npy: Path, truncate: Any, normalize: bool
) -> None:
    (tmp_path / "a.txt").write_text(f"{LONG}\na\n")
    options = {"truncate": truncate, "normalize": normalize, "input_type": None}
    summary = embed(model, tmp_path / "a.txt", npy, **options)
    expected = E5.from_pretrained(model).embed([LONG, "a"], **options)
    np.testing.assert_array_equal(np.load(npy), expected.vectors)
    assert summary.cut == (truncate == "end")


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_write_the_same_bytes(model: Path, texts: Path, output: Path, workers: int) -> None:
    embed(model, texts, output)
    expected = content(output.parent)
    for file in sorted(output.parent.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    embed(model, texts, output, workers=workers)
    assert content(output.parent) == expected


def test_a_file_that_is_not_ours_does_not_spoil_the_end(
    model: Path, texts: Path, output: Path
) -> None:
    partial_folder(output).mkdir()
    (partial_folder(output) / ".DS_Store").touch()
    assert embed(model, texts, output).rows == 60
    assert read(output).shape == (60, 24)
    assert [file.name for file in partial_folder(output).iterdir()] == [".DS_Store"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not tell")
def test_no_file_is_open_when_it_is_moved_or_removed(
    model: Path, texts: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from e5core.bulk import job

    publish, opened = job.publish, []

    def spy(*arguments: Any) -> None:
        with os.scandir("/proc/self/fd") as entries:
            links = [os.path.realpath(entry.path) for entry in entries]
        opened.append([link for link in links if Path(link).parent == partial_folder(output)])
        publish(*arguments)

    monkeypatch.setattr(job, "publish", spy)
    embed(model, texts, output)
    assert opened == [[]]


# What is read, and where it goes.


def test_an_output_among_its_input_is_refused(model: Path, texts: Path, output: Path) -> None:
    folder = output.parent
    (folder / "a.txt").write_text("a\n")
    for place in (folder, folder.parent):
        with pytest.raises(ValueError, match=f"{output} lies in the input folder {place}, where"):
            embed(model, place, output)
    assert [file.name for file in folder.iterdir()] == ["a.txt"]
    (folder / "_vectors").mkdir()  # no data, by its name
    assert embed(model, folder, folder / "_vectors" / output.name).rows == 1


def test_an_output_does_not_replace_its_input(model: Path, npy: Path) -> None:
    file = npy.with_name("vectors.npy.ids.jsonl")
    file.write_text('{"text": "a"}')
    with pytest.raises(ValueError, match=r"would replace the input .*ids\.jsonl; name another"):
        embed(model, file, npy)
    assert file.read_text() == '{"text": "a"}'


def test_a_pipe_is_refused(model: Path, tmp_path: Path, npy: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is a pipe or a device, which can be read only once"):
        embed(model, tmp_path / "pipe", npy)
    assert not partial_folder(npy).exists()


# Rows that hold no text.


def with_bad_rows(tmp_path: Path) -> Path:
    file = tmp_path / "bad.jsonl"
    rows = ['{"text": "a"}', "{}", '{"text": "b"}', json.dumps({"text": LONG}), '{"text": "c"}']
    file.write_text("\n".join(rows))
    return file


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_row_stops_with_its_place(
    model: Path, tmp_path: Path, npy: Path, workers: int
) -> None:
    file = with_bad_rows(tmp_path)
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2: there is no field 'text'"):
        embed(model, file, npy, workers=workers)
    file.write_text(file.read_text().replace("{}\n", ""))
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 3: the text has \d+ tokens, the model"):
        embed(model, file, npy, truncate="none", workers=workers)
    assert not npy.exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_rows_are_set_aside_with_their_reasons(
    model: Path, tmp_path: Path, npy: Path, workers: int
) -> None:
    file = with_bad_rows(tmp_path)
    options = {"on_error": "skip", "truncate": "none", "chunk_rows": 2, "workers": workers}
    summary = embed(model, file, npy, **options)
    assert (summary.rows, summary.rejected) == (3, 2)
    expected = E5.from_pretrained(model).encode_query(["a", "b", "c"])
    np.testing.assert_array_equal(np.load(npy), expected)
    assert [row["line"] for row in jsonl(npy.with_name("vectors.npy.ids.jsonl"))] == [1, 3, 5]
    rejects = jsonl(npy.with_name("vectors.npy.rejects.jsonl"))
    assert [(row["file"], row["line"]) for row in rejects] == [(str(file), 2), (str(file), 4)]
    assert rejects[0]["reason"] == "there is no field 'text'; the line has none"
    assert re.match(r"the text has \d+ tokens, the model takes 64", rejects[1]["reason"])
    # The next output of that name has none.
    file.write_text('{"text": "a"}')
    embed(model, file, npy, on_error="skip")
    assert not npy.with_name("vectors.npy.rejects.jsonl").exists()


# Stopped and gone on with.

# Embeds in forked copies of itself. A step is a call that changes the disk; at the last one that
# a copy may take it is killed, in the middle of it if it writes. Prints what was found broken,
# or the number of copies.
KILLED = """
import os, random, shutil, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from support.conversions import content
from e5core import E5
from e5core.bulk import partial_folder
from support.bulk import embed

mode, model, texts, output = sys.argv[1], *map(Path, sys.argv[2:5])
texts.write_text("".join(texts.read_text().splitlines(keepends=True)[:25]))
options = {"id_column": "id", "shard_rows": 10}
E5.from_pretrained(model)  # what it tries once, the copies need not
os.fsync = lambda number: None  # a killed process leaves the system's memory as it is
STEPS = [(os, "write"), (os, "fsync"), (os, "ftruncate"), (os, "mkdir"), (os, "rmdir"),
         (Path, "replace"), (Path, "unlink")]

def killed_after(steps):
    left = [steps]

    def wrapped(module, name):
        original = getattr(module, name)

        def call(*arguments, **keywords):
            left[0] -= 1
            if not left[0]:
                if name == "write":
                    original(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **keywords)

        setattr(module, name, call)

    for step in STEPS:
        wrapped(*step)

def forked(prepare=lambda: None):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        prepare()
        embed(model, texts, output, **options)
        code = 0
    finally:
        os._exit(code)

def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def clear():
    shutil.rmtree(output.parent)
    output.parent.mkdir()

def only_empty_folder_left():  # shards that are complete are not made again
    journal = partial_folder(output) / "journal.json"
    return output.suffix == ".parquet" and output.is_dir() and not journal.exists()

start = time.monotonic()
assert ended(forked()) == 0
seconds = time.monotonic() - start
expected = content(output.parent)
runs = 0

if mode == "steps":  # each step in turn, then to the end
    code = None
    while code != 0:
        clear()
        runs += 1
        code = ended(forked(lambda: killed_after(runs)))
        assert code in (0, -signal.SIGKILL), code
        if not only_empty_folder_left():
            assert ended(forked()) == 0, f"after step {runs} the work does not go on"
        assert content(output.parent) == expected, f"after step {runs} other bytes"
elif mode == "often":  # every run is killed a few steps on, until one has nothing left to do
    clear()
    code = None
    while code != 0 and not only_empty_folder_left():
        runs += 1
        code = ended(forked(lambda: killed_after(20 + runs % 5)))
        assert code in (0, -signal.SIGKILL), code
    assert content(output.parent) == expected
else:  # at random moments
    chance = random.Random(int(mode))
    for _ in range(int(sys.argv[5])):
        clear()
        code = None
        while code != 0 and not only_empty_folder_left():
            runs += 1
            child = forked()
            time.sleep(chance.uniform(0.2, 1.2) * seconds)
            if not os.waitpid(child, os.WNOHANG)[0]:
                os.kill(child, signal.SIGKILL)
                code = ended(child)
            else:
                code = 0
        assert content(output.parent) == expected
print(runs)
"""


def killed(*arguments: object) -> int:
    paths = f"import sys; sys.path[:0] = [{str(ROOT / 'tests')!r}]\n"
    done = subprocess.run(
        [sys.executable, "-c", paths + KILLED, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


@pytest.mark.parametrize("mode", ["steps", "often"])
def test_killed_at_every_step(
    model: Path, texts: Path, output: Path, mode: str, measured: Callable[[str], None]
) -> None:
    runs = killed(mode, model, texts, output)
    assert runs > 3
    if mode == "steps":
        measured(f"{output.suffix}: killed at each of {runs - 1} steps and gone on with")


def test_killed_at_random_moments(
    model: Path, texts: Path, output: Path, measured: Callable[[str], None]
) -> None:
    runs = killed(len(output.suffix), model, texts, output, 8)
    measured(f"{output.suffix}: killed at {runs - 8} random moments and gone on with")


def interrupted(model: Path, texts: Path, output: Path, after: int = 3, **options: Any) -> None:
    """Leave a partial output of some chunks."""
    with pytest.MonkeyPatch.context() as patch:
        from e5core.bulk import journal

        write, left = journal.Journal.write, [after]

        def stop(self: journal.Journal) -> None:
            write(self)
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        patch.setattr(journal.Journal, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            embed(model, texts, output, **options)
    assert partial_folder(output).is_dir()


def test_rows_that_are_done_are_not_computed_again(
    model: Path, texts: Path, npy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(model, texts, npy, after=3)
    embedded: list[str] = []
    original = E5.embed

    def spy(self: E5, texts: list[str], **options: Any) -> Any:
        embedded.extend(texts)
        return original(self, texts, **options)

    monkeypatch.setattr(E5, "embed", spy)
    assert embed(model, texts, npy).rows == 60
    assert embedded == TEXTS[21:]


def another_word(file: Path) -> None:
    file.write_text(file.read_text(encoding="utf-8").replace(TEXTS[3], "another"), "utf-8")


def one_row_less(file: Path) -> None:
    file.write_text("".join(file.read_text("utf-8").splitlines(keepends=True)[1:]), "utf-8")


def other_weights(model: Path) -> None:
    file = model / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_type": "passage"}, "prefix was 'query: ', is 'passage: '"),
        ({"normalize": False}, "normalize was True, is False"),
        ({"truncate": "window"}, "truncate was 'end', is 'window'"),
        ({"max_length": 40}, "max_length was 64, is 40"),
        ({"dtype": "float64"}, "dtype was 'float32', is 'float64'"),
        ({"kernels": "plain"}, "kernels was '.*', is 'plain'"),
        ({"max_tokens_per_batch": 9}, "max_tokens_per_batch was None, is 9"),
        ({"chunk_rows": 8}, "chunk_rows was 7, is 8"),
        ({"id_column": "id"}, "id_column was None, is 'id'"),
        (("texts", another_word), r"no longer the first ones of the input \(changed: .*texts"),
        (("texts", one_row_less), r"no longer the first ones of the input \(changed: .*texts"),
        (("model", other_weights), "the model's model.safetensors is another"),
    ],
)
def test_a_change_is_named_and_refused(
    model: Path, texts: Path, npy: Path, change: Any, message: str
) -> None:
    interrupted(model, texts, npy)
    before = content(npy.parent)
    options = change if isinstance(change, dict) else {}
    if not options:
        {"texts": lambda: change[1](texts), "model": lambda: change[1](model)}[change[0]]()
    with pytest.raises(PartialOutputError, match=message) as caught:
        embed(model, texts, npy, **options)
    assert "restart=True" in str(caught.value)
    assert content(npy.parent) == before
    summary = embed(model, texts, npy, restart=True, **options)
    assert np.load(npy).shape == (summary.rows, 24)
    assert not partial_folder(npy).exists()


def test_rows_added_at_the_end_are_taken_along(model: Path, texts: Path, npy: Path) -> None:
    interrupted(model, texts, npy)
    with texts.open("a") as file:
        file.write('{"text": "one more"}\n')
    assert embed(model, texts, npy).rows == 61


def test_a_script_that_workers_cannot_import(
    model: Path, texts: Path, npy: Path, tmp_path: Path
) -> None:
    call = f"embed_files({str(model)!r}, {str(texts)!r}, {str(npy)!r}, input_type=None, workers=2)"
    (tmp_path / "script.py").write_text(f"from e5core.bulk import embed_files\n{call}\n")
    for arguments, code in (["script.py"], ""), (["-"], (tmp_path / "script.py").read_text()):
        done = subprocess.run(
            [sys.executable, *arguments], input=code, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith("ChildProcessError: worker 1 of 2 ended with an error, which stands")
        assert 'needs its if __name__ == "__main__":' in last
        assert not partial_folder(npy).exists()


def test_workers_go_on_with_what_one_process_began(model: Path, texts: Path, npy: Path) -> None:
    embed(model, texts, npy)
    expected = content(npy.parent)
    for file in npy.parent.iterdir():
        file.unlink()
    interrupted(model, texts, npy)
    embed(model, texts, npy, workers=2)
    assert content(npy.parent) == expected


def test_two_runs_at_a_time_are_refused(model: Path, texts: Path, npy: Path) -> None:
    import fcntl

    interrupted(model, texts, npy)
    number = os.open(partial_folder(npy), os.O_RDONLY)
    fcntl.flock(number, fcntl.LOCK_EX)
    try:
        with pytest.raises(PartialOutputError, match="is in use by another run; wait for its end"):
            embed(model, texts, npy)
    finally:
        os.close(number)
    assert embed(model, texts, npy).rows == 60


def test_files_that_were_changed_from_outside(model: Path, texts: Path, npy: Path) -> None:
    interrupted(model, texts, npy)
    os.truncate(partial_folder(npy) / "vectors", 500)
    with pytest.raises(ValueError, match=r"vectors has 500 bytes, expected \d+ or more"):
        embed(model, texts, npy)


def test_a_journal_that_was_changed_from_outside(model: Path, texts: Path, npy: Path) -> None:
    interrupted(model, texts, npy)
    file = partial_folder(npy) / "journal.json"
    os.truncate(file, 20)
    with pytest.raises(
        PartialOutputError, match=r"journal\.json is not valid JSON: .* restart=True"
    ):
        embed(model, texts, npy)
    assert embed(model, texts, npy, restart=True).rows == 60


def test_a_journal_does_not_grow_with_the_files(model: Path, tmp_path: Path, npy: Path) -> None:
    sizes = []
    for count in (20, 200):
        folder = tmp_path / f"in{count:03}"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number:03}.txt").write_text("a\n")
        interrupted(model, folder, npy, after=2)
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


# The command line.


def command(model: Path, texts: Path, output: Path, *more: object) -> list[str]:
    arguments = [sys.executable, "-m", "e5core", "embed", texts, "--model", model]
    arguments += ["--input-type", "query", "--output", output, "--chunk-rows", 7, *more]
    return list(map(str, arguments))


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """More than a test waits for."""
    file = tmp_path / "many.txt"
    file.write_text("the a query passage\n" * 400_000)
    return file


@contextmanager
def begun(output: Path, arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that has stored a part of its work; it ends with the block."""
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while not (partial_folder(output) / "journal.json").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_ends_at_once(model: Path, many: Path, npy: Path, workers: int) -> None:
    with begun(npy, command(model, many, npy, "--workers", workers)) as process:
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
        assert time.monotonic() - sent < 10  # the whole file takes minutes
    assert process.returncode == 130
    partial = partial_folder(npy)
    left = f"what is done is in {partial}, the same command goes on from there"
    assert error == f"e5core: interrupted; {left}\n"
    rows = json.loads((partial / "journal.json").read_text())["done"]["rows"]
    # Cut the input so that it can be waited for; what was done stays done.
    many.write_text("the a query passage\n" * (rows + 5))
    assert embed(model, many, npy, chunk_rows=7, shard_rows=65_536).rows == rows + 5


def test_a_worker_that_dies_is_one_line(model: Path, many: Path, npy: Path) -> None:
    with begun(npy, command(model, many, npy, "--workers", 2)) as process:
        children = subprocess.run(
            ["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True
        ).stdout.split("\n")[1:]
        parents = {int(p): int(q) for p, q in (line.split() for line in children if line)}

        def descendants(pid: int) -> list[int]:
            own = [child for child, parent in parents.items() if parent == pid]
            return own + [d for child in own for d in descendants(child)]

        # The last one is a worker that was forked off the process with the model.
        os.kill(descendants(process.pid)[-1], signal.SIGKILL)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 2
    assert error.count("\n") == 1
    assert re.search(r"worker \d of 2 died; the system ends processes when memory runs out", error)
    assert "the same command goes on from there" in error
    assert partial_folder(npy).is_dir()


def test_a_full_disk_is_one_line_and_can_be_gone_on_from(
    model: Path, texts: Path, output: Path
) -> None:
    embed(model, texts, output)
    expected = content(output.parent)
    for file in sorted(output.parent.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()

    def limit() -> None:  # of the size of a file
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))

    arguments = command(model, texts, output, "--shard-rows", 20)
    done = subprocess.run(
        arguments, capture_output=True, text=True, cwd=ROOT, preexec_fn=limit, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert str(partial_folder(output)) in done.stderr
    assert not output.exists()
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert content(output.parent) == expected


def test_a_target_that_takes_no_files(model: Path, texts: Path) -> None:
    # Nobody, root included, can write there.
    done = subprocess.run(
        command(model, texts, Path("/proc/vectors.npy")), capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "/proc/vectors.npy.partial" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "xml"], "--format"),
        (["--column", "body"], "there is no field 'body'"),
        (["--on-error", "ignore"], "--on-error"),
        (["--workers", "0"], "workers is 0, expected 1 or more"),
        (["--shard-rows", "0"], "shard_rows is 0, expected 1 or more"),
        (["--chunk-rows", "0"], "chunk_rows is 0, expected 1 or more"),
        (["--workers", "2", "--device", "meta"], "device is 'meta', which 2 workers cannot share"),
        (["--workers", "2", "--dtype", "float16", "--kernels", "onednn"], "cannot be used"),
    ],
)
def test_bad_options_are_one_line(
    model: Path, texts: Path, npy: Path, options: list[str], message: str
) -> None:
    done = subprocess.run(
        command(model, texts, npy, *options), capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(npy.parent.iterdir())


def test_an_error_that_comes_back_does_not_advise_the_same_command(
    model: Path, texts: Path, npy: Path
) -> None:
    with texts.open("a") as file:
        file.write("{}\n")
    done = subprocess.run(command(model, texts, npy), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "line 61: there is no field 'text'" in done.stderr
    assert done.stderr.endswith(f"; what is done is in {partial_folder(npy)}\n")


def test_rejects_are_told(model: Path, tmp_path: Path, npy: Path) -> None:
    done = subprocess.run(
        command(model, with_bad_rows(tmp_path), npy, "--on-error", "skip"),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert f"1 rows rejected, see {npy}.rejects.jsonl; " in done.stdout


# Memory.

PEAK = """
import resource, sys
import e5core.bulk
e5core.bulk.embed_files(sys.argv[1], sys.argv[2], sys.argv[3], input_type="query")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_memory_does_not_grow_with_the_input(
    model: Path, tmp_path: Path, suffix: str, measured: Callable[[str], None]
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    peaks = []
    for rows in (5_000, 50_000):
        file = tmp_path / f"{rows}.txt"
        file.write_text("the a query passage\n" * rows)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, model, file, tmp_path / f"{rows}{suffix}"],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout) / 1024)
    measured(f"{suffix}: peak of 5,000 rows {peaks[0]:.0f} MB, of 50,000 {peaks[1]:.0f} MB")
    assert peaks[1] - peaks[0] < 20  # the vectors alone would be 4.3 MB more, the texts 0.9
