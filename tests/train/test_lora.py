"""Low-rank updates: nothing at the start, merged at the end, and as peft saves them."""

import pytest
import torch
from safetensors.torch import load_file
from support.training import gradients, make_rows, read_rows, tiny_task, write_rows
from torch.nn.utils import parametrize

from e5core import E5
from e5core.train import train
from e5core.train.lora import merge_low_rank
from e5core.train.state import RunFolder

FEW = {"batch_size": 4, "steps": 4, "learning_rate": 3e-3, "show_progress": False}


def test_an_update_is_nothing_at_the_start_and_alone_is_trained(folder, pairs):
    plain, task = tiny_task(folder), tiny_task(folder, lora=3)
    ids = [[0, 7, 8, 2], [0, 9, 2]]
    assert torch.equal(task.pipeline.run(ids), plain.pipeline.run(ids))
    data = read_rows(task, pairs)
    task.terms(data.batch(range(5), 0, 0, 2), data, (0, 0))["contrastive"].backward()
    moved = {name for name, gradient in gradients(task).items() if gradient.any()}
    assert moved == {
        name for name, _ in task.module.named_parameters() if name.endswith("weight.0.up")
    }
    assert len(moved) == 3 * 6


def test_merging_changes_nothing_to_rounding(folder):
    task = tiny_task(folder, lora=3)
    for name, parameter in task.module.named_parameters():
        if ".up" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = [[0, 7, 8, 2], [0, 9, 2]]
    before = task.pipeline.run(ids)
    merge_low_rank(task.encoder)
    assert not any(parametrize.is_parametrized(module) for module in task.encoder.modules())
    torch.testing.assert_close(task.pipeline.run(ids), before, rtol=1e-12, atol=1e-12)


def test_the_adapter_is_peft_s_and_the_result_its_merge(folder, pairs, tmp_path):
    train(folder, pairs, tmp_path / "out", lora=4, adapter=tmp_path / "adapter", **FEW)
    texts = ["the er", "zq vw k"]
    merged = E5.from_pretrained(tmp_path / "out").encode_query(texts)
    assert abs(merged - E5.from_pretrained(folder).encode_query(texts)).max() > 1e-4
    # e5core merges it as it is loaded; peft puts it beside transformers' linears.
    adapted = E5.from_pretrained(tmp_path / "adapter", prompts="e5").encode_query(texts)
    assert abs(adapted - merged).max() < 1e-6
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = transformers.AutoModel.from_pretrained(folder)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    ours = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in theirs.state_dict().items():
        if name in ours:
            torch.testing.assert_close(tensor, ours[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_chunks_of_a_step_train_what_one_chunk_does(folder, pairs, tmp_path, precision):
    """Each chunk is computed twice, and its weights are made of the updates only once."""
    found = {}
    for chunk_tokens in (64, 10_000):
        options = {**FEW, "batch_size": 8, "dropout": 0.0, "keep": 0.0, "precision": precision}
        output = tmp_path / str(chunk_tokens)
        train(folder, pairs, output, lora=4, chunk_tokens=chunk_tokens, **options)
        found[chunk_tokens] = load_file(output / "model.safetensors")
    start, moved = load_file(folder / "model.safetensors"), 0.0
    bound = {"float32": 2e-4, "bfloat16": 4e-3}[precision]  # AdamW follows the signs of gradients
    for name, tensor in found[64].items():
        torch.testing.assert_close(tensor, found[10_000][name], rtol=0, atol=bound)
        moved = max(moved, float((tensor - start[name]).abs().max()))
    assert moved > 2 * bound


def test_an_adapter_without_lora_is_an_error(folder, pairs, tmp_path):
    with pytest.raises(ValueError, match="adapter is a place for the updates of lora"):
        train(folder, pairs, tmp_path / "out", adapter=tmp_path / "adapter", **FEW)


def test_a_finished_run_does_not_pretend_to_write_an_adapter(folder, pairs, tmp_path):
    first, other = tmp_path / "first", tmp_path / "other"
    train(folder, pairs, tmp_path / "out", lora=2, adapter=first, **FEW)
    for adapter in (first, None):
        train(folder, pairs, tmp_path / "out", lora=2, adapter=adapter, **FEW)
    with pytest.raises(FileExistsError, match=r"is finished, .* train again with force=True"):
        train(folder, pairs, tmp_path / "out", lora=2, adapter=other, **FEW)
    train(folder, pairs, tmp_path / "out", lora=2, adapter=other, force=True, **FEW)
    assert (other / "adapter_model.safetensors").is_file()


def test_tensorboard_gets_every_step(folder, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = write_rows(tmp_path / "rows.jsonl", make_rows(6))
    board = tmp_path / "board"
    train(folder, rows, tmp_path / "out", evaluate=rows, tensorboard=board, **FEW)
    events = EventAccumulator(str(board)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert events.Scalars("learning_rate")[0].value > 0
    assert events.Scalars("evaluation/mrr")


def test_tensorboard_has_each_step_once_after_a_stop(folder, pairs, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = {**FEW, "steps": 6, "save_every": 2, "tensorboard": tmp_path / "board"}
    options |= {"evaluate": pairs, "evaluate_every": 2}
    save = RunFolder.save

    def saving(self, tensors, progress):
        if progress.step == 6:
            raise KeyboardInterrupt
        save(self, tensors, progress)

    def steps(figure):
        return [
            event.step
            for event in EventAccumulator(str(tmp_path / "board")).Reload().Scalars(figure)
        ]

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", saving)
        with pytest.raises(KeyboardInterrupt):
            train(folder, pairs, tmp_path / "out", **options)
    train(folder, pairs, tmp_path / "out", **options)
    assert steps("loss") == [1, 2, 3, 4, 5, 6]
    assert steps("evaluation/mrr") == [0, 2, 4, 6]
    train(folder, pairs, tmp_path / "out", force=True, **options)
    assert steps("loss") == [1, 2, 3, 4, 5, 6]
    assert steps("evaluation/mrr") == [0, 2, 4, 6]
