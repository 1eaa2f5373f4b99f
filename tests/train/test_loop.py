"""Whole runs on tiny models: they learn, go on after a stop, and leave a folder that loads."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.models import (
    tiny_encoder,
    tiny_vocabulary,
    write_tiny_model,
    write_tiny_reranker,
)
from support.training import make_rows, read_rows, tiny_task, write_rows

from e5core import E5, Reranker, cli, save_checkpoint
from e5core.formats.files import write_json
from e5core.formats.sentencepiece import CHARSMAP, unigram_model
from e5core.train import train
from e5core.train.state import RunFolder

FEW = {"batch_size": 4, "save_every": 2, "learning_rate": 3e-3, "show_progress": False}
EASY = {**FEW, "dropout": 0.0, "epochs": 12}


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def log_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("table", ["frozen", "rows", "dense"])
def test_it_learns_and_the_result_is_a_whole_model(folder, pairs, tmp_path, table):
    summary = train(
        folder, pairs, tmp_path / "out", evaluate=pairs, token_table=table, temperature=0.05, **EASY
    )
    assert summary.steps == 36
    assert summary.after["mrr"] > summary.before["mrr"]
    assert not (tmp_path / "out.training").exists()
    losses = [line["loss"] for line in log_of(tmp_path / "out") if "loss" in line]
    assert len(losses) == 36
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])

    before, after = E5.from_pretrained(folder), E5.from_pretrained(tmp_path / "out")
    assert after.prompts == before.prompts
    assert after.max_length == before.max_length
    texts = ["the er", "zq vw k"]
    assert np.abs(after.encode_query(texts) - before.encode_query(texts)).max() > 1e-3
    old, new = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "out"))
    changed = old["embeddings.word_embeddings.weight"] != new["embeddings.word_embeddings.weight"]
    rows = changed.any(1).sum().item()
    seen = len({i for text in _texts(pairs) for i in before.tokenizer.encode(text)})
    assert rows == 0 if table == "frozen" else 10 < rows <= seen + 20
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| mrr | {summary.before['mrr']:.4f} | {summary.after['mrr']:.4f} |" in card
    for setting in ("learning_rate | 0.003", "keep | 0.5", f"token_table | {table}"):
        assert f"| {setting} |" in card


def _texts(file: Path) -> list[str]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [text for row in rows for text in (row["query"], *row["pos"], *row["neg"])]


def test_transformers_and_sentence_transformers_load_the_result(folder, pairs, tmp_path):
    transformers = pytest.importorskip("transformers")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    train(folder, pairs, tmp_path / "out", steps=2, **FEW)
    texts = ["the er", "zq vw k"]
    expected = E5.from_pretrained(tmp_path / "out").encode_query(texts)
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "out"))
    assert np.abs(theirs.encode_query(texts) - expected).max() < 1e-5
    model = transformers.AutoModel.from_pretrained(tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(
        model.embeddings.word_embeddings.weight, state["embeddings.word_embeddings.weight"]
    )


def stop_at(monkeypatch, step: int) -> None:
    """Let the run end, as if it was killed, where it is about to save this step."""
    save = RunFolder.save

    def saving(self, tensors, progress):
        if progress.step >= step:
            raise KeyboardInterrupt
        save(self, tensors, progress)

    monkeypatch.setattr(RunFolder, "save", saving)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"token_table": "rows", "teacher_weight": 1.0, "contrastive_weight": 0.2},
        {"token_table": "dense", "symmetric": True},
        {"lora": 2, "precision": "bfloat16"},
        {"lora": 2, "precision": "float32", "chunk_tokens": 64},
        {"lora": 2, "precision": "bfloat16", "chunk_tokens": 64},
        {"reranker": True, "r_drop": 0.5},
    ],
    ids=[
        "frozen",
        "rows, distilled",
        "dense, symmetric",
        "lora, bfloat16",
        "lora, chunks",
        "lora, bfloat16, chunks",
        "reranker",
    ],
)
def test_a_run_that_was_stopped_ends_with_the_same_bytes(
    folder, pairs, tmp_path, monkeypatch, settings
):
    held = write_rows(tmp_path / "held.jsonl", make_rows(5, seed=7))
    options = {**FEW, **settings, "evaluate": held, "evaluate_every": 3, "steps": 7}
    whole = train(folder, pairs, tmp_path / "whole", **options)
    for stop in (2, 6):
        with monkeypatch.context() as patch:
            stop_at(patch, stop)
            with pytest.raises(KeyboardInterrupt):
                train(folder, pairs, tmp_path / "out", **options)
        assert (tmp_path / "out.training").is_dir()
    again = train(folder, pairs, tmp_path / "out", **options)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    assert (again.after, again.best_step) == (whole.after, whole.best_step)

    def told(folder):
        left_out = ("tokens_per_second",)
        return [{k: v for k, v in line.items() if k not in left_out} for line in log_of(folder)]

    assert told(tmp_path / "out") == told(tmp_path / "whole")
    # The finished command has nothing more to do.
    changed = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    assert train(folder, pairs, tmp_path / "out", **options).after == whole.after
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == changed


# The command line, which kills itself in the middle of writing its third state.
KILLED = """
import os, signal, sys
import e5core.train.state as state
from e5core import cli

