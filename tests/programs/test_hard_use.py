"""Hard use: many threads, forked processes, damaged and hostile files, hostile text."""

import json
import multiprocessing
import random
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fuzz_targets
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.models import ROOT

from e5core import E5
from e5core.parity.samples import QUERIES, SENTENCES, text_of_length
from e5core.parity.tolerances import BATCH_INVARIANCE_FLOAT32

SEEDS = ROOT / "tests" / "programs" / "data" / "fuzz"
VALID = fuzz_targets.valid_checkpoint()


# Threads


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Python's threads take turns a hundred times as often as by default."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


def assert_threads_agree(model: E5, texts: list[str], calls: int) -> None:
    """Eight threads, each with `calls` calls of one to three texts in any order, get the vectors
    that one thread got, one text at a time: the same bits from kernels that promise them."""
    expected = np.stack([model.encode_query(text) for text in texts])
    exact = model.encoder.kernels.name in ("native", "onednn")
    bound = 0.0 if exact else BATCH_INVARIANCE_FLOAT32
    done: list[int] = []
    wrong: list[str] = []

    def work(thread: int) -> None:
        generator = random.Random(thread)
        for call in range(calls):
            chosen = generator.choices(range(len(texts)), k=generator.randint(1, 3))
            found = model.encode_query([texts[i] for i in chosen], show_progress=False)
            difference = np.abs(found - expected[chosen]).max()
            if not difference <= bound:
                wrong.append(f"thread {thread}, call {call}, texts {chosen}: {difference}")
        done.append(calls)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]
    assert done == [calls] * 8  # none died


@pytest.mark.usefixtures("eager_threads")
def test_eight_threads_of_a_thousand_calls(make_tiny: Callable[..., Path]) -> None:
    model = E5.from_pretrained(make_tiny())
    texts = [text_of_length(model.tokenizer, 3 + n, seed=n) for n in range(0, 62, 2)]
    assert_threads_agree(model, texts, calls=1000)


@pytest.mark.usefixtures("eager_threads")
def test_eight_threads_on_the_real_model(real_model: E5) -> None:
    lengths = (3, 17, 33, 64, 130, 300, 512)
    texts = [text_of_length(real_model.tokenizer, n, "query: ", seed=n) for n in lengths]
    assert_threads_agree(real_model, [*texts, *SENTENCES[::8], *QUERIES], calls=8)


# Forked processes

