"""`e5core check`: what holds is reported as holding, and every kind of fault as broken."""

import dataclasses
import hashlib
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from support.models import CHARSMAP

from e5core import E5, Encoder, EncoderConfig, load_checkpoint, mean_pool, save_checkpoint
from e5core.cli import main
from e5core.formats.files import write_json
from e5core.kernels.plain import Kernels
from e5core.kernels.sdpa import SdpaKernels
from e5core.parity.cases import (
    RUNNING,
    Case,
    at_least,
    at_most,
    error_case,
    load,
    published_case,
    table,
    worst,
)
from e5core.parity.published import (
    PUBLISHED,
    FirstNumbers,
    LastNumbers,
    Similarities,
    published_outputs,
)
from e5core.parity.samples import LANGUAGES, QUERIES, SENTENCES, spread, text_of_length
from e5core.parity.tolerances import COPY_BOUNDS


@pytest.fixture(autouse=True)
def _one_thread():
    """On a busy machine, threads that wait for each other cost a tiny model most of its time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(capsys):
    """Run the command: its exit code, the verdicts by case, and standard error."""

    def run(*arguments: object) -> tuple[int, dict[str, str], str]:
        code = main(["check", *map(str, arguments)])
        out, err = capsys.readouterr()
        lines = out.partition("\n\n")[0].splitlines()[1:]
        return code, {line.split("  ")[0]: line.split()[-1] for line in lines}, err

    return run


def broken(verdicts: dict[str, str]) -> set[str]:
    return {name for name, verdict in verdicts.items() if verdict == "FAIL"}


# --- against transformers ---------------------------------------------------------------------


def test_a_right_model_holds_in_every_case(oracle, run, tiny_folder):
    code, verdicts, err = run(tiny_folder)
    assert (code, set(verdicts.values()), err) == (0, {"ok"}, "")
    expected = {f"texts of other ids, prefix '{kind}: '" for kind in ("query", "passage")}
    assert {"plain", "sdpa"} <= set(RUNNING)
    for kernels in RUNNING:
        expected |= {
            f"{kind}, kernels {kernels}, against {reference}"
            for kind in ("query", "passage")
            for reference in ("eager", "sdpa")
        }
        expected |= {f"batches of {size}, kernels {kernels}" for size in (1, 2, 7, 64)}
        expected |= {
            f"packed against one at a time, kernels {kernels}",
            f"mean error against float64, kernels {kernels}",
        }
    assert set(verdicts) == expected


def tanh_gelu(self, x, layer):
    return torch.nn.functional.gelu(self.linear(x, layer), approximate="tanh")


def test_a_wrong_activation_is_found(oracle, run, make_tiny, monkeypatch):
    monkeypatch.setattr(Kernels, "linear_gelu", tanh_gelu)
    code, verdicts, _ = run(make_tiny(), "--sample", 4)
    assert code == 1
    # The plain kernels have it, and float64 too: only transformers can tell.
    wrong = {name for name in verdicts if "kernels plain, against" in name}
    assert wrong
    assert wrong <= broken(verdicts)
    assert "packed against one at a time, kernels plain" not in broken(verdicts)


def test_a_leak_between_texts_is_found_in_batches_alone(oracle, run, make_tiny, monkeypatch):
    def leak(self, qkv, cu_seqlens, max_seqlen, dropout):
        q, k, v = qkv.permute(1, 2, 0, 3)[:, None]
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return attended[0].transpose(0, 1)

    monkeypatch.setattr(SdpaKernels, "attention", leak)
    code, verdicts, _ = run(make_tiny(), "--sample", 4)
    assert code == 1
    assert {
        "batches of 7, kernels sdpa",
        "packed against one at a time, kernels sdpa",
        "query, kernels sdpa, against eager",
    } <= broken(verdicts)
    assert verdicts["batches of 1, kernels sdpa"] == "ok"
    assert not [name for name in broken(verdicts) if "kernels plain" in name]


def test_wrong_ids_are_counted_and_the_first_text_is_shown(oracle, make_tiny, monkeypatch, capsys):
    monkeypatch.setattr("e5core.tokenizer.UNKNOWN", 0)
    assert main(["check", str(make_tiny("xlm-roberta")), "--sample", "4"]) == 1
    row = capsys.readouterr().out.splitlines()[1]
    assert row.startswith("texts of other ids, prefix 'query: '")
    assert ", first 'query: " in row
    assert row.endswith("FAIL")


def test_pooling_by_the_first_token(oracle, run, make_tiny, monkeypatch):
    folder = make_tiny("xlm-roberta")
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True})
    assert run(folder, "--sample", 4)[0] == 0
    monkeypatch.setitem(sys.modules["e5core.pooling"].POOLINGS, "cls", mean_pool)
    assert run(folder, "--sample", 4)[0] == 1


def test_a_folder_with_tokenizer_json_alone(oracle, run, make_tiny):
    folder = make_tiny()
    fast = oracle.fast_tokenizer(folder, CHARSMAP)
    fast.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "sentencepiece.bpe.model").unlink()
    code, verdicts, _ = run(folder, "--sample", 4)
    assert (code, len(verdicts)) == (0, 2 + 10 * len(RUNNING))


def test_another_normalisation_table_is_refused(oracle, run, make_tiny):
    folder = make_tiny()
    file = folder / "sentencepiece.bpe.model"
    content = file.read_bytes()
    table = CHARSMAP.read_bytes()
    file.write_bytes(content.replace(table, table[:-1] + b"?"))
    assert file.read_bytes() != content
    code, _, err = run(folder)
    assert code == 2
    assert "another normalisation table" in err


@pytest.mark.parametrize(("factor", "ok"), [(1.0, True), (1.05, True), (1.3, False)])
def test_error_against_float64_is_compared_with_that_of_transformers(factor, ok):
    noise = np.random.default_rng(0).normal(size=(2, 40, 384)) * 1e-8
    truth = np.zeros((40, 384))
    assert error_case("sdpa", factor * noise[0], noise[1], truth).ok is ok


def test_without_transformers_one_line_says_what_to_install(run, make_tiny, monkeypatch):
    monkeypatch.delitem(sys.modules, "e5core.parity.oracle", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, verdicts, err = run(make_tiny())
    assert (code, verdicts, err.count("\n")) == (2, {}, 1)
    assert "python -m pip install 'transformers>=5'" in err


# --- against published outputs ----------------------------------------------------------------

# The same numbers once more, as a person copied them.
SPELLED = {
    "xlm-roberta-base": (
        "-0.0101 0.1218 -0.0803 0.0801 0.1327 0.0776 -0.1215 0.2383 0.3338 0.3106 0.0300 0.0252"
    ),
    "xlm-roberta-large": (
        "-0.0699 -0.0318 0.0705 -0.1241 0.0999 -0.0520 0.1004 -0.1838 -0.4704 0.1437 0.0821 0.0126"
    ),
    "multilingual-e5-base": ".79078 .87654 .85599 .86601",
    "multilingual-e5-large": "0.4544 -0.0968 0.1054 -1.3753 0.1500 .76823 .87257 .8288 .83204",
    "multilingual-e5-large-instruct": (
        ".79779 .89875 .85599 .85365 "
        "91.92852783203125 67.580322265625 70.3814468383789 92.1330795288086"
    ),
}


@pytest.mark.parametrize("name", SPELLED)
def test_published_numbers(name):
    numbers = [number for expected in published_outputs(name) for number in expected.numbers]
    assert numbers == [float(number) for number in SPELLED[name].split()]


def test_published_settings():
    outputs = {model.split("/")[1]: outputs for model, outputs in PUBLISHED.items()}
    assert set(outputs) == set(SPELLED)
    for size in ("base", "large"):
        (states,) = outputs[f"xlm-roberta-{size}"]
        ids = "0 581 10269 83 99942 136 60742 23 70 80583 18276 2"
        assert " ".join(map(str, states.ids)) == ids
        assert states.tolerance == 0.001
    assert outputs["multilingual-e5-large"][0].text == "hello world"
    assert outputs["multilingual-e5-large"][0].tolerance == 0.001
    for name, prefixes in {
        "multilingual-e5-base": ["", "query: "],
        "multilingual-e5-large": ["", "query: "],
        "multilingual-e5-large-instruct": [
            "",
            "query: ",
            "Instruct: Given a web search query, retrieve relevant passages that answer the query\n"
            "Query: ",
        ],
    }.items():
        planets = next(e for e in outputs[name] if isinstance(e, Similarities))
        assert [setting.query for setting in planets.settings] == prefixes
        assert [setting.passage for setting in planets.settings] == ["", "passage: ", ""][
            : len(prefixes)
        ]
        assert (planets.tolerance, planets.scale) == (0.01, 1)
        assert planets.queries == ("Which planet is known as the Red Planet?",)
        assert [text.split()[0] for text in planets.passages] == [
            *("Venus", "Mars,", "Jupiter,", "Saturn,")
        ]
    card = outputs["multilingual-e5-large-instruct"][1]
    assert (card.tolerance, card.scale, len(card.settings)) == (0.1, 100, 1)
    assert card.queries == ("how much protein should a female eat", "南瓜的家常做法")
    assert [hashlib.sha256(text.encode()).hexdigest()[:16] for text in card.passages] == [
        *("5a7f55afa6f34efe", "db3e5aadb85fc27b")
    ]


@pytest.mark.parametrize("outputs", PUBLISHED.values(), ids=PUBLISHED)
def test_every_expectation_has_a_source_and_as_many_numbers_as_it_says(outputs):
    for expected in outputs:
        assert expected.source
        assert expected.tolerance > 0
        if isinstance(expected, LastNumbers):
            assert len(expected.numbers) == len(expected.ids) == 12
        elif isinstance(expected, FirstNumbers):
            assert len(expected.numbers) == 5
        else:
            assert len(expected.numbers) == len(expected.queries) * len(expected.passages) == 4


def from_transformers(oracle, folder: Path, expected):
    """The expectation with the numbers that transformers computes for this model."""
    reference = oracle.load_reference(folder)
    if isinstance(expected, LastNumbers):
        expected = dataclasses.replace(expected, ids=tuple(i % 115 for i in expected.ids))
        states = oracle.reference_hidden_states(reference, [expected.ids])[0]
        return dataclasses.replace(expected, numbers=tuple(states[:, -1].tolist()))
    fast = oracle.fast_tokenizer(folder, CHARSMAP)
    if isinstance(expected, FirstNumbers):
        states = oracle.reference_hidden_states(reference, fast([expected.text])["input_ids"])[0]
        return dataclasses.replace(expected, numbers=tuple(states.mean(dim=0)[:5].tolist()))
    texts = [expected.settings[-1].query + text for text in expected.queries]
    texts += [expected.settings[-1].passage + text for text in expected.passages]
    ids = fast(texts, truncation=True, max_length=64)["input_ids"]
    vectors = oracle.reference_vectors(reference, ids)
    queries, passages = np.split(vectors, [len(expected.queries)])
    numbers = (expected.scale * queries @ passages.T).ravel()
    return dataclasses.replace(expected, numbers=tuple(numbers.tolist()))


@pytest.mark.parametrize("outputs", PUBLISHED.values(), ids=PUBLISHED)
def test_right_numbers_hold_and_a_change_of_any_one_breaks(oracle, make_tiny, outputs):
    folder = make_tiny("xlm-roberta")
    model = load("tiny", folder, device="cpu")
    for template in outputs:
        expected = from_transformers(oracle, folder, template)
        case = published_case(model, expected)
        assert case.ok
        assert case.name == template.source
        if isinstance(expected, Similarities):
            assert expected.settings[-1].name in case.measured
            # Under other prefixes a tiny model's cosines are nearly the same.
            expected = dataclasses.replace(expected, settings=expected.settings[-1:])
        for index, number in enumerate(expected.numbers):
            for change in (-1.5 * expected.tolerance, 1.5 * expected.tolerance):
                numbers = list(expected.numbers)
                numbers[index] = number + change
                changed = dataclasses.replace(expected, numbers=tuple(numbers))
                assert not published_case(model, changed).ok


def test_the_setting_that_fits_is_found_wherever_it_stands(oracle, make_tiny):
    folder = make_tiny("xlm-roberta")
    model = load("tiny", folder, device="cpu")
    template = PUBLISHED["intfloat/multilingual-e5-large-instruct"][0]
    assert isinstance(template, Similarities)
    for setting in template.settings:
        alone = dataclasses.replace(template, settings=(setting,))
        numbers = from_transformers(oracle, folder, alone).numbers
        case = published_case(model, dataclasses.replace(template, numbers=numbers))
        assert case.ok
        assert case.measured.endswith(f", {setting.name})")


def test_published_outputs_through_the_command(oracle, run, make_tiny, monkeypatch):
    folder = make_tiny("xlm-roberta")
    name = "intfloat/multilingual-e5-large"
    right = tuple(from_transformers(oracle, folder, expected) for expected in PUBLISHED[name])
    monkeypatch.setitem(PUBLISHED, name, right)
    options = ("--against", "published", "--published-as", "multilingual-e5-large")
    code, verdicts, _ = run(folder, *options)
    assert (code, list(verdicts.values())) == (0, ["ok", "ok"])
    monkeypatch.setitem(PUBLISHED, name, (right[0], dataclasses.replace(right[1], scale=1.1)))
    code, verdicts, _ = run(folder, *options)
    assert (code, list(verdicts.values())) == (1, ["ok", "FAIL"])


def test_another_model_does_not_pass_for_any_published_one(real_model):
    """e5-small is of the same family, so that its similarities come near."""
    for outputs in PUBLISHED.values():
        for expected in outputs:
            assert not published_case(real_model, expected).ok, expected.source


def test_a_model_without_published_outputs(run, make_tiny):
    code, _, err = run(make_tiny(), "--against", "published")
    assert (code, err.count("\n")) == (2, 1)
    assert all(name in err for name in (*PUBLISHED, "--published-as"))


# --- against another copy ---------------------------------------------------------------------


def test_a_copy_of_itself_holds(run, tiny_folder):
    code, verdicts, _ = run(tiny_folder, "--against", tiny_folder)
    assert code == 0
    assert list(verdicts) == [
        "largest difference",
        "worst cosine",
        "mean cosine",
        "queries with the same first passage",
        "overlap of the first 10",
    ]
    assert set(verdicts.values()) == {"ok"}


def test_another_model_breaks_every_bound(run, make_tiny):
    first, second = make_tiny(name="first"), make_tiny(seed=1, name="second")
    code, verdicts, _ = run(first, "--against", second, "--sample", 40)
    assert (code, len(broken(verdicts))) == (1, 5)


def test_a_slightly_changed_copy_breaks_float32_and_passes_a_wider_bound(run, make_tiny):
    folder, copy = make_tiny(name="first"), make_tiny(name="copy")
    encoder = Encoder(EncoderConfig.from_file(folder / "config.json"))
    load_checkpoint(encoder, folder)
    with torch.no_grad():
        encoder.layers[0].intermediate.weight.mul_(1 + 1e-4)
    save_checkpoint(encoder, copy)
    code, verdicts, _ = run(folder, "--against", copy)
    assert code == 1
    assert "largest difference" in broken(verdicts)
    assert run(folder, "--against", copy, "--bounds", "int8")[0] == 0


@pytest.mark.parametrize(
    ("options", "deciding"),
    [
        (("--dtype", "bfloat16"), "bfloat16"),
        (("--dtype", "float16", "--against-dtype", "bfloat16"), "bfloat16"),
        (("--against-dtype", "float16"), "float16"),
        (("--against-dtype", "float64"), "float32"),
        (("--dtype", "bfloat16", "--bounds", "int8"), "int8"),
    ],
)
def test_the_coarser_precision_decides_the_bounds(make_tiny, capsys, options, deciding):
    folder = str(make_tiny())
    assert main(["check", folder, "--against", folder, *options, "--sample", "12"]) in (0, 1)
    out = capsys.readouterr().out
    assert f"≥ {COPY_BOUNDS[deciding].worst_cosine:.10g} " in out
    assert ("largest difference" in out) == (deciding == "float32")


def test_bounds_never_widen_towards_finer_precision():
    rows = [dataclasses.astuple(bounds)[1:] for bounds in COPY_BOUNDS.values()]
    assert list(COPY_BOUNDS) == ["float64", "float32", "float16", "bfloat16", "int8"]
    assert all(
        a >= b for finer, coarser in pairwise(rows) for a, b in zip(finer, coarser, strict=True)
    )


def test_real_small_in_bfloat16(run, real_folder):
    """The bound is tight enough to tell bfloat16 from float32."""
    options = ("--against", real_folder, "--dtype", "bfloat16", "--sample", 40)
    code, verdicts, _ = run(real_folder, *options)
    assert (code, len(verdicts)) == (0, 4)
    assert run(real_folder, *options, "--bounds", "float32")[0] == 1


def test_unequal_hidden_sizes(run, make_tiny, tmp_path):
    wide = tmp_path / "wide"
    save_checkpoint(Encoder(EncoderConfig("bert", 120, 32, 1, 4, 40, 64, 0, 2, 1e-12)), wide)
    code, _, err = run(make_tiny(), "--against", wide)
    assert code == 2
    assert "hidden size 24" in err
    assert "32" in err


# --- the command ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sample", "0"), "--sample is 0, expected 1 or more"),
        (("--dtype", "bfloat16"), "only beside published or MODEL"),
        (("--bounds", "int8"), "only beside MODEL"),
        (("--published-as", "multilingual-e5-base"), "only beside published"),
        (("--against", "published", "--sample", "3"), "only beside transformers or MODEL"),
        (("--against", "no/such/folder"), "'no/such/folder' is neither a folder nor a hub id"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, make_tiny, options, said):
    code, verdicts, err = run(make_tiny(), *options)
    assert (code, verdicts, err.count("\n")) == (2, {}, 1)
    assert err.startswith("e5core check: ")
    assert said in err


def test_a_missing_model(run):
    code, _, err = run("./nowhere", "--against", "published", "--published-as", "xlm-roberta-base")
    assert (code, err.count("\n")) == (2, 1)
    assert "'./nowhere' is neither a folder nor a hub id" in err


def test_nan_breaks_every_bound():
    assert not at_most("a", 1.0, float("nan")).ok
    assert not at_least("a", 0.0, float("nan")).ok
    assert at_most("a", 1.0, 1.0).ok
    assert at_least("a", 1.0, 1.0).ok


def test_worst_refuses_unequal_shapes():
    assert worst([[1.0, 2.0]], [[1.5, 4.0]]) == 2.0
    with pytest.raises(ValueError, match=r"\(2,\) with one of \(1,\)"):
        worst([1.0, 2.0], [1.0])


def test_table():
    cases = [Case("long name", "≤ 1", "0.5", True), Case("b", "≥ 0.25", "0", False)]
    assert table(cases).splitlines() == [
        "case       bound   measured  verdict",
        "long name  ≤ 1     0.5       ok",
        "b          ≥ 0.25  0         FAIL",
    ]


def test_a_small_sample_has_all_languages():
    sample = spread(SENTENCES + QUERIES, 32)
    assert len(set(sample)) == 32
    languages = {LANGUAGES[SENTENCES.index(text)] for text in sample if text in SENTENCES}
    assert languages == set(LANGUAGES)
    assert set(sample) & set(QUERIES)
    assert sorted(spread(SENTENCES, 1000)) == sorted(SENTENCES)


@pytest.mark.parametrize("prefix", ["", "query: ", "passage: "])
@pytest.mark.parametrize("length", [5, 62, 63, 64, 65])
def test_text_of_length_with_a_tiny_vocabulary(make_tiny, prefix, length):
    tokenizer = E5.from_pretrained(make_tiny()).tokenizer
    assert tokenizer.count(prefix + text_of_length(tokenizer, length, prefix)) == length