save, calls = state.save_file, []

def killing(tensors, path, metadata):
    calls.append(path)
    save(tensors, path, metadata=metadata)
    if len(calls) == 3:
        os.truncate(path, 1000)
        os.kill(os.getpid(), signal.SIGKILL)

state.save_file = killing
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_command_that_is_killed_goes_on(folder, pairs, tmp_path):
    def run(output, *start):
        command = [
            sys.executable, *start, "train", "--model", str(folder), "--data", str(pairs),
            "--output", str(tmp_path / output), "--steps", "8", "--batch-size", "4",
            "--save-every", "2",
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    killed = run("out", "-c", KILLED)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out").exists()
    said = {}
    for output in ("out", "whole"):
        done = run(output, "-m", "e5core")
        assert done.returncode == 0, done.stderr
        said[output] = done.stderr
    assert "going on behind step 4 of 8" in said["out"]
    assert "going on" not in said["whole"]
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_an_interrupt_says_where_the_state_is(folder, pairs, tmp_path, monkeypatch, capsys):
    stop_at(monkeypatch, 4)
    output = tmp_path / "out"
    arguments = ["train", "--model", str(folder), "--data", str(pairs), "--output", str(output)]
    assert cli.main([*arguments, "--batch-size", "4", "--save-every", "2"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"interrupted; what was reached is in {output}.training, the same command "
                         "goes on from there")  # fmt: skip


def test_other_runs_do_not_take_up_a_state(folder, pairs, tmp_path, monkeypatch):
    options = {**FEW, "steps": 6}
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            train(folder, pairs, tmp_path / "out", **options)
    other = write_tiny_model(tmp_path / "other", "bert", seed=1)
    for changed, reason in (
        ({"model": other}, r"the model's model.safetensors was"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"temperature": 0.1}, "temperature was 0.01 and is 0.1"),
    ):
        model = changed.pop("model", folder)
        with pytest.raises(ValueError, match=rf"holds the state of another run: .*{reason}"):
            train(model, pairs, tmp_path / "out", **{**options, **changed})
    pairs.write_text(pairs.read_text() + pairs.read_text())
    with pytest.raises(ValueError, match="another run: data was"):
        train(folder, pairs, tmp_path / "out", **options)
    train(folder, pairs, tmp_path / "out", restart=True, **options)
    train(folder, pairs, tmp_path / "fresh", **options)
    assert weights(tmp_path / "out") == weights(tmp_path / "fresh")


def change_weights(model: Path) -> None:
    save_checkpoint(tiny_encoder("bert", seed=1), model)


def change_tokenizer(model: Path) -> None:
    pieces = tiny_vocabulary()
    file = model / "sentencepiece.bpe.model"
    file.write_bytes(unigram_model([*pieces[:4], *pieces[:3:-1]], CHARSMAP.read_bytes()))


def change_pooling(model: Path) -> None:
    write_json(model / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True})