FORK = """
import multiprocessing, sys
import numpy as np
import torch
from e5core import E5

folder, used = sys.argv[1], sys.argv[2] == "used"
texts = [line.rstrip("\\n") for line in sys.stdin]
torch.set_num_threads(2)
model = E5.from_pretrained(folder)
if used:
    model.encode_query(texts)

def work(queue):
    queue.put((model.encode_query(texts), torch.get_num_threads()))

context = multiprocessing.get_context("fork")
queue = context.Queue()
children = [context.Process(target=work, args=(queue,)) for _ in range(2)]
for child in children:
    child.start()
results = [queue.get() for _ in children]
for child in children:
    child.join()
expected = model.encode_query(texts)
for vectors, threads in results:
    print(np.abs(vectors - expected).max() <= float(sys.argv[3]), threads, torch.get_num_threads())
"""


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork"
)
@pytest.mark.parametrize("used", ["used", "unused"])
def test_a_model_forked_after_loading(real_folder: Path, used: str) -> None:
    """The parent computes on two threads, before and after; without care the children hang."""
    run = subprocess.run(
        [sys.executable, "-c", FORK, str(real_folder), used, str(BATCH_INVARIANCE_FLOAT32)],
        input="\n".join(SENTENCES[:16]),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert run.stdout.splitlines() == ["True 1 2"] * 2


# Files of weights. test_checkpoint.py has those that a story can be told of.


def test_a_valid_file_is_taken() -> None:
    """What follows would prove nothing if nothing were."""
    assert fuzz_targets.checkpoint(VALID)


def header_of(content: bytes) -> bytes:
    return content[8 : 8 + struct.unpack("<Q", content[:8])[0]]


def test_every_byte_of_the_header_matters(exhaustive: bool) -> None:
    """Two other values for each byte in turn, of eight: an error, or the numbers that the changed
    header describes, never other ones.

    Only what lies inside __metadata__ may be anything: nothing depends on it. The tensor data
    has no checksum; a change there that leaves a finite number loads.
    """
    header = header_of(VALID)
    # To the closing quotation marks, which no other byte can take the place of.
    metadata = range(8 + header.index(b'"format"') + 1, 8 + header.index(b'"pt"') + 3)
    taken = []
    sample = {*range(0, 8 + len(header), 11), *metadata}
    for place in range(8 + len(header)) if exhaustive else sorted(sample):
        byte = VALID[place]
        others = (0x00, 0x20, ord("0"), ord('"'), 0xFF, byte + 1 & 255, byte - 1 & 255, byte ^ 0x20)
        for value in (others[place % 8], others[(place // 8 + 4) % 8]):
            damaged = bytearray(VALID)
            damaged[place] = value
            if damaged != VALID and fuzz_targets.checkpoint(bytes(damaged)):
                taken.append(place)
    assert set(taken) <= set(metadata), [header[place - 8 :][:20] for place in taken]
    assert taken


def test_every_length_refuses(exhaustive: bool) -> None:
    for length in [
        *range(0, len(VALID), 7 if exhaustive else 70),
        *range(len(VALID) - 8, len(VALID)),
    ]:
        assert not fuzz_targets.checkpoint(VALID[:length]), length
    for more in (1, 7, 8, 4096):
        assert not fuzz_targets.checkpoint(VALID + bytes(more)), more


@st.composite
def damaged_headers(draw: st.DrawFn) -> bytes:
    """Whole JSON headers that lie: values of entries exchanged, or set to something else."""
    header, data = header_of(VALID), VALID[8 + len(header_of(VALID)) :]
    content = json.loads(header)
    names = sorted(set(content) - {"__metadata__"})
    for _ in range(draw(st.integers(1, 3))):
        name, other = draw(st.sampled_from(names)), draw(st.sampled_from(names))
        field = draw(st.sampled_from(["dtype", "shape", "data_offsets", "all", "name"]))
        if field == "all":
            content[name], content[other] = content[other], content[name]
        elif field == "name":
            content[draw(st.sampled_from([other, "", "bert." + other]))] = content.pop(name)
            names = sorted(set(content) - {"__metadata__"})
        else:
            numbers = st.integers(-2, 2000) | st.sampled_from([2**31, 2**62, 2**64])
            value = draw(
                st.just(content[other][field])
                | st.lists(numbers, max_size=3)
                | st.sampled_from(["F16", "F64", "I8", None, 0.5])
            )
            content[name] = content[name] | {field: value}
    encoded = json.dumps(content).encode()
    padding = b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded + padding)) + encoded + padding + data


@settings(max_examples=300)
@given(content=damaged_headers())
def test_headers_that_lie(content: bytes) -> None:
    fuzz_targets.checkpoint(content)


@st.composite
def edits(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with some replaced, inserted, removed or moved."""
    edited = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(edited)))
        stop = min(len(edited), start + draw(st.integers(0, 16)))
        edited[start:stop] = draw(st.binary(max_size=16))
    return bytes(edited)


@settings(max_examples=300)
@given(content=edits(VALID) | st.binary(max_size=64))
def test_damaged_weights(content: bytes) -> None:
    fuzz_targets.checkpoint(content)


# Tokenizers and texts


TOKENIZERS = [path.read_bytes() for path in sorted((SEEDS / "tokenizer-file").iterdir())]


@settings(max_examples=500)
@given(content=st.one_of(*(edits(content) for content in TOKENIZERS), st.binary(max_size=64)))
def test_damaged_tokenizers(content: bytes) -> None:
    fuzz_targets.tokenizer_file(content)


@settings(max_examples=300)
@given(data=st.text(max_size=60).map(str.encode) | st.binary(max_size=40))
@example(data="ｶﾞ Ａ\u0308 \u200d\ufeff\u0085 <s>".encode())
@example(data=b"tea \xff")
def test_any_text(data: bytes) -> None:
    assert fuzz_targets.text(data) == is_utf8(data)


def is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


# The fuzzer


@pytest.mark.parametrize("target", sorted(fuzz_targets.TARGETS))
def test_seeds_of_the_fuzzer(target: str) -> None:
    """Each target has seeds, small ones, of which some are taken."""
    seeds = sorted((SEEDS / target).iterdir())
    taken = [fuzz_targets.TARGETS[target](seed.read_bytes()) for seed in seeds]
    assert any(taken)
    assert all(seed.stat().st_size < 8192 for seed in seeds)


@pytest.mark.parametrize("target", sorted(fuzz_targets.TARGETS))
def test_the_fuzzer_runs(target: str) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed")
    script = ROOT / "scripts" / "fuzz"
    run = subprocess.run(
        [sys.executable, script, "--seconds", "1", target],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "no crash, no hang, no wrong result" in run.stdout
    executed = run.stderr.split("stat::number_of_executed_units:")[1].split()[0]
    assert int(executed) > 20


def test_targets_notice_wrong_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that let everything pass would find nothing in ten minutes either."""
    right = fuzz_targets.read_independently(VALID)
    wrong = right | {"embeddings.LayerNorm.bias": right["embeddings.LayerNorm.bias"] + 1}
    monkeypatch.setattr(fuzz_targets, "read_independently", lambda data: wrong)
    with pytest.raises(AssertionError, match=r"LayerNorm\.bias is not what the file holds"):
        fuzz_targets.checkpoint(VALID)
    monkeypatch.setattr(fuzz_targets, "windows", lambda ids, most: [ids[:4]])
    with pytest.raises(AssertionError, match="the windows lost a piece"):
        fuzz_targets.text(b"the query the tea")
