"""E5 from the outside: what a user calls, and what it says when something is wrong."""

import json
import threading

import numpy as np
import pytest
import torch
from support.models import TINY, tiny_encoder

from e5core import E5, cls_pool, l2_normalize, mean_pool, pack
from e5core.parity.samples import SENTENCES, text_of_length
from e5core.parity.tolerances import BATCH_INVARIANCE_FLOAT32, UNIT_VECTOR_FLOAT32
from e5core.texts import slices as slicing

TEXTS = ["the cat", "日本 xyz", "a", "", "hello there, passage", "query: a"]


@pytest.fixture
def model(tiny_folder):
    return E5.from_pretrained(tiny_folder)


def by_hand(model: E5, ids: list[int]) -> np.ndarray:
    """The unit vector of one sequence, without the pipeline."""
    batch = pack([ids], model.config)
    with torch.inference_mode():
        return l2_normalize(mean_pool(model.encoder(batch), batch.cu_seqlens))[0].numpy()


def close(a: np.ndarray, b: np.ndarray, bound: float = BATCH_INVARIANCE_FLOAT32) -> bool:
    return a.shape == b.shape and bool(np.abs(a - b).max() <= bound)


# What comes out


@pytest.mark.parametrize("input_type", ["query", "passage", None])
def test_vectors_are_those_of_the_prefixed_texts(model, input_type):
    prefix = "" if input_type is None else f"{input_type}: "
    vectors = model.encode(TEXTS, input_type=input_type)
    assert (vectors.shape, vectors.dtype) == ((6, 24), np.float32)
    for vector, text in zip(vectors, TEXTS, strict=True):
        assert close(vector, by_hand(model, model.tokenizer.encode(prefix + text)))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_shortcuts(model):
    assert close(model.encode_query(TEXTS), model.encode(TEXTS, input_type="query"), 0)
    assert close(model.encode_passage(TEXTS), model.encode(TEXTS, input_type="passage"), 0)
    assert not close(model.encode_query(TEXTS), model.encode_passage(TEXTS), 0.01)


def test_shapes(model):
    assert model.encode_query("one").shape == (24,)
    assert model.encode_query(["one"]).shape == (1, 24)
    assert model.encode_query([]).shape == (0, 24)
    assert model.encode_query(iter(())).shape == (0, 24)
    assert model.encode_query(text for text in TEXTS).shape == (6, 24)
    result = model.embed("one", input_type="query")
    assert (result.vectors.shape, result.token_counts.shape) == ((24,), (1,))
    empty = model.embed([], input_type="query")
    assert (empty.token_counts.shape, empty.truncated.shape) == ((0,), (0,))
    assert empty.vectors.dtype == np.float32


@pytest.mark.parametrize("kind", [list, tuple, iter, np.array])
def test_every_kind_of_iterable(model, kind):
    assert close(model.encode_query(kind(TEXTS)), model.encode_query(TEXTS), 0)


def test_the_order_is_the_callers_across_chunks_and_batches(model, monkeypatch):
    monkeypatch.setattr(slicing, "SLICE_TEXTS", 7)
    texts = [("word " * (i * 7 % 11) + str(i)) for i in range(40)]
    vectors = model.embed(texts, input_type="passage", max_tokens_per_batch=30)
    for i, text in enumerate(texts):
        ids = model.tokenizer.encode("passage: " + text)
        assert close(vectors.vectors[i], by_hand(model, ids[:63] + [2] * (len(ids) > 63) or ids))
        assert vectors.token_counts[i] == len(ids)


def test_a_generator_is_read_as_it_is_needed(model, monkeypatch):
    monkeypatch.setattr(slicing, "SLICE_TEXTS", 4)
    taken = []

    def stream():
        for i in range(12):
            taken.append((i, forwards[0]))
            yield f"text {i}"

    forwards = [0]
    model.encoder.register_forward_hook(lambda *_: forwards.__setitem__(0, forwards[0] + 1))
    assert model.encode_query(stream()).shape == (12, 24)
    # By the time text 8 was taken, the first chunk had been through the encoder.
    assert dict(taken)[3] == 0
    assert dict(taken)[8] > 0


def test_normalize_off_gives_the_plain_mean(model):
    raw = model.encode_query(TEXTS, normalize=False)
    batch = pack([model.tokenizer.encode("query: " + TEXTS[0])], model.config)
    with torch.inference_mode():
        expected = mean_pool(model.encoder(batch), batch.cu_seqlens)[0].numpy()
    assert np.abs(raw[0] - expected).max() < 1e-5
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert (np.abs(lengths - 1) > 0.1).any()
    assert close(raw / lengths, model.encode_query(TEXTS))