@pytest.mark.parametrize(
    ("settings", "change", "reason"),
    [
        ({}, {"prompts": "none"}, "prompts was"),
        ({}, {"max_length": 9}, "max_length was 64 and is 9"),
        ({}, {"kernels": "plain"}, "kernels was"),
        ({}, {"device": "cpu"}, "device was null"),
        ({}, {"held": True}, "data was .* evaluate was"),
        ({"lora": 2}, change_weights, r"the model's model\.safetensors was"),
        ({"reranker": True}, change_weights, r"the model's model\.safetensors was"),
        ({}, change_tokenizer, r"the model's sentencepiece\.bpe\.model was"),
        ({}, change_pooling, r"the model's 1_Pooling/config\.json was"),
        ({"guide": True}, change_weights, r"the guide's model\.safetensors was"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_decides_the_bytes_decides_the_run(
    folder, pairs, tmp_path, monkeypatch, settings, change, reason
):
    """A finished run is not taken for another one, nor is a stopped one."""
    model, options = folder, {**FEW, "steps": 2, **settings}
    if "guide" in settings:
        model, options["guide"] = write_tiny_model(tmp_path / "start", "bert"), str(folder)
    more = write_rows(tmp_path / "more.jsonl", make_rows(5, scores=True, seed=1))
    data = [pairs, more]
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        options["save_every"] = 1
        with pytest.raises(KeyboardInterrupt):
            train(model, data, tmp_path / "stopped", **options)
    train(model, data, tmp_path / "finished", **options)
    if callable(change):
        change(folder)
    elif "held" in change:
        data, options["evaluate"] = [pairs], more
    else:
        options |= change
    with pytest.raises(FileExistsError, match="was not made by this command"):
        train(model, data, tmp_path / "finished", **options)
    with pytest.raises(ValueError, match=f"the state of another run: .*{reason}"):
        train(model, data, tmp_path / "stopped", **options)


def test_an_output_that_is_there_is_kept(folder, pairs, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="is there already"):
        train(folder, pairs, tmp_path / "out", steps=1, **FEW)
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist"):
        train(folder, pairs, tmp_path / "no" / "out", steps=1, **FEW)


def test_force_replaces_models_alone(folder, pairs, tmp_path):
    """No file or folder of another kind, and nothing that the run itself reads."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    for name in ("file", "notes"):
        with pytest.raises(FileExistsError, match="is not a model's folder"):
            train(folder, pairs, tmp_path / name, steps=1, force=True, **FEW)
    inside = folder / "rows.jsonl"
    inside.write_bytes(pairs.read_bytes())
    for data in (pairs, inside):
        with pytest.raises(ValueError, match="which the result replaces; name another output"):
            train(folder, data, folder, steps=1, force=True, **FEW)
    with pytest.raises(ValueError, match="which the result replaces"):
        train(folder, pairs, tmp_path, steps=1, force=True, **FEW)
    assert (tmp_path / "file").read_text() == (tmp_path / "notes" / "diary.txt").read_text()
    assert (folder / "model.safetensors").is_file()
    (tmp_path / "out").mkdir()
    for steps in (1, 2):  # an empty folder, then a model's
        train(folder, pairs, tmp_path / "out", steps=steps, force=True, **FEW)
    assert len((tmp_path / "out" / "training.jsonl").read_text().splitlines()) >= 2


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_what_was_saved(
    folder, pairs, tmp_path, monkeypatch
):
    from e5core.train.embedding import EmbeddingTask

    terms = EmbeddingTask.terms

    def spoilt(self, batch, data, seed, ranks):
        factor = torch.nan if seed[1] == 3 else 1.0
        return {k: v * factor for k, v in terms(self, batch, data, seed, ranks).items()}

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingTask, "terms", spoilt)
        with pytest.raises(ValueError, match=r"step 4: the loss is nan .* lower --learning-rate"):
            train(folder, pairs, tmp_path / "out", steps=6, **FEW)
    saved = load_file(tmp_path / "out.training" / "state.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())
    train(folder, pairs, tmp_path / "out", steps=6, **FEW)
    train(folder, pairs, tmp_path / "whole", steps=6, **FEW)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_a_full_disk_keeps_the_last_state(folder, pairs, tmp_path, monkeypatch):
    import e5core.train.state as state

    save = state.save_file
    calls = []

    def full(tensors, path, metadata):
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(tensors, path, metadata=metadata)

    with monkeypatch.context() as patch:
        patch.setattr(state, "save_file", full)
        with pytest.raises(OSError, match=r"No space left on device: .*state.safetensors"):
            train(folder, pairs, tmp_path / "out", steps=6, **FEW)
    train(folder, pairs, tmp_path / "out", steps=6, **FEW)
    train(folder, pairs, tmp_path / "whole", steps=6, **FEW)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_overflows_in_float16_skip_the_step(folder, pairs, tmp_path, monkeypatch):
    """At a first factor that is too high gradients overflow; it is halved until they do not."""
    save, scales, saved = RunFolder.save, [], []

    def saving(self, tensors, progress):
        scales.append(progress.loss_scale)
        saved.append({name: tensor.clone() for name, tensor in tensors.items()})
        save(self, tensors, progress)

    monkeypatch.setattr(RunFolder, "save", saving)
    monkeypatch.setattr("e5core.train.setup.FIRST_SCALE", 2.0**24)
    options = {**FEW, "save_every": 1}
    train(folder, pairs, tmp_path / "out", steps=20, precision="float16", **options)
    norms = [line["gradient_norm"] for line in log_of(tmp_path / "out")]
    skipped = [not np.isfinite(norm) for norm in norms]
    assert skipped[:2] == [True, True]  # later, a step may overflow where the last one did not
    assert not all(skipped)
    assert scales == [2.0 ** (24 - sum(skipped[:step])) for step in range(1, 21)]
    name = "weights.layers.0.output.weight"
    for step in range(1, 20):
        assert torch.equal(saved[step][name], saved[step - 1][name]) == skipped[step]
    new = load_file(tmp_path / "out" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in new.values())
    old = load_file(folder / "model.safetensors")
    assert not torch.equal(*(m["encoder.layer.0.output.dense.weight"] for m in (old, new)))


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"temperature": 0.05}, False),
        ({"symmetric": True}, False),
        ({"negatives": 0}, False),
        ({"teacher_weight": 1.0}, False),
        ({"teacher_weight": 1.0, "contrastive_weight": 0.3}, False),
        ({"teacher_weight": 1.0, "teacher_temperature": 2.0}, False),
        ({"matryoshka": (8, 16)}, False),
        ({"weight_decay": 0.5}, False),
        ({"clip": 0.01}, False),
        ({"dropout": 0.0}, False),
        ({"lora": 2}, False),
        ({"seed": 1}, False),
        ({"batch_size": 9}, False),
        ({"warmup": 1}, False),
        ({"prompts": "none"}, False),
        ({"max_length": 9}, False),
        ({"keep": 0.0}, False),
        ({"keep": 0.7}, False),
        ({"save_every": 1}, True),
    ],
    ids=str,
)
def test_each_setting_changes_the_result(folder, pairs, tmp_path, settings, same):
    options = {**FEW, "steps": 2}
    train(folder, pairs, tmp_path / "base", **options)
    train(folder, pairs, tmp_path / "out", **{**options, **settings})
    one, other = (load_file(tmp_path / f / "model.safetensors") for f in ("base", "out"))
    name = "encoder.layer.0.output.dense.weight"
    assert torch.equal(one[name], other[name]) == same


def test_pooling_counts(tmp_path, pairs):
    found = []
    for pooling in ("mean", "cls"):
        folder = write_tiny_model(tmp_path / pooling, "bert")
        (folder / "1_Pooling" / "config.json").write_text(
            json.dumps({f"pooling_mode_{'cls_token' if pooling == 'cls' else 'mean_tokens'}": True})
        )
        (folder / "modules.json").write_text(
            json.dumps(
                [
                    {
                        "idx": 0,
                        "name": "0",
                        "path": "",
                        "type": "sentence_transformers.models.Transformer",
                    },
                    {
                        "idx": 1,
                        "name": "1",
                        "path": "1_Pooling",
                        "type": "sentence_transformers.models.Pooling",
                    },
                ]
            )
        )
        train(folder, pairs, tmp_path / f"{pooling}-out", steps=2, **FEW)
        found.append(weights(tmp_path / f"{pooling}-out"))
        assert E5.from_pretrained(tmp_path / f"{pooling}-out").pooling == pooling
    assert found[0] != found[1]


@pytest.mark.parametrize("start", ["encoder", "cross-encoder"])
def test_a_reranker_learns(tmp_path, pairs, start, dialect):
    if start == "encoder":
        folder = write_tiny_model(tmp_path / "start", dialect)
    else:
        folder = write_tiny_reranker(tmp_path / "start", dialect)
    summary = train(folder, pairs, tmp_path / "out", reranker=True, evaluate=pairs, **EASY)
    assert summary.after["mrr"] > summary.before["mrr"]
    scores = Reranker.from_pretrained(tmp_path / "out").score("the er", ["the er k", "zq"])
    assert np.isfinite(scores).all()
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.num_labels == 1


def test_a_reranker_leaves_out_rows_without_negatives(folder, tmp_path, capsys):
    rows = [*make_rows(5), *({"query": r["query"], "pos": r["pos"]} for r in make_rows(3, seed=1))]
    options = {**FEW, "reranker": True, "steps": 2}
    train(folder, write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out", **options)
    assert "5 examples of 1 files" in (said := capsys.readouterr().err)
    assert "3 more have no negatives and are left out" in said
    with pytest.raises(ValueError, match="none of 3 examples has negatives"):
        train(folder, write_rows(tmp_path / "rows.jsonl", rows[5:]), tmp_path / "no", **options)


def test_answers_of_other_rows_count_as_found(folder, tmp_path):
    """Held-out rows of one positive each have the figures of a row with all of them."""
    rows = [{"query": "the er", "pos": ["zq vw", "the er k"]}, {"query": "mno", "pos": ["ß é"]}]
    split = [{"query": "the er", "pos": [text]} for text in rows[0]["pos"]] + rows[1:]
    task = tiny_task(folder)
    whole, parts = (
        task.evaluate(read_rows(task, write_rows(tmp_path / "held.jsonl", some)))
        for some in ([rows[0], *rows], split)
    )
    assert parts == whole


@pytest.mark.parametrize("lora", [0, 2])
def test_the_result_keeps_a_share_of_the_start(folder, pairs, tmp_path, lora):
    """And the figures of held-out pairs are those of the result."""
    found = {}
    for keep in (0.0, 0.25, 0.5):
        options = {**FEW, "steps": 3, "keep": keep, "lora": lora, "token_table": "rows"}
        summary = train(folder, pairs, tmp_path / f"of-{keep}", evaluate=pairs, **options)
        found[keep] = load_file(tmp_path / f"of-{keep}" / "model.safetensors")
        again = train(
            tmp_path / f"of-{keep}", pairs, tmp_path / f"again-{keep}", evaluate=pairs, **FEW
        )
        assert again.before == pytest.approx(summary.after)
    start = load_file(folder / "model.safetensors")
    for name, before in start.items():
        moved = found[0.0][name] - before
        for keep in (0.25, 0.5):
            expected = before + (1 - keep) * moved
            torch.testing.assert_close(found[keep][name], expected, rtol=1e-4, atol=1e-6)
    assert (
        found[0.0]["encoder.layer.1.output.dense.weight"]
        != found[0.5]["encoder.layer.1.output.dense.weight"]
    ).any()


@pytest.mark.parametrize("reranker", [False, True])
def test_a_run_with_a_teacher_tells_how_sure_both_are(folder, pairs, tmp_path, capsys, reranker):
    for temperature in (1.0, 1000.0):
        options = {**FEW, "reranker": reranker, "teacher_temperature": temperature, "force": True}
        train(folder, pairs, tmp_path / "out", steps=1, teacher_weight=1.0, **options)
        line = next(x for x in capsys.readouterr().err.splitlines() if "mean entropy" in x)
        teacher, student = (float(part.split()[1]) for part in line.split(": ")[1].split(", "))
        assert 0 < student < np.log(3) + 1e-3
        # A teacher that is divided by much is sure of nothing.
        assert (teacher == pytest.approx(np.log(3), abs=1e-3)) == (temperature == 1000.0)


def test_a_dry_run_says_what_would_be_done(folder, pairs, tmp_path, capsys):
    arguments = [
        "train", "--model", str(folder), "--data", str(pairs), "--output", str(tmp_path / "out"),
        "--batch-size", "4", "--dry-run",
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    said = capsys.readouterr().err
    assert "9 examples of 1 files: 36 texts" in said
    assert "queries begin with 'query: ', passages with 'passage: '" in said
    assert "; 0.0% of the texts are cut\n" in said
    assert "not read" not in said
    assert "6 steps, 3 an epoch, of up to 3 examples" in said
    assert "2.0 hard negatives" in said
    assert " GB, about " in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "pairs.jsonl"]


def test_what_is_said_of_a_reranker_is_of_its_pairs(folder, tmp_path):
    """A step has so many negatives of each query, and a pair has the query in it."""
    texts = ["the er", "mno", "zq vw k mno " * 10, "k", "я ß é"]
    rows = [{"query": texts[0], "pos": [texts[1]], "neg": texts[2:]}] * 4
    data = write_rows(tmp_path / "rows.jsonl", rows)
    counts = {}
    for negatives, r_drop in ((1, 0.0), (3, 0.0), (3, 1.0)):
        task = tiny_task(folder, reranker=True, negatives=negatives, r_drop=r_drop)
        found = read_rows(task, data)
        counts[negatives, r_drop] = task.lengths(found.examples[0], found)
    query, *others = (len(task.tokenizer.encode_pieces(text)) for text in texts)
    expected = [4 + query + other for other in others]
    assert counts == {(1, 0.0): expected[:2], (3, 0.0): expected, (3, 1.0): expected * 2}
    assert expected[1] > task.model.max_length


def test_a_reranker_s_pairs_are_counted_where_they_are_cut(folder, tmp_path, capsys):
    rows = [{"query": "the er", "pos": ["the er"], "neg": ["zq vw k mno " * 10]}] * 4
    data = write_rows(tmp_path / "rows.jsonl", rows)
    train(folder, data, tmp_path / "out", reranker=True, dry_run=True, **FEW)
    assert "50.0% of the pairs are cut" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--temperature", "0"], "temperature is 0.0, expected a number above 0"),
        (["--batch-size", "0"], "batch_size is 0, expected 1 or more"),
        (["--matryoshka", "24"], "expected sizes from 1 to 23"),
        (["--dtype", "int8"], "--dtype is int8, training computes in"),
        (["--kernels", "native"], "kernels"),
        (["--reranker", "--symmetric"], "symmetric is of vectors"),
        (["--reranker", "--temperature", "0.1"], "temperature is of vectors"),
        (["--r-drop", "1"], "r_drop is of rerankers"),
        (["--guide-margin", ".1"], "guide_margin is 0.1, which does nothing: guide is not given"),
        (["--teacher-temperature", "2"], "which does nothing: teacher_weight is 0"),
        (["--lora", "2", "--token-table", "dense"], "which does nothing: lora trains updates"),
        (["--evaluate-every", "2"], "evaluate_every is 2, but there are no held-out rows"),
        (["--reranker", "--prompts", "e5"], "prompts is 'e5', but a reranker reads texts as they"),
        (["--contrastive-weight", "0"], "are both 0"),
        (["--weight-decay", "inf"], "weight_decay is inf, expected 0 or more"),
        (["--warmup", "nan"], "warmup is nan, expected 0 or more"),
    ],
)
def test_faults_are_one_line(folder, pairs, tmp_path, capsys, flags, reason):
    arguments = ["train", "--model", str(folder), "--data", str(pairs), "--output"]
    assert cli.main([*arguments, str(tmp_path / "out"), *flags]) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out.training").exists()


@pytest.mark.parametrize("restart", [False, True])
def test_a_run_of_another_process_is_left_alone(folder, pairs, tmp_path, monkeypatch, restart):
    from e5core.formats.files import lock_folder

    options = {**FEW, "steps": 6}
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            train(folder, pairs, tmp_path / "out", **options)
    state = tmp_path / "out.training"
    before = {file.name: file.read_bytes() for file in state.iterdir()}
    assert before
    with lock_folder(state) as ours:
        assert ours
        with pytest.raises(ValueError, match="another process trains in"):
            train(folder, pairs, tmp_path / "out", restart=restart, **options)
        assert {file.name: file.read_bytes() for file in state.iterdir()} == before
    train(folder, pairs, tmp_path / "out", restart=restart, **options)
    assert not state.exists()
