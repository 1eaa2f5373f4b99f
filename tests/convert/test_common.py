"""What every conversion promises: nothing half-written, whatever happens to it."""

import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.conversions import content, convert, convert_in_process, hold, refused, run_convert
from support.models import ROOT

from e5core.formats.safetensors import TensorHeader, write_tensors

Make = Callable[..., Path]


@pytest.fixture
def source(make_tiny: Make) -> Path:
    folder = make_tiny("bert", name="source")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def test_the_writer_writes_what_safetensors_writes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{'xyz'[i % 3]}{i}": torch.randn(shape, generator=generator).to(dtype)
        for i, (shape, dtype) in enumerate(
            (shape, dtype)
            for shape in ((3, 5), (7,), (), (0, 4), (1, 2, 3))
            for dtype in (torch.float16, torch.float64, torch.bfloat16, torch.float32)
        )
    }
    headers = {n: TensorHeader(t.dtype, tuple(t.shape)) for n, t in tensors.items()}
    advanced: list[float] = []
    write_tensors(headers, tensors.__getitem__, tmp_path / "ours", advanced.append)
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert sum(advanced) == sum(t.nbytes for t in tensors.values())


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (TensorHeader(torch.float32, (3, 2)), "announced was"),
        (TensorHeader(torch.float16, (2, 3)), "announced was"),
        (TensorHeader(torch.int16, (2, 3)), "x is torch.int16, expected torch.float64"),
    ],
)
def test_the_writer_refuses_what_is_not_as_announced(
    tmp_path: Path, header: TensorHeader, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_tensors({"x": header}, lambda name: torch.zeros(2, 3), tmp_path / "file")
    assert not list(tmp_path.iterdir())


# Converts in forked copies of itself, each killed a step later than the one before: a step is
# whatever Python reports to audit hooks that names something beside the target. Prints the
# number of steps, or what was found broken.
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from support.conversions import content, run_convert

source, target = map(Path, sys.argv[1:3])
old = content(target)

def conversion(steps):
    if steps is not None:
        left = [steps]

        def count(event, arguments):
            if any(str(target.parent) in str(a) and str(source) not in str(a) for a in arguments):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
    sys.stdout = open(os.devnull, "w")
    return run_convert("pytorch-bin", source, target, "--force")

def forked(steps=None):
    child = os.fork()
    if not child:
        os._exit(conversion(steps))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

assert forked() == 0
new = content(target)
assert new != old
kept = {name: data for name, data in old.items()}
steps = 0
while True:
    shutil.rmtree(target)
    for name, data in kept.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    steps += 1
    code = forked(steps)
    if code == 0:
        break
    assert code == -signal.SIGKILL, code
    state = content(target)
    # Between two renames there is neither; the old one lies beside it, whole.
    if not state:
        state = content(target.with_name(f".{target.name}.old"))
    assert state in (old, new), f"step {steps} left {list(state)}"
    assert forked() == 0, f"step {steps}: the rerun fails"
    assert content(target) == new, f"step {steps}: the rerun differs"
    beside = sorted(path.name for path in target.parent.iterdir())
    assert beside == [target.name], f"step {steps} and a rerun leave {beside}"
print(steps)
"""


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize("replaced", [True, False])
def test_a_run_killed_at_any_step_leaves_nothing_half_written(
    source: Path, make_tiny: Make, tmp_path: Path, measured: Callable[[str], None], replaced: bool
) -> None:
    target = tmp_path / "beside" / "new"
    if replaced:
        make_tiny("bert", seed=1, name="other").rename(tmp_path / "x")
        target.parent.mkdir()
        (tmp_path / "x").rename(target)
    paths = f"import sys; sys.path[:0] = [{str(ROOT / 'tests')!r}]\n"
    if not replaced:  # one that is there, but empty
        target.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", paths + KILLED, source, target],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
    measured(f"conversion killed at each of {int(done.stdout) - 1} steps, and rerun")


def test_an_existing_target_needs_force(
    source: Path, make_tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = make_tiny("bert", seed=1, name="target")
    line = refused("pytorch-bin", capsys, target, source, target)
    assert f"{target} is there already; pass --force to replace it" in line
    convert("pytorch-bin", source, target, "--force")
    fresh = tmp_path / "fresh"
    convert("pytorch-bin", source, fresh)
    assert content(target) == content(fresh)


def test_what_is_no_model_is_never_replaced(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "letters.txt").write_text("dear")
    line = refused("pytorch-bin", capsys, home, source, home, "--force")
    assert "has no config.json, so it is no model and is not replaced" in line
    line = refused("pytorch-bin", capsys, home, source, home / "letters.txt", "--force")
    assert "letters.txt is there and is not a folder; name another one" in line


def test_the_source_is_never_replaced(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused("pytorch-bin", capsys, source, source, source, "--force")
    assert "holds the source; name another folder" in line
    (tmp_path / "link").symlink_to(source)
    line = refused("pytorch-bin", capsys, source, source, tmp_path / "link", "--force")
    assert "holds the source; name another folder" in line


def test_a_target_that_takes_no_files(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nobody, root included, can write there.
    assert run_convert("pytorch-bin", source, "/proc/e5core/model") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "/proc/e5core" in printed.err


@pytest.mark.parametrize("limit", [0, 10_000, 50_000])
def test_a_full_disk(source: Path, make_tiny: Make, tmp_path: Path, limit: int) -> None:
    """A limit on the size of files: writing fails in the middle, as on a full disk."""
    target = make_tiny("bert", seed=1, name="target")
    (source / "sentencepiece.bpe.model").unlink()  # larger than the weights of so small a model
    before = content(tmp_path)
    done = convert_in_process("pytorch-bin", source, target, "--force", limit=limit)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    if limit:  # the small files fit
        assert "model.safetensors, which takes" in done.stderr
    assert content(tmp_path) == before


def test_two_runs_for_one_target(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "beside" / "new"
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    other = context.Process(target=hold, args=(target, held))
    other.start()
    try:
        assert held.wait(120)
        line = refused("pytorch-bin", capsys, target, source, target)
        assert "another process is writing" in line
    finally:
        other.kill()
        other.join()
    # Once it is gone, so is its hold.
    convert("pytorch-bin", source, target)
    assert [path.name for path in target.parent.iterdir()] == ["new"]


def test_arguments_that_are_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["a"], ["a", "b", "--what"]):
        with pytest.raises(SystemExit) as exit_info:
            run_convert("pytorch-bin", *arguments)
        assert exit_info.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as exit_info:
        run_convert("pytorch-bin", "--help")
    assert exit_info.value.code == 0
    shown = capsys.readouterr().out
    assert "--force" in shown
    assert "--verify" in shown