@pytest.mark.parametrize("budget", [1, 12, 40, 1000])
def test_max_tokens_per_batch_is_honoured(model, budget):
    sizes = []
    model.encoder.register_forward_hook(
        lambda module, arguments, output: sizes.append(
            (len(arguments[0].input_ids), len(arguments[0].cu_seqlens) - 1)
        )
    )
    vectors = model.encode_query(TEXTS * 3, max_tokens_per_batch=budget)
    assert all(tokens <= budget or texts == 1 for tokens, texts in sizes)
    assert sum(texts for _, texts in sizes) == 18
    assert close(vectors, model.encode_query(TEXTS * 3))


def test_threads_share_a_model(real_model):
    texts = SENTENCES[:48]
    expected = real_model.encode_query(texts)
    results: dict[int, np.ndarray] = {}

    def work(thread: int) -> None:
        order = np.random.default_rng(thread).permutation(len(texts))
        vectors = np.empty_like(expected)
        for part in np.array_split(order, 6):
            vectors[part] = real_model.encode_query([texts[i] for i in part])
        results[thread] = vectors

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(close(results[i], expected) for i in range(4))


# Texts over the limit


def test_truncate_end_keeps_the_first_tokens_and_says_so(real_model):
    long = text_of_length(real_model.tokenizer, 700, prefix="query: ", seed=1)
    fits = text_of_length(real_model.tokenizer, 512, prefix="query: ", seed=2)
    over = text_of_length(real_model.tokenizer, 513, prefix="query: ", seed=3)
    result = real_model.embed([long, "short", fits, over], input_type="query")
    assert result.token_counts.tolist() == [700, 6, 512, 513]
    assert result.truncated.tolist() == [True, False, False, True]
    ids = real_model.tokenizer.encode("query: " + long)
    assert close(result.vectors[0], by_hand(real_model, [*ids[:511], 2]))


def test_truncate_none_names_every_long_text_before_any_work(model):
    model.encoder.register_forward_hook(lambda *_: pytest.fail("work was done"))
    texts = ["fits", "x " * 80, "fits", "y" * 90]
    limit = model.config.max_length
    message = rf"text 1 has \d+ tokens, text 3 has \d+ tokens; the model takes {limit}.*\"window\""
    for given in (texts, iter(texts)):
        with pytest.raises(ValueError, match=message):
            model.embed(given, input_type="query", truncate="none")


def test_truncate_none_leaves_no_long_text_out(model):
    with pytest.raises(ValueError, match="the model takes") as caught:
        model.embed(["x " * 80, "fits"] * 25, input_type="query", truncate="none")
    assert all(f"text {i} has" in str(caught.value) for i in range(0, 50, 2))


def test_truncate_none_changes_nothing_for_texts_that_fit(model):
    result = model.embed(iter(TEXTS), input_type="query", truncate="none")
    assert close(result.vectors, model.encode_query(TEXTS), 0)
    assert not result.truncated.any()


def test_windows_are_averaged_by_their_tokens(model):
    texts = ["short", "word and word " * 30, "x " * 70]
    result = model.embed(texts, input_type="passage", truncate="window")
    lead = model.tokenizer.encode_pieces("passage: ")
    limit = model.config.max_length
    for text, vector, count in zip(texts, result.vectors, result.token_counts, strict=True):
        pieces = model.tokenizer.encode_pieces("passage: " + text)
        assert pieces[: len(lead)] == lead
        assert count == len(pieces) + 2
        body, room = pieces[len(lead) :], limit - 2 - len(lead)
        sums, tokens = np.zeros(24), 0
        for start in range(0, len(body), room):
            ids = [0, *lead, *body[start : start + room], 2]
            batch = pack([ids], model.config)
            with torch.inference_mode():
                states = model.encoder(batch).double().numpy()
            sums += states.sum(axis=0)
            tokens += len(ids)
        mean = sums / tokens
        assert close(vector, (mean / np.linalg.norm(mean)).astype(np.float32))
    assert not result.truncated.any()


def test_windows_differ_from_the_cut_text_only_where_it_is_long(model):
    texts = ["short", " ".join(f"word {i}" for i in range(40))]
    cut = model.encode_passage(texts)
    windowed = model.encode_passage(texts, truncate="window")
    assert close(cut[0], windowed[0])
    assert np.abs(cut[1] - windowed[1]).max() > 1e-3


