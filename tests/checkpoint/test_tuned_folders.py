"""Folders of fine-tuned models, as people bring them: the library's vectors, or a refusal by name.

Each entry of the tables makes a folder of one kind; sentence-transformers itself, or the tokenizers
library, says what its vectors are. What a conversion makes of the folder must have them too.
"""

import json
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.conversions import convert
from support.models import write_tiny_model, write_tiny_reranker

from e5core import E5, Reranker, SentencePieceTokenizer
from e5core.checkpoint.folder import ModelFolder
from e5core.formats.files import read_json_object, write_json
from e5core.formats.tokenizer_json import tokenizer_json
from e5core.integrations.sentence_transformers import SentenceTransformer
from e5core.parity.tolerances import UNIT_VECTOR_FLOAT32

library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is missing")

TEXTS = ["the query", "The PASSAGE é", "newtok and <new> text 12", "a " * 30, "日本 ß", ""]
LIMIT = "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as sentence-transformers saves it."""
    base = tmp_path_factory.mktemp("saved")
    tiny = write_tiny_model(base / "tiny", "xlm-roberta")
    convert("sentence-transformers", tiny, base / "converted")
    library.SentenceTransformer(str(base / "converted"), device="cpu").save(str(base / "saved"))
    return base / "saved"


def edit(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    content = read_json_object(path) if path.is_file() else {}
    write_json(path, {**content, **values})


def resave(folder: Path, change: Callable[[Any], object]) -> None:
    """Let sentence-transformers change and save a model."""
    model = library.SentenceTransformer(str(folder), device="cpu")
    change(model)
    shutil.rmtree(folder)
    model.save(str(folder))


def into_subfolder(folder: Path) -> None:
    """As sentence-transformers below 2 saved its Transformer step."""
    inner = folder / "0_Transformer"
    inner.mkdir()
    for file in [f for f in folder.iterdir() if f.is_file()]:
        if file.name not in ("modules.json", PROMPTS, "README.md"):
            shutil.move(file, inner / file.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    write_json(folder / "modules.json", modules)


def add_dense(activation: Any, size: int, **options: Any) -> Callable[[Path], None]:
    from sentence_transformers.sentence_transformer.modules import Dense

    def change(model: Any) -> None:
        torch.manual_seed(5)
        last = len(model) - 1
        normalize = model[last]
        model[last] = Dense(24, size, activation_function=activation, **options)
        model.append(normalize)

    return lambda folder: resave(folder, change)


def without_normalize(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    write_json(folder / "modules.json", modules[:2])


def set_default_prompt(model: Any) -> None:
    model.prompts = {"query": "the: ", "document": "a ", "sts": "é "}
    model.default_prompt_name = "sts"


def with_bom(folder: Path) -> None:
    for path in folder.rglob("*.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def lower_all(folder: Path) -> None:
    edit(folder, LIMIT, do_lower_case=True)


def add_tokens(folder: Path) -> None:
    def change(model: Any) -> None:
        model.tokenizer.add_tokens(["newtok", "<new>"])
        model.tokenizer.add_tokens(["[S]"], special_tokens=True)

    resave(folder, change)


# Each makes a folder of a kind; the library gives its vectors.
SAME: dict[str, Callable[[Path], object]] = {
    "as it was saved": lambda folder: None,
    "a lower limit": lambda folder: resave(folder, lambda m: setattr(m, "max_seq_length", 16)),
    "a limit in the older file": lambda folder: edit(folder, LIMIT, max_seq_length=12),
    "two limits": lambda folder: (
        edit(folder, LIMIT, max_seq_length=20),
        edit(folder, "tokenizer_config.json", model_max_length=10),
    ),
    "a limit in processor_kwargs": lambda folder: edit(
        folder, LIMIT, max_seq_length=20, processor_kwargs={"model_max_length": 11}
    ),
    "no limit": lambda folder: edit(folder, "tokenizer_config.json", model_max_length=10**30),
    "a step in a subfolder": into_subfolder,
    "a subfolder and a limit": lambda folder: (
        edit(folder, LIMIT, max_seq_length=9),
        into_subfolder(folder),
    ),
    "without Normalize": without_normalize,
    "a wider Dense": add_dense(torch.nn.Tanh(), 40),
    "a narrow Dense without a bias": add_dense(torch.nn.Identity(), 8, bias=False),
    "a Dense with GELU and a residual": add_dense(torch.nn.GELU(), 24, use_residual=True),
    "a Dense with a residual matrix": add_dense(torch.nn.ReLU(), 10, use_residual=True),
    "a default prompt": lambda folder: resave(folder, set_default_prompt),
    "lower case": lower_all,
    "added tokens": add_tokens,
    "a BOM in all JSON": with_bom,
    "pooling of the first token": lambda folder: write_json(
        folder / "1_Pooling" / "config.json", {"embedding_dimension": 24, "pooling_mode": "cls"}
    ),
}


@pytest.mark.parametrize("kind", SAME)
def test_sentence_transformers_gives_the_same_vectors(
    saved: Path, tmp_path: Path, kind: str
) -> None:
    """Of the folder, and of what a conversion makes of it."""
    folder = shutil.copytree(saved, tmp_path / "model")
    SAME[kind](folder)
    # It cannot read a BOM itself.
    theirs = library.SentenceTransformer(str(saved if "BOM" in kind else folder), device="cpu")
    expected = theirs.encode(TEXTS)
    ours = SentenceTransformer(folder, device="cpu")
    assert ours.max_seq_length == theirs.max_seq_length or "no limit" in kind or "Tr" in kind
    np.testing.assert_allclose(ours.encode(TEXTS), expected, atol=UNIT_VECTOR_FLOAT32 * 4, rtol=0)
    assert ours.get_embedding_dimension() == expected.shape[1]
    for name, options in (("sentence-transformers", ()), ("dtype", ("--dtype", "float32"))):
        convert(name, folder, tmp_path / name, *options)
        again = SentenceTransformer(tmp_path / name, device="cpu")
        np.testing.assert_array_equal(again.encode(TEXTS), ours.encode(TEXTS))
        assert again.prompts == ours.prompts
        assert again.max_seq_length == ours.max_seq_length


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another limit": (
        lambda f: edit(f, "tokenizer_config.json", model_max_length="long"),
        r"tokenizer_config\.json: model_max_length is 'long', expected a whole number",
    ),
    "a limit of 12.5": (lambda f: edit(f, LIMIT, max_seq_length=12.5), "max_seq_length is 12.5"),
    "no step such as Max": (
        lambda f: edit(f, "1_Pooling/config.json", pooling_mode=["mean", "max"]),
        r"the pooling \['mean', 'max'\]",
    ),
    "cut on the left": (
        lambda f: edit(f, "tokenizer_config.json", truncation_side="left"),
        r"tokenizer_config\.json cuts long texts at the side 'left'",
    ),
    "cut on the left by itself": (
        lambda f: retokenize(f, lambda t: t.update(truncation={**CUT, "direction": "Left"})),
        r"tokenizer\.json cuts long texts at the side 'Left'",
    ),
    "no table of characters": (
        lambda f: retokenize(f, lambda t: t.update(normalizer=None)),
        "lacks a vocabulary or a precompiled charsmap",
    ),
    "a step that is none": (
        lambda f: retokenize(f, lambda t: t.update(normalizer="Lowercase")),
        r"normalizer .*Lowercase.*, which e5core does not do",
    ),
    "a list for a step": (
        lambda f: retokenize(f, lambda t: t.update(pre_tokenizer=[{"type": "Digits"}])),
        r"pre_tokenizer .*Digits",
    ),
    "another unknown id": (
        lambda f: retokenize(f, lambda t: t["model"].update(unk_id=0)),
        "unk_id 0, which e5core does not do",
    ),
    "added tokens without ids": (
        lambda f: retokenize(f, lambda t: t.update(added_tokens=["<new>"])),
        "the added token <new> has no text or no id",
    ),
    "ids that are none": (
        lambda f: write_json(f / "added_tokens.json", {"<new>": "last"}),
        "lists the added tokens otherwise than by text and id .*'last'",
    ),
    "added tokens in a list": (
        lambda f: edit(f, "tokenizer_config.json", added_tokens_decoder=["<new>"]),
        "lists the added tokens otherwise than by text and id",
    ),
    "an added token without a text": (
        lambda f: edit(f, "tokenizer_config.json", added_tokens_decoder={"112": {}}),
        "lists the added tokens otherwise than by text and id",
    ),
    "two encoders": (lambda f: steps(f, 0, 0, 1), "has the steps Transformer, Transformer, Pool"),
    "a pooling before its encoder": (lambda f: steps(f, 1, 0), "has the steps Pooling, Transf"),
    "two poolings": (lambda f: steps(f, 0, 1, 1), "has the steps Transformer, Pooling, Pooling"),
    "a single name for the head": (
        lambda f: edit(f, "config.json", architectures="XLMRobertaForSequenceClassification"),
        r"classifier|cross-encoder",
    ),
    "a pooling that is missing": (
        lambda f: (f / "1_Pooling" / "config.json").unlink(),
        r"has the step 'Pooling', but there is no .*1_Pooling.config\.json; download",
    ),
    "a path that leads out": (
        lambda f: write_json(
            f / "modules.json", [{"idx": 0, "path": "../x", "type": "a.Transformer"}]
        ),
        "expected a folder inside its own",
    ),
    "a default that is none": (
        lambda f: edit(f, PROMPTS, default_prompt_name="sts"),
        "default_prompt_name is 'sts', the prompts are",
    ),
    "weights left in git": (lambda f: pointer(f / "model.safetensors"), "git lfs pull"),
    "a tokenizer left in git": (lambda f: pointer(f / "tokenizer.json"), "git lfs pull"),
    "a SentencePiece model left in git": (
        lambda f: pointer(f / "sentencepiece.bpe.model"),
        "git lfs pull",
    ),
    "digits apart": (
        lambda f: retokenize(
            f, lambda t: t["pre_tokenizer"]["pretokenizers"].insert(1, {"type": "Digits"})
        ),
        "pre_tokenizer 'Digits', which e5core does not do",
    ),
    "a pattern replaced": (
        lambda f: retokenize(f, lambda t: t.update(normalizer=sequence(t, REGEX))),
        r"Replace \{'Regex': '\[0-9\]'\}, which e5core does not do",
    ),
    "BERT's normaliser": (
        lambda f: retokenize(f, lambda t: t.update(normalizer={"type": "BertNormalizer"})),
        "normalizer 'BertNormalizer'",
    ),
    "no <s>": (
        lambda f: retokenize(f, lambda t: t.update(post_processor=None)),
        "post_processor None",
    ),
    "words in pieces of bytes": (
        lambda f: retokenize(f, lambda t: t["model"].update(byte_fallback=True)),
        "byte_fallback True",
    ),
    "a stale SentencePiece model": (
        lambda f: (f / "sentencepiece.bpe.model").write_bytes(other_pieces()),
        r"sentencepiece\.bpe\.model and .*tokenizer\.json are not the same tokenizer: id 100",
    ),
    "an added token without a row": (
        lambda f: retokenize(f, lambda t: t["added_tokens"].append({"id": 120, "content": "x"})),
        "121 ids, the token table 120 rows",
    ),
    "an added token in one file alone": (
        lambda f: write_json(f / "added_tokens.json", {"<only>": 112}),
        r"adds the tokens \['<only>'\], which .*tokenizer\.json lacks",
    ),
    "a Dense of another size": (
        lambda f: dense_config(f, in_features=23),
        "in_features is 23, the vectors before it have 24 numbers",
    ),
    "a Dense of no known activation": (
        lambda f: dense_config(f, activation_function="my.Mish"),
        "activation_function is 'my.Mish'",
    ),
    "a Dense without weights": (
        lambda f: (dense_config(f), (f / "2_Dense" / "model.safetensors").unlink()),
        "pickles such as pytorch_model.bin are never loaded",
    ),
}
CUT = {"max_length": 10, "stride": 0, "strategy": "LongestFirst"}
REGEX = {"type": "Replace", "pattern": {"Regex": "[0-9]"}, "content": "0"}


def sequence(tokenizer: dict[str, Any], step: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [step, tokenizer["normalizer"]]}


def steps(folder: Path, *numbers: int) -> None:
    """Some entries of modules.json, perhaps several times."""
    modules = json.loads((folder / "modules.json").read_text())
    write_json(folder / "modules.json", [modules[number] for number in numbers])


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")


def retokenize(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = read_json_object(folder / "tokenizer.json")
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def other_pieces() -> bytes:
    """The tiny vocabulary with one piece changed."""
    from support.models import tiny_vocabulary

    from e5core.formats.sentencepiece import CHARSMAP, unigram_model

    pieces = tiny_vocabulary()
    pieces[100] = ("ぁ", pieces[100][1])
    return unigram_model(pieces, CHARSMAP.read_bytes())


def dense_config(folder: Path, **values: Any) -> None:
    add_dense(torch.nn.Tanh(), 8)(folder)
    edit(folder, "2_Dense/config.json", **values)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_done_is_refused_by_name(saved: Path, tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(saved, tmp_path / "model")
    change, message = REFUSED[kind]
    change(folder)
    with pytest.raises((ValueError, OSError), match=message):
        E5.from_pretrained(folder)


# ---- the limit


@pytest.mark.parametrize(
    ("said", "limit"),
    [(16, 16), (16.0, 16), ("16", 16), ("16.0", 16), (1e30, 64), (10**30, 64), (100, 64)],
)
def test_a_plain_folder_says_its_limit_in_tokenizer_config(
    tmp_path: Path, said: Any, limit: int
) -> None:
    folder = write_tiny_model(tmp_path / "tiny", "bert")
    write_json(folder / "tokenizer_config.json", {"model_max_length": said})
    assert E5.from_pretrained(folder).max_length == limit
    for name, options in (("sentence-transformers", ()), ("dtype", ("--dtype", "int8"))):
        convert(name, folder, tmp_path / name, *options)
        assert ModelFolder.read(tmp_path / name).max_length == limit
    said_now = read_json_object(tmp_path / "sentence-transformers" / LIMIT)["max_seq_length"]
    assert said_now == limit


def test_a_tokenizer_that_cuts_by_itself_says_the_limit(saved: Path, tmp_path: Path) -> None:
    """Where no other file does, as in a folder of the tokenizers library."""
    folder = shutil.copytree(saved, tmp_path / "model")
    (folder / "tokenizer_config.json").unlink()
    retokenize(folder, lambda t: t.update(truncation={"max_length": 14, "stride": 0}))
    assert ModelFolder.read(folder).max_length == 14


# ---- prompts


UNCHOSEN = {"query": "", "document": ""}
E5_PAIR = {"query": "query: ", "passage": "passage: "}


@pytest.mark.parametrize(
    ("prompts", "card", "known"),
    [
        (UNCHOSEN, "", None),
        (UNCHOSEN, "base_model: intfloat/multilingual-e5-small", E5_PAIR),
        (
            UNCHOSEN,
            "tags:\n- x\nbase_model:\n- intfloat/multilingual-e5-base\nlicense: mit",
            E5_PAIR,
        ),
        (UNCHOSEN, "base_model: 'BAAI/bge-m3'", {"query": "", "passage": ""}),
        (UNCHOSEN, "base_model: FacebookAI/xlm-roberta-base", None),
        ({**UNCHOSEN, "sts": "sts: "}, "base_model: intfloat/multilingual-e5-small", None),
        ({"sts": "sts: "}, "", None),
        (
            {"query": "q: ", "document": "", "passage": "p: "},
            "",
            {"query": "q: ", "passage": "p: "},
        ),
        ({"query": "q: ", "document": "d: ", "passage": "p: "}, "", None),
        ({"query": "q: ", "corpus": "c: "}, "", {"query": "q: ", "passage": "c: "}),
        ({"query": "", "passage": "", "document": ""}, "", {"query": "", "passage": ""}),
    ],
)
def test_what_tells_the_prompts(
    saved: Path, tmp_path: Path, prompts: Any, card: str, known: Any
) -> None:
    folder = shutil.copytree(saved, tmp_path / "model")
    edit(folder, PROMPTS, prompts=prompts)
    (folder / "README.md").write_text(f"---\n{card}\n---\n# A model\nbase_model: other\n")
    model = E5.from_pretrained(folder)
    assert model.prompts == known
    if known is None:
        with pytest.raises(ValueError, match="does not say which prefix a query takes"):
            model.encode_query("x")
    else:
        expected = model.encode(known["passage"] + "x", input_type=None)
        np.testing.assert_array_equal(model.encode_passage("x"), expected)
    adapter = SentenceTransformer(folder)
    for name, prompt in prompts.items():
        if name not in ("query", "document", "passage"):
            plain = adapter.encode(["x"], prompt=prompt)
            np.testing.assert_array_equal(adapter.encode(["x"], prompt_name=name), plain)


def commands(folder: Path, tmp_path: Path) -> dict[str, list[object]]:
    """Those of the command line that want vectors."""
    (tmp_path / "texts.txt").write_text("a text\n")
    embed = ["embed", tmp_path / "texts.txt", "--input-type", "none"]
    return {
        "embed": [*embed, "--model", folder, "--output", tmp_path / "out.npy"],
        "search": ["search", "--passages", tmp_path / "texts.txt", "q", "--model", folder],
    }


def adapters(folder: Path) -> dict[str, Callable[[], object]]:
    """The interfaces of other libraries that want vectors; those that are installed."""
    from importlib import import_module

    names = {
        "sentence_transformers": "SentenceTransformer",
        "langchain": "E5Embeddings",
        "llama_index": "E5Embedding",
        "mteb": "E5Encoder",
        "sklearn": "E5Transformer",
    }
    found: dict[str, Callable[[], object]] = {}
    for module, name in names.items():
        with suppress(ImportError):
            made = getattr(import_module(f"e5core.integrations.{module}"), name)
            found[name] = partial(made, str(folder))
    if "E5Transformer" in found:  # which loads when it is first used
        make: Any = found["E5Transformer"]
        found["E5Transformer"] = lambda: make(input_type=None).fit(["x"]).transform(["x"])
    return found


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("name", ["tiny", "multilingual-e5-small-reranker"])
def test_a_cross_encoder_says_which_class_to_use(
    tmp_path: Path, name: str, labels: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever it is called, and whoever asks it for vectors."""
    from e5core.bulk import embed_files
    from e5core.cli import main

    folder = write_tiny_reranker(tmp_path / name, "bert", labels=labels)
    expected = r"is a cross-encoder, whose head scores pairs.*Reranker\.from_pretrained"
    asked = adapters(folder)
    assert len(asked) >= 3
    for ask in (partial(E5.from_pretrained, folder), *asked.values()):
        with pytest.raises(ValueError, match=expected):
            ask()
    with pytest.raises(ValueError, match=expected):
        embed_files(folder, __file__, tmp_path / "out.npy", input_type=None)
    for command in commands(folder, tmp_path).values():
        assert main(list(map(str, command))) == 2
        assert re.search(expected, capsys.readouterr().err)


def test_an_embedding_model_says_which_class_to_use(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"no classification head.*E5\.from_pretrained"):
        Reranker.from_pretrained(saved)


@pytest.mark.parametrize("labels", [None, 1])
def test_a_cross_encoder_without_its_head(tmp_path: Path, labels: int | None) -> None:
    """Only config.json says that there is one."""
    folder = write_tiny_model(tmp_path / "tiny", "bert")
    edit(folder, "config.json", architectures=["BertForSequenceClassification"], num_labels=labels)
    for load in (E5.from_pretrained, Reranker.from_pretrained):
        with pytest.raises(ValueError, match=r"missing: .*classifier|num_labels is None"):
            load(folder)


# ---- added tokens


def test_added_tokens_of_a_slow_tokenizer(tmp_path: Path) -> None:
    """A SentencePiece model and added_tokens.json, without a tokenizer.json."""
    transformers = pytest.importorskip("transformers")
    folder = write_tiny_model(tmp_path / "tiny", "xlm-roberta")
    write_json(folder / "added_tokens.json", {"<new>": 111, "<mask>": 110})
    ours = ModelFolder.read(folder).load_tokenizer()
    assert ours.encode("the <new> query") == [0, 8, 111, 5, 2]
    plain = SentencePieceTokenizer(folder / "sentencepiece.bpe.model")
    assert ours.encode("the query") == plain.encode("the query")
    assert ours.decode([0, 8, 111, 5, 2]) == "the <new> query"
    convert("sentence-transformers", folder, tmp_path / "new")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    for text in ("the <new> query", "a<new><new> b", "<new>"):
        assert theirs(text).input_ids == ours.encode(text)


@pytest.mark.parametrize(
    ("normalizer", "message"),
    [
        (None, "not the same tokenizer: they normalise texts by other tables"),
        ({"type": "NFKC"}, "not the same tokenizer: they normalise texts by other tables"),
        ("Lowercase", "asks for normalizer .*Lowercase"),
        ([{"type": "Lowercase"}], "asks for normalizer .*Lowercase"),
    ],
)
def test_two_tokenizers_that_normalise_otherwise(
    tmp_path: Path, normalizer: Any, message: str
) -> None:
    """A tokenizer.json beside a SentencePiece model of the same pieces."""
    folder = write_tiny_model(tmp_path / "tiny", "bert")
    content = tokenizer_json((folder / "sentencepiece.bpe.model").read_bytes())
    write_json(folder / "tokenizer.json", content)
    assert E5.from_pretrained(folder).tokenizer.encode("the") == [0, 8, 2]
    write_json(folder / "tokenizer.json", {**content, "normalizer": normalizer})
    with pytest.raises(ValueError, match=message):
        E5.from_pretrained(folder)


def test_a_trimmed_vocabulary_keeps_added_tokens(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "model")
    add_tokens(folder)
    (tmp_path / "corpus.txt").write_text("the query newtok\n[S] passage\n")
    convert("trim-vocabulary", folder, tmp_path / "new", "--corpus", tmp_path / "corpus.txt")
    before, after = E5.from_pretrained(folder), E5.from_pretrained(tmp_path / "new")
    assert after.config.vocab_size < before.config.vocab_size
    texts = ["the query newtok", "[S] passage"]
    np.testing.assert_array_equal(
        before.encode(texts, input_type=None), after.encode(texts, input_type=None)
    )


# ---- truncate_dim


def test_vectors_are_cut_before_they_get_unit_length(saved: Path, tmp_path: Path) -> None:
    whole = E5.from_pretrained(saved)
    raw = whole.encode(TEXTS, input_type=None, normalize=False)[:, :8]
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    cut = E5.from_pretrained(saved, truncate_dim=8)
    assert cut.dimension == 8
    found = [cut.encode(TEXTS, input_type=None)]
    found.append(whole.encode(TEXTS, input_type=None, truncate_dim=8))
    found.append(SentenceTransformer(saved, truncate_dim=8).encode(TEXTS))
    folder = shutil.copytree(saved, tmp_path / "model")
    edit(folder, PROMPTS, truncate_dim=8)
    found.append(E5.from_pretrained(folder).encode(TEXTS, input_type=None))
    for vectors in found:
        np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert cut.encode([], input_type=None).shape == (0, 8)
    with pytest.raises(ValueError, match=r"truncate_dim is 25, this model's vectors have 24 num"):
        whole.encode(TEXTS, input_type=None, truncate_dim=25)
    with pytest.raises(ValueError, match="truncate_dim is 0"):
        whole.encode(TEXTS, input_type=None, truncate_dim=0)


def test_the_command_line_and_adapters_cut_vectors(saved: Path, tmp_path: Path) -> None:
    sklearn = pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from e5core.bulk import embed_files
    from e5core.cli import main
    from e5core.integrations.sklearn import E5Transformer

    texts = ["the query", "a passage"]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    expected = E5.from_pretrained(saved).encode(texts, input_type=None, truncate_dim=6)
    arguments = ["embed", tmp_path / "texts.txt", "--model", saved, "--input-type", "none"]
    arguments += ["--output", tmp_path / "cut.npy", "--truncate-dim", 6]
    assert main(list(map(str, arguments))) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "cut.npy"), expected)
    arguments = ["search", "--index", tmp_path / "cut.npy", "the query", "--model", saved]
    assert main(list(map(str, arguments))) == 0
    options = {"input_type": None, "truncate_dim": 6}
    summary = embed_files(saved, tmp_path / "texts.txt", tmp_path / "two.npy", **options)
    assert summary.hidden_size == 6
    transformer = E5Transformer(saved, input_type=None, truncate_dim=6)
    np.testing.assert_array_equal(transformer.fit(texts).transform(texts), expected)
    assert len(sklearn.base.clone(transformer).get_feature_names_out()) == 6
    with pytest.raises(ValueError, match="truncate_dim is 6, but a cross-encoder"):
        Reranker.from_pretrained(saved, truncate_dim=6)


@pytest.mark.parametrize("kind", ["added tokens", "a subfolder", "a Dense step", "an adapter"])
def test_a_download_has_all_that_loading_reads(saved: Path, tmp_path: Path, kind: str) -> None:
    from e5core.checkpoint.hub import needed_files

    folder = shutil.copytree(saved, tmp_path / "model")
    if kind == "added tokens":
        add_tokens(folder)
    elif kind == "a subfolder":
        into_subfolder(folder)
    elif kind == "a Dense step":
        add_dense(torch.nn.Tanh(), 8)(folder)
    else:
        write_json(
            folder / "adapter_config.json",
            {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "base_model_name_or_path": str(saved)},
        )
        name = "base_model.model.encoder.layer.0.attention.self.query.lora_{}.weight"
        pair = {name.format("A"): torch.ones(1, 24), name.format("B"): torch.ones(24, 1)}
        save_file(pair, folder / "adapter_model.safetensors")
        (folder / "model.safetensors").unlink()
        (folder / "config.json").unlink()
    published = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    for file in needed_files(published):
        (tmp_path / "hub" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / file, tmp_path / "hub" / file)
    found = SentenceTransformer(tmp_path / "hub").encode(TEXTS)
    np.testing.assert_array_equal(found, SentenceTransformer(folder).encode(TEXTS))
