"""The compiled libraries: how they are built, which one is loaded, and what is refused."""

import ctypes
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from support.models import CPU, ROOT

from e5core import E5
from e5core.kernels import BACKENDS, warn_once, why_not
from e5core.kernels.native import build, library

FOLDER = ROOT / "e5core/kernels/native"
LIBRARY = "libnative-avx512.so"
OF_THIS_MACHINE = [one for one in build.INSTRUCTION_SETS if platform.machine() in one.machines]

missing = why_not(BACKENDS["native"], CPU, torch.float32)
usable = pytest.mark.skipif(missing is not None, reason=str(missing))


@usable
def test_kinds_have_the_numbers_that_they_have_in_kinds_h():
    names = [library.load().e5core_kind_name(number) for number in range(len(library.KINDS) + 1)]
    assert [kind.number for kind in library.KINDS] == list(range(len(library.KINDS)))
    assert [kind.name.encode() for kind in library.KINDS] == names[:-1]
    assert names[-1] is None


@usable
def test_a_kind_that_attention_cannot_take_is_refused():
    qkv, starts = torch.zeros(4, 3, 2, 8), torch.tensor([0, 4]).int()
    texts = library.Texts(starts.data_ptr(), 1, 2, 8)
    for kind, attention_kind in ((library.FLOAT32, library.BFLOAT16), (library.FLOAT32, None)):
        number = attention_kind.number if attention_kind else len(library.KINDS)
        arguments = kind.number, number, qkv.data_ptr(), ctypes.addressof(texts), 0, 1
        with pytest.raises(ValueError, match="e5core_attention was called with a kind"):
            library.load().e5core_attention(*arguments)


@usable
def test_the_library_of_an_instruction_set_has_its_name():
    for instructions in build.INSTRUCTION_SETS:
        if build.library(instructions.name).exists():
            found = library.load_library(instructions.name).e5core_instruction_set()
            assert found.decode() == instructions.name


def test_only_the_headers_of_instruction_sets_have_intrinsics():
    intrinsic = re.compile(r"\b_mm\d*_|\b__m(mask)?\d+|__asm__|immintrin|arm_neon|\bv\w+q_[fsu]\d+")
    files = [file for file in (FOLDER / "src").rglob("*") if file.is_file()]
    assert len(files) >= 9
    found = {file.name for file in files if intrinsic.search(file.read_text())}
    assert found == {file.name for file in (FOLDER / "src/isa").iterdir()}


def test_the_question_for_the_cpu_is_compiled_without_its_instructions():
    """So does whatever the loader runs: a constructor would be compiled for the instructions."""
    for instructions in OF_THIS_MACHINE:
        path = build.library(instructions.name)
        if not path.exists() or shutil.which("objdump") is None:
            pytest.skip("no library, or no objdump")
        code = subprocess.run(["objdump", "-d", path], capture_output=True, text=True).stdout
        questions = re.findall(r"<(e5core_supports|e5core_prefers\w+)>:\n(.*?)\n\n", code, re.S)
        assert len(questions) == 2
        assert not [name for name, body in questions if re.search(r"%[xyz]mm|%k\d", body)]
        assert "_GLOBAL__sub_I" not in code