def test_a_million_characters(real_model):
    text = "Ein sehr langer Satz ohne Ende, " * 31_250
    result = real_model.embed(text, input_type="passage")
    assert result.truncated.tolist() == [True]
    assert close(result.vectors, real_model.encode_passage(text[:4000]))


def test_max_length_cuts_earlier(tiny_folder):
    model = E5.from_pretrained(tiny_folder, max_length=8)
    result = model.embed("a b c d e f g h", input_type="query")
    ids = model.tokenizer.encode("query: a b c d e f g h")
    assert result.truncated.tolist() == [True]
    assert close(result.vectors, by_hand(model, [*ids[:7], 2]))


# What a caller gets wrong


def test_input_type_must_be_chosen(model):
    with pytest.raises(TypeError, match=r"input_type is missing.*'query'.*'passage'.*None"):
        model.embed(TEXTS)
    with pytest.raises(TypeError, match="input_type is missing"):
        model.encode(TEXTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_type": "document"}, "input_type is 'document'"),
        ({"truncate": "middle"}, "truncate is 'middle', expected 'end', 'none' or 'window'"),
        ({"max_tokens_per_batch": 0}, "max_tokens_per_batch is 0"),
        ({"task": "find"}, "takes no instruction"),
    ],
)
def test_options_that_do_not_exist(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.embed(TEXTS, **{"input_type": "query"} | options)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (None, "texts is a NoneType, expected a str or several"),
        (7, "texts is a int"),
        (b"bytes", "texts is a bytes"),
        ({"a": 1}, "texts is a dict"),
        (["a", None], "text 1 is None of type NoneType, expected str"),
        (["a", "b", b"c"], "text 2 is b'c' of type bytes"),
        ([["a"]], "text 0 is .* of type list"),
        ([float("nan")], "text 0 is nan of type float"),
    ],
)
@pytest.mark.parametrize("truncate", ["end", "none", "window"])
def test_what_is_no_text(model, texts, message, truncate):
    with pytest.raises(TypeError, match=message):
        model.embed(texts, input_type="query", truncate=truncate)


@pytest.mark.parametrize("truncate", ["end", "none"])
def test_a_lone_surrogate_is_named_with_its_text(model, truncate):
    with pytest.raises(ValueError, match=r"text 1: the text holds the lone surrogate U\+DC00"):
        model.embed(["a", "b\udc00"], input_type="query", truncate=truncate)


@pytest.mark.parametrize("text", ["", " ", "\x00", "\n\t", "<s> <mask> </s>", "\ufeff"])
def test_odd_texts_have_the_vectors_of_their_ids(real_model, text):
    ids = real_model.tokenizer.encode("query: " + text)
    assert close(real_model.encode_query(text), by_hand(real_model, ids))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_vectors_that_are_none_are_never_returned(model, value):
    with torch.no_grad():
        # Only the row of "x": one text is hit, its neighbours are not.
        model.encoder.embeddings.word.weight[model.tokenizer.encode("ax")[-2]] = value
    assert np.isfinite(model.encode_query(["a", "b"])).all()
    with pytest.raises(ValueError, match="vectors of 1 texts, the first of them text 2, are zero"):
        model.encode_query(["a", "b", "ax"])


def test_zero_vectors_are_never_returned(model):
    with torch.no_grad():
        model.encoder.layers[-1].output_layer_norm.weight.zero_()
        model.encoder.layers[-1].output_layer_norm.bias.zero_()
    with pytest.raises(ValueError, match="the first of them text 0, are zero or not finite"):
        model.encode_query(["a"])


# What a folder says


def test_prompts_can_be_given(tiny_folder):
    plain = E5.from_pretrained(tiny_folder, prompts="none")
    assert close(plain.encode_query("x"), plain.encode("x", input_type=None), 0)
    own = E5.from_pretrained(tiny_folder, prompts={"query": "a: ", "passage": "b: "})
    assert close(own.encode_passage("x"), own.encode("b: x", input_type=None), 0)


def test_a_folder_without_prompts_asks_for_them(tiny_folder):
    (tiny_folder / "config_sentence_transformers.json").unlink()
    model = E5.from_pretrained(tiny_folder)
    with pytest.raises(ValueError, match="does not say which prefix a query takes"):
        model.encode_query("x")
    assert model.encode("x", input_type=None).shape == (24,)


