"""Trimmed vocabularies: the same pieces and bits where nothing is lost, characters elsewhere."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.checkpoints import keep_rows
from support.conversions import convert, run_convert
from support.models import CHARSMAP, ROOT, tiny_vocabulary

from e5core import E5, SentencePieceTokenizer
from e5core.checkpoint.names import WORD_EMBEDDINGS
from e5core.convert import trim_vocabulary
from e5core.formats.files import read_json_object, write_json
from e5core.formats.sentencepiece import read_pieces, unigram_model
from e5core.parity.samples import LANGUAGES, SENTENCES
from e5core.parity.tolerances import UNIT_VECTOR_FLOAT32

SPM_FILE = "sentencepiece.bpe.model"
Make = Callable[..., Path]
KEPT_LANGUAGES = ("de", "en", "tr")
IDS = len(tiny_vocabulary()) + 1  # of a tiny model's tokenizer, `<mask>` included


def sentences(kept: bool) -> list[str]:
    rows = zip(SENTENCES, LANGUAGES, strict=True)
    return [text for text, language in rows if (language in KEPT_LANGUAGES) == kept]


def pieces_of(folder: Path) -> list[str]:
    """The piece of every model id."""
    pieces = [piece.text for piece in read_pieces((folder / SPM_FILE).read_bytes())]
    return ["<s>", "<pad>", "</s>", "<unk>", *pieces[3:], "<mask>"]


def trim(source: Path, target: Path, *arguments: object) -> None:
    convert("trim-vocabulary", source, target, *arguments)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """What the tiny model is to keep: its pieces for "the" and "query", not for "a" and "ing"."""
    path = tmp_path / "corpus.txt"
    path.write_text("the query\n\nthe 日本\n", encoding="utf-8")
    return path


# Real multilingual-e5-small.


@pytest.fixture(scope="module")
def trimmed(real_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trimmed") / "small"
    program = [sys.executable, ROOT / "scripts" / "trim_vocabulary.py", real_folder, folder]
    options = ["--verify", "--languages", *KEPT_LANGUAGES]
    result = subprocess.run([*program, *options], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # no terminal, no bar
    (folder / "printed").write_text(result.stdout, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trimmed_model(trimmed: Path) -> E5:
    return E5.from_pretrained(trimmed)


@pytest.mark.parametrize("input_type", ["query", "passage", None])
def test_kept_languages_have_the_same_bits(
    real_model: E5, trimmed_model: E5, input_type: str
) -> None:
    texts = sentences(kept=True)
    before = real_model.embed(texts, input_type=input_type)
    after = trimmed_model.embed(texts, input_type=input_type)
    assert np.array_equal(before.token_counts, after.token_counts)
    assert np.array_equal(before.vectors, after.vectors)


def test_ids_stand_for_the_same_pieces(
    real_folder: Path, real_model: E5, trimmed: Path, trimmed_model: E5
) -> None:
    before, after = pieces_of(real_folder), pieces_of(trimmed)
    old_id = {piece: i for i, piece in enumerate(before)}
    rows = [old_id[piece] for piece in after]
    assert rows == sorted(rows)  # the order stays
    assert after.index("<mask>") == trimmed_model.tokenizer.mask_id == len(after) - 1
    for text in sentences(kept=True):
        ids = trimmed_model.tokenizer.encode(text)
        assert [rows[i] for i in ids] == real_model.tokenizer.encode(text)
    table = trimmed_model.encoder.embeddings.word.weight
    assert torch.equal(table, real_model.encoder.embeddings.word.weight[rows])
    assert len(table) == len(after) == trimmed_model.config.vocab_size
    assert {piece for piece in before if len(piece) == 1} <= set(after)


def test_dropped_languages_still_embed_through_characters(
    real_model: E5, trimmed_model: E5, measured: Callable[[str], None]
) -> None:
    texts = sentences(kept=False)
    before, after = real_model.tokenizer, trimmed_model.tokenizer
    longer = 0
    for text in texts:
        ids = after.encode(text)
        assert 3 not in ids  # <unk>
        assert after.decode(ids) == before.decode(before.encode(text))
        longer += len(ids) > before.count(text)
    assert longer == len(texts)
    vectors = trimmed_model.encode_query(texts)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    cosines = (vectors * real_model.encode_query(texts)).sum(axis=1)
    assert cosines.max() < 0.9999
    measured(f"languages left out, cosine to before: mean {cosines.mean():.3f}")


def test_what_is_printed(real_folder: Path, trimmed: Path) -> None:
    printed = (trimmed / "printed").read_text(encoding="utf-8")
    rows = len(pieces_of(trimmed))
    assert f"rows of the token table: 250,037 → {rows:,} ({1 - rows / 250037:.1%} saved)" in printed
    assert "35 of them belonged to no id of the tokenizer" in printed
    assert "texts cut differently: 0 of 48, +0.0% tokens" in printed
    assert "verified: 48 texts" in printed
    size = (trimmed / "model.safetensors").stat().st_size
    assert f"model.safetensors: {size:,} bytes, sha256 " in printed
    before = (real_folder / "model.safetensors").stat().st_size
    # A row is 384 numbers of 4 bytes; the offsets in the header lose some digits.
    assert before - size == pytest.approx((250_037 - rows) * 384 * 4, abs=1_000)


@pytest.fixture(scope="module")
def both_vocabularies(real_folder: Path, trimmed: Path) -> tuple[list[str], list[str]]:
    return pieces_of(real_folder), pieces_of(trimmed)


WORDS = st.sampled_from(sorted({word for text in SENTENCES for word in text.split()}))
ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=300)
@given(st.lists(WORDS | ANY_TEXT, max_size=6).map(" ".join))
def test_any_text_whose_pieces_are_kept_is_cut_as_before(
    real_model: E5, trimmed_model: E5, both_vocabularies: tuple[list[str], list[str]], text: str
) -> None:
    """And what was known before is known still."""
    old_piece, new_piece = both_vocabularies
    before = [old_piece[i] for i in real_model.tokenizer.encode(text)]
    after = [new_piece[i] for i in trimmed_model.tokenizer.encode(text)]
    if set(before) <= set(new_piece):
        assert after == before
    assert ("<unk>" in before) == ("<unk>" in after)


def test_transformers_reads_the_result(
    oracle: ModuleType, trimmed: Path, trimmed_model: E5
) -> None:
    import transformers

    oracle.quiet()
    tokenizer = transformers.AutoTokenizer.from_pretrained(trimmed)
    texts = sentences(kept=True)[::6] + sentences(kept=False)[::30]
    ids = [trimmed_model.tokenizer.encode(text) for text in texts]
    assert [tokenizer(text)["input_ids"] for text in texts] == ids
    assert tokenizer.mask_token_id == trimmed_model.tokenizer.mask_id
    reference = oracle.reference_vectors(oracle.load_reference(trimmed), ids)
    vectors = trimmed_model.embed(texts, input_type=None).vectors
    assert np.abs(vectors - reference).max() <= UNIT_VECTOR_FLOAT32


# Tiny models.


def test_pieces_that_are_not_used_are_gone(tiny_folder: Path, tmp_path: Path, corpus: Path) -> None:
    trim(tiny_folder, tmp_path / "out", "--corpus", corpus)
    before, after = set(pieces_of(tiny_folder)), set(pieces_of(tmp_path / "out"))
    # The prompts' pieces stay without being in the corpus.
    assert {"▁the", "▁query", "▁passage", ":", "日", "本"} <= after
    assert before - after == {"▁a", "ing", "er"}
    ours = E5.from_pretrained(tmp_path / "out")
    theirs = E5.from_pretrained(tiny_folder)
    assert ours.config.vocab_size == IDS - 3
    for text in ("the query", "日 the", "漢 the", ""):
        assert np.array_equal(ours.encode_passage(text), theirs.encode_passage(text)), text
    assert not np.array_equal(ours.encode_passage("aing"), theirs.encode_passage("aing"))


def test_the_piece_that_scores_unknown_characters_stays(
    make_tiny: Make, corpus: Path, tmp_path: Path
) -> None:
    pieces = tiny_vocabulary()
    pieces += [("longer", -90.0), ("longest", -99.0)]
    folder = make_tiny()
    (folder / SPM_FILE).write_bytes(unigram_model(pieces, CHARSMAP.read_bytes()))
    trim(folder, tmp_path / "out", "--corpus", corpus)
    assert "longest" in pieces_of(tmp_path / "out")
    assert "longer" not in pieces_of(tmp_path / "out")


def test_a_sample_tells_what_is_cut_differently(
    make_tiny: Make, tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = tmp_path / "sample.txt"
    sample.write_text("the the\na ing\ner\n", encoding="utf-8")
    trim(make_tiny(), tmp_path / "out", "--corpus", corpus, "--sample", sample, "--verify")
    printed = capsys.readouterr().out
    # "the the" has 4 tokens; "a ing" ▁a ▁ ing and "er" ▁ er become ▁ a ▁ i n g and ▁ e r.
    assert "texts cut differently: 2 of 3, +30.8% tokens" in printed
    assert "verified: 1 texts" in printed


def test_the_rest_of_the_folder(tiny_folder: Path, tmp_path: Path, corpus: Path) -> None:
    """Settings travel, tokenizer files are written anew, and nothing stale is left."""
    config = read_json_object(tiny_folder / "config.json")
    write_json(tiny_folder / "config.json", {**config, "torch_dtype": "float32", "more": [1]})
    write_json(tiny_folder / "sentence_bert_config.json", {"max_seq_length": 40})
    write_json(tiny_folder / "tokenizer_config.json", {"added_tokens_decoder": {"110": "<mask>"}})
    (tiny_folder / "onnx").mkdir()
    (tiny_folder / "onnx" / "model.onnx").write_bytes(b"with the old ids")
    (tiny_folder / "pytorch_model.bin").write_bytes(b"with the old ids")
    out = tmp_path / "out"
    trim(tiny_folder, out, "--corpus", corpus)
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert written == {
        "1_Pooling/config.json",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "sentence_bert_config.json",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    changed = {**config, "torch_dtype": "float32", "more": [1], "vocab_size": IDS - 3}
    assert read_json_object(out / "config.json") == changed
    tokenizer = read_json_object(out / "tokenizer_config.json")
    assert tokenizer["model_max_length"] == 40
    assert "added_tokens_decoder" not in tokenizer
    assert E5.from_pretrained(out).max_length == 40


def test_prompts_known_by_the_name_alone_are_not_lost(
    make_tiny: Make, tmp_path: Path, corpus: Path
) -> None:
    folder = make_tiny(name="multilingual-e5-small")
    (folder / "config_sentence_transformers.json").unlink()
    trim(folder, tmp_path / "out", "--corpus", corpus)
    assert E5.from_pretrained(tmp_path / "out").prompts == E5.from_pretrained(folder).prompts


def test_hugging_faces_tokenizer_is_trimmed_alike(
    oracle: ModuleType, tiny_folder: Path, tmp_path: Path, corpus: Path
) -> None:
    import transformers

    oracle.fast_tokenizer(tiny_folder, CHARSMAP).save_pretrained(tiny_folder)
    assert (tiny_folder / "tokenizer.json").is_file()
    out = tmp_path / "out"
    trim(tiny_folder, out, "--corpus", corpus)
    ours = SentencePieceTokenizer(out / SPM_FILE)
    assert SentencePieceTokenizer(out / "tokenizer.json").vocab_size == ours.vocab_size == IDS - 3
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    for text in ("the query", "a passage: ing", "日本 é", "x漢y"):
        assert theirs(text)["input_ids"] == ours.encode(text), text
    assert (theirs.mask_token_id, len(theirs)) == (ours.mask_id, IDS - 3)


def test_a_folder_with_tokenizer_json_alone(
    oracle: ModuleType, make_tiny: Make, tmp_path: Path, corpus: Path
) -> None:
    folder = make_tiny()
    trim(folder, tmp_path / "expected", "--corpus", corpus)
    oracle.fast_tokenizer(folder, CHARSMAP).save_pretrained(folder)
    (folder / SPM_FILE).unlink()
    trim(folder, tmp_path / "out", "--corpus", corpus)
    assert pieces_of(tmp_path / "out") == pieces_of(tmp_path / "expected")


def test_names_heads_and_dtype_of_a_task_model(
    make_tiny: Make, tmp_path: Path, corpus: Path
) -> None:
    folder = make_tiny("xlm-roberta")
    tensors = load_file(folder / "model.safetensors")
    stored = {f"roberta.{name}": tensor.half() for name, tensor in tensors.items()}
    stored["roberta.embeddings.LayerNorm.gamma"] = stored.pop("roberta.embeddings.LayerNorm.weight")
    stored["roberta.pooler.dense.weight"] = torch.ones(24, 24).half()
    stored["lm_head.decoder.weight"] = torch.ones(120, 24).half()
    save_file(stored, folder / "model.safetensors")
    trim(folder, tmp_path / "out", "--corpus", corpus)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == tensors.keys() | {"pooler.dense.weight"}
    for name, tensor in tensors.items():
        if name != WORD_EMBEDDINGS:
            assert torch.equal(written[name], tensor.half()), name
    assert written[WORD_EMBEDDINGS].dtype == torch.float16


def test_weights_in_int8_are_refused(
    make_tiny: Make, tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert("dtype", make_tiny(), tmp_path / "int8", "--dtype", "int8")
    capsys.readouterr()
    arguments = [tmp_path / "int8", tmp_path / "out", "--corpus", corpus]
    assert_refused(arguments, capsys, "the weights are in int8; trim the model that they were")


def test_shards_become_one_file(make_tiny: Make, tmp_path: Path, corpus: Path) -> None:
    folder = make_tiny()
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    files = {"model-00001.safetensors": names[::2], "model-00002.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, part in files.items() for name in part}
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    trim(folder, tmp_path / "out", "--corpus", corpus, "--verify")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(
        written["embeddings.position_embeddings.weight"],
        tensors["embeddings.position_embeddings.weight"],
    )


# Errors: one line, exit code 2, nothing written.


def assert_refused(
    arguments: list[object], capsys: pytest.CaptureFixture[str], message: str
) -> None:
    try:
        code = run_convert("trim-vocabulary", *arguments)
    except SystemExit as exit_:  # argparse's
        code = int(str(exit_.code))
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("e5core convert trim-vocabulary")
    assert message in printed.err


def damaged(folder: Path, name: str) -> None:
    """Leave out, cut or change one file of a source."""
    file = folder / name
    if name == "model.safetensors":
        file.write_bytes(file.read_bytes()[:1000])
    elif name == "config.json":
        keep_rows(folder, 110)
    elif name == SPM_FILE:
        file.write_bytes(file.read_bytes()[:-100_000])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "is not a whole safetensors file"),
        ("config.json", "the tokenizer has 111 ids, the token table 110 rows"),
        (SPM_FILE, "is not a SentencePiece model"),
    ],
)
def test_a_damaged_source(
    make_tiny: Make,
    tmp_path: Path,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    message: str,
) -> None:
    folder = make_tiny()
    damaged(folder, name)
    assert_refused([folder, tmp_path / "out", "--corpus", corpus], capsys, message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "model"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --corpus or --languages"),
        (["--languages", "de", "tlh"], "no sample texts in tlh, only in ar, "),
        (["--corpus", "none.txt"], "none.txt"),
        (["--corpus", "empty.txt"], "empty.txt: there is no text"),
        (["--corpus", "latin1.txt"], "latin1.txt, line 2: byte 1 is not UTF-8"),
        (["--corpus", "pipe"], "pipe is not a file, and the corpus is read twice"),
        (["--languages", "de", "--sample", "empty.txt"], "empty.txt: there is no text"),
        (["--language"], "--help"),
    ],
)
def test_bad_arguments(
    make_tiny: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    folder = make_tiny()
    (tmp_path / "empty.txt").write_text("\n\n")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin1.txt").write_bytes("a\nné\n".encode("latin-1"))
    monkeypatch.chdir(tmp_path)
    assert_refused([folder, "out", *arguments], capsys, message)
    assert not Path("out").exists()


def test_a_source_that_is_none(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    arguments = [tmp_path / "folder", tmp_path / "out", "--corpus", corpus]
    assert_refused(arguments, capsys, "has no config.json")


def test_a_model_in_place_is_replaced_only_by_force(
    make_tiny: Make, tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = make_tiny(), tmp_path / "out"
    arguments = [folder, out, "--corpus", corpus]
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert_refused(arguments, capsys, "is there already; pass --force")
    assert_refused([*arguments, "--force"], capsys, "so it is no model and is not replaced")
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    write_json(out / "config.json", {})
    trim(*arguments, "--force")
    assert not (out / "notes.txt").exists()
    assert E5.from_pretrained(out).config.vocab_size == IDS - 3
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    damaged(folder, "model.safetensors")
    capsys.readouterr()
    assert_refused([*arguments, "--force"], capsys, "is not a whole safetensors file")
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "model", "out"]


@pytest.mark.parametrize("target", ["model", ".", "model/config.json"])
def test_the_source_is_never_replaced(
    make_tiny: Make, tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    folder = make_tiny()
    write_json(tmp_path / "config.json", {})
    arguments = [folder, tmp_path / target, "--corpus", corpus, "--force"]
    assert_refused(arguments, capsys, "name another")
    assert E5.from_pretrained(folder).config.vocab_size == 120


def test_verify_finds_a_table_in_another_order(
    make_tiny: Make,
    tmp_path: Path,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trim_table = trim_vocabulary.trim_table
    monkeypatch.setattr(
        trim_vocabulary, "trim_table", lambda weights, rows: trim_table(weights, rows[::-1])
    )
    arguments = [make_tiny(), tmp_path / "out", "--corpus", corpus, "--verify"]
    assert run_convert("trim-vocabulary", *arguments) == 2
    printed = capsys.readouterr()
    assert "expected not a bit" in printed.err
    assert "verified" not in printed.out
    assert not (tmp_path / "out").exists()


def test_verify_with_nothing_to_compare(
    make_tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus.txt").write_text("x\n")
    (tmp_path / "sample.txt").write_text("singer\n")
    arguments = ["--corpus", tmp_path / "corpus.txt", "--sample", tmp_path / "sample.txt"]
    folder, out = make_tiny(), tmp_path / "out"
    assert_refused([folder, out, *arguments, "--verify"], capsys, "nothing to compare")
    trim(folder, out, *arguments)