def forget():
    library.load.cache_clear()
    library.load_library.cache_clear()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the source, in place of that of the package."""
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    shutil.copytree(FOLDER / "src", tmp_path / "src")
    forget()
    yield tmp_path
    forget()


def test_without_a_library_the_others_take_over(place, tiny_folder):
    for dtype, instead in (("float32", "onednn"), ("bfloat16", "onednn"), ("int8", "onednn")):
        if why_not(BACKENDS[instead], CPU, getattr(torch, dtype)) is None:
            assert E5.from_pretrained(tiny_folder, dtype=dtype).encoder.kernels.name == instead
    with pytest.raises(ValueError, match=r"'native' cannot be used: they were not compiled: e5c"):
        E5.from_pretrained(tiny_folder, kernels="native")


@usable
def test_a_library_of_another_source_is_not_called(place):
    shutil.copy(FOLDER / LIBRARY, place)
    assert why_not(BACKENDS["native"], CPU, torch.float32) is None
    forget()
    with (place / "src/isa/avx512.h").open("a") as source:
        source.write("// changed\n")
    reason = why_not(BACKENDS["native"], CPU, torch.float32)
    assert reason.endswith("compiled from another source; install e5core again")


@pytest.mark.parametrize("content", [b"", b"no library"])
def test_a_library_that_is_none_is_a_reason(place, content):
    (place / LIBRARY).write_bytes(content)
    assert "they cannot be loaded: " in why_not(BACKENDS["native"], CPU, torch.float32)


def test_a_foreign_library_is_a_reason(place):
    torch_library = Path(torch.__file__).parent / "lib" / "libtorch_global_deps.so"
    if not torch_library.exists():
        pytest.skip("this PyTorch has no small library")
    (place / LIBRARY).symlink_to(torch_library)
    reason = why_not(BACKENDS["native"], CPU, torch.float32)
    assert reason.endswith("libnative-avx512.so is not of e5core")


class OlderCpu:
    """One with AVX-512, but without what came later, or without that either."""

    def __init__(self, *kinds):
        self.kinds = [kind.number for kind in kinds]
        self.real = library.load()

    def e5core_supports(self, kind):
        return kind in self.kinds

    def e5core_prefers_bfloat16(self):
        return library.BFLOAT16.number in self.kinds

    def e5core_instructions(self, kind):
        return self.real.e5core_instructions(kind)


@pytest.mark.parametrize(
    ("kinds", "dtype", "reason"),
    [
        ((), torch.float32, "this CPU has no AVX-512"),
        ((), torch.bfloat16, "this CPU has no AVX-512"),
        ((library.FLOAT32, library.WIDENED), torch.int8, "this CPU has no AVX512-VNNI"),
        ((library.FLOAT32, library.WIDENED), torch.float32, None),
        ((library.FLOAT32, library.WIDENED), torch.bfloat16, None),
    ],
)
@usable
def test_a_cpu_without_the_instructions_is_a_reason(monkeypatch, kinds, dtype, reason):
    cpu = OlderCpu(*kinds)
    monkeypatch.setattr(library, "load", lambda *_: cpu)
    assert why_not(BACKENDS["native"], CPU, dtype) == reason


@pytest.fixture
def hook():
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path):
    """A folder with the source and build.py, and no library."""
    folder = tmp_path / "e5core/kernels/native"
    shutil.copytree(FOLDER / "src", folder / "src")
    shutil.copy(FOLDER / "build.py", folder)
    return tmp_path


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


@usable
@needs_compiler
def test_the_hook_compiles_the_library(hook, tree):
    folder = tree / "e5core/kernels/native"
    libraries = [build.library(one.name, folder) for one in OF_THIS_MACHINE]
    assert hook.build_module(tree).build() == libraries
    for path in libraries:
        assert build.compiled_checksum(path) == build.source_checksum()
    supported = [ctypes.CDLL(str(path)).e5core_supports(0) for path in libraries]
    assert library.FLOAT32.number == 0
    assert 1 in supported
    assert {file.name for file in folder.iterdir()} - {"__pycache__"} == {
        "src", "build.py", *(path.name for path in libraries),
    }  # fmt: skip


def test_the_build_needs_neither_torch_nor_e5core():
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1]);"
        "assert not {'torch', 'e5core', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, FOLDER / "build.py"], check=True)


@usable
@needs_compiler
def test_a_library_is_replaced_in_one_step(hook, tree, monkeypatch):
    """Whoever has the old one open keeps it, and there is always one of the two."""
    path = tree / "e5core/kernels/native" / LIBRARY
    shutil.copy(FOLDER / LIBRARY, path)
    module, seen, run = hook.build_module(tree), [], subprocess.run

    def watched(*arguments, **options):
        seen.append(path.read_bytes() == (FOLDER / LIBRARY).read_bytes())
        return run(*arguments, **options)

    monkeypatch.setattr(subprocess, "run", watched)
    monkeypatch.setitem(module.build.__globals__, "INSTRUCTION_SETS", module.INSTRUCTION_SETS[:1])
    with path.open("rb") as old:
        assert module.build() == [path]
        assert seen == [True] * 3
        assert path.stat().st_ino != os.fstat(old.fileno()).st_ino
        assert old.read() == (FOLDER / LIBRARY).read_bytes()


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", "no-program"])
def test_the_hook_goes_on_without_a_compiler(hook, tree, tmp_path, monkeypatch, compiler):
    if compiler == "no-program":
        (tmp_path / compiler).touch(mode=0o755)
        compiler = tmp_path / compiler
    monkeypatch.setenv("CXX", str(compiler))
    path = tree / "e5core/kernels/native" / LIBRARY
    path.write_text("of an earlier source")
    assert hook.build_module(tree).build() == []
    assert not path.exists()


def test_an_empty_name_of_a_compiler_is_none(tree, hook, monkeypatch):
    monkeypatch.setenv("CXX", " ")
    monkeypatch.setenv("PATH", "")
    assert hook.build_module(tree).build() == []


@usable
@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_a_library_of_this_source_stays(hook, tree, monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)
    path = tree / "e5core/kernels/native" / LIBRARY
    shutil.copy(FOLDER / LIBRARY, path)
    assert hook.build_module(tree).build() == [path]
    assert path.read_bytes() == (FOLDER / LIBRARY).read_bytes()
    (path.parent / "src/math.h").write_text("// another source\n")
    assert hook.build_module(tree).build() == []
    assert not path.exists()


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_a_build_says_what_it_lacks(hook, tree, monkeypatch, capsys, compiler):
    """It says so of the compiler, and of a library of another source that it removes."""
    monkeypatch.setenv("CXX", compiler)
    path = tree / "e5core/kernels/native" / LIBRARY
    path.write_text("of an earlier source")
    assert hook.build_module(tree).build() == []
    said = capsys.readouterr().err
    assert f"{LIBRARY} is not compiled" in said
    assert compiler in said
    assert f"{LIBRARY} was compiled from another source and is removed" in said


@pytest.mark.parametrize("state", ["missing", "of another source"])
def test_loading_says_once_that_native_is_missing(place, tiny_folder, state):
    if not library.has_instructions():
        pytest.skip("there is no C++ for this kind of machine")
    if state != "missing":
        (place / LIBRARY).write_bytes(build.MARK + b"1;")
    warn_once.cache_clear()
    reason = "they were not compiled" if state == "missing" else "compiled from another source"
    with pytest.warns(UserWarning, match=f"runs on its onednn kernels: native cannot .*{reason}"):
        E5.from_pretrained(tiny_folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        E5.from_pretrained(tiny_folder)
        E5.from_pretrained(tiny_folder, kernels="sdpa")  # nobody asked for faster ones