def test_the_instruct_model_takes_a_task(tiny_folder):
    model = E5.from_pretrained(tiny_folder, prompts="e5-instruct")
    expected = model.encode("Instruct: find it\nQuery: x", input_type=None)
    assert close(model.encode_query("x", task="find it"), expected, 0)
    assert close(model.encode_passage("x"), model.encode("x", input_type=None), 0)
    with pytest.raises(ValueError, match="pass task="):
        model.encode_query("x")
    with pytest.raises(ValueError, match="takes no instruction"):
        model.embed("x", input_type="passage", task="find it")


def test_a_folder_of_the_bge_m3_kind(make_tiny):
    """First-token pooling, no prompts, a limit of its own, only a tokenizer.json."""
    folder = make_tiny("xlm-roberta")
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (folder / "config_sentence_transformers.json").write_text('{"similarity_fn_name": "cosine"}')
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 10}')
    model = E5.from_pretrained(folder)
    assert (model.pooling, model.max_length) == ("cls", 10)
    assert model.prompts == {"query": "", "passage": ""}
    ids = model.tokenizer.encode("a b c d e f g h i j k l m")
    batch = pack([[*ids[:9], 2]], model.config)
    with torch.inference_mode():
        expected = l2_normalize(cls_pool(model.encoder(batch), batch.cu_seqlens))[0].numpy()
    assert close(model.encode_query("a b c d e f g h i j k l m"), expected)


@pytest.mark.parametrize(("says", "limit"), [(16, 16), (66, 64), (10**6, 64), (None, 64)])
def test_the_limit_of_a_folder(make_tiny, says, limit):
    folder = make_tiny("xlm-roberta")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": says}))
    assert E5.from_pretrained(folder).max_length == limit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int4"}, "dtype is 'int4', expected auto or one of float64, float32, bfloat16"),
        ({"dtype": torch.int32}, "dtype is torch.int32"),
        ({"kernels": "fast"}, "kernels is 'fast'"),
        ({"device": "nonsense"}, "device 'nonsense' cannot be used: Expected one of"),
        ({"device": "meta"}, "device 'meta' cannot be used"),
        ({"prompts": "e9"}, "prompts is 'e9'"),
        ({"max_length": 65}, "max_length is 65, this model takes 3 to 64"),
        ({"max_length": 2}, "max_length is 2"),
    ],
)
def test_options_of_loading(tiny_folder, options, message):
    with pytest.raises(ValueError, match=message):
        E5.from_pretrained(tiny_folder, **options)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16", torch.bfloat16])
def test_dtypes(tiny_folder, dtype):
    model = E5.from_pretrained(tiny_folder, dtype=dtype)
    exact = E5.from_pretrained(tiny_folder, dtype="float64", kernels="plain")
    assert str(dtype).removeprefix("torch.") in str(model.encoder.dtype)
    vectors = model.encode_query(TEXTS)
    assert vectors.dtype == np.float32
    bound = 0.05 if "16" in str(dtype) else UNIT_VECTOR_FLOAT32
    assert np.abs(vectors - exact.encode_query(TEXTS)).max() <= bound


def test_a_tokenizer_of_another_model(real_folder, tiny_folder):
    (tiny_folder / "sentencepiece.bpe.model").unlink()
    (tiny_folder / "sentencepiece.bpe.model").symlink_to(real_folder / "sentencepiece.bpe.model")
    with pytest.raises(ValueError, match="tokenizer has 250002 ids, the token table 120"):
        E5.from_pretrained(tiny_folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sentencepiece.bpe.model", r"has no sentencepiece\.bpe\.model and no tokenizer\.json"),
        ("config.json", r"has no config\.json"),
        ("model.safetensors", r"has no model\.safetensors"),
    ],
)
def test_a_missing_file(tiny_folder, name, message):
    (tiny_folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        E5.from_pretrained(tiny_folder)


def test_a_model_from_parts(model):
    parts = E5(model.encoder, model.tokenizer, pooling="cls", prompts={"query": "", "passage": ""})
    assert not close(parts.encode_query("x"), model.encode("x", input_type=None), 0.01)
    assert parts.config is model.encoder.config
    with pytest.raises(ValueError, match=r"pooling is 'max', expected one of \['cls', 'mean'\]"):
        E5(model.encoder, model.tokenizer, pooling="max")


def test_positions_decide(dialect):
    """The two dialects differ in the first position; a shift by one changes every vector."""
    encoder = tiny_encoder(dialect)
    batch = pack([[0, 7, 8, 2]], TINY[dialect])
    shifted = type(batch)(
        batch.input_ids, batch.position_ids + 1, batch.cu_seqlens, batch.max_seqlen
    )
    assert not torch.allclose(encoder(batch), encoder(shifted), atol=0.05)
