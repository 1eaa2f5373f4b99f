"""Mean and first-token pooling, and what a folder asks for."""

import json

import pytest
import torch

from e5core import cls_pool, l2_normalize, mean_pool
from e5core.pooling import read_pooling

STATES = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0], [7.0, 7.0], [0.0, 1.0], [2.0, 0.0]])
CU_SEQLENS = torch.tensor([0, 3, 4, 6], dtype=torch.int32)


def test_mean_pool():
    expected = torch.tensor([[3.0, 5.0], [7.0, 7.0], [1.0, 0.5]])
    assert torch.equal(mean_pool(STATES, CU_SEQLENS), expected)


def test_cls_pool():
    expected = torch.tensor([[1.0, 2.0], [7.0, 7.0], [0.0, 1.0]])
    assert torch.equal(cls_pool(STATES, CU_SEQLENS), expected)


@pytest.mark.parametrize("pool", [mean_pool, cls_pool])
def test_inputs_stay_as_they_are(pool):
    before = STATES.clone()
    pool(STATES, CU_SEQLENS).mul_(2)
    assert torch.equal(STATES, before)


@pytest.mark.parametrize("pool", [mean_pool, cls_pool])
def test_a_text_without_tokens_is_named(pool):
    with pytest.raises(ValueError, match="text 1 has no tokens"):
        pool(STATES, torch.tensor([0, 3, 3, 6], dtype=torch.int32))


@pytest.mark.parametrize("pool", [mean_pool, cls_pool])
@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_sums_are_in_float32_or_wider(pool, dtype, wide):
    assert pool(STATES.to(dtype), CU_SEQLENS).dtype == wide


def test_a_mean_of_many_bfloat16_states_is_exact_to_float32():
    # 512 times 1.0: a bfloat16 sum would stop at 256.
    states = torch.ones(512, 1, dtype=torch.bfloat16)
    assert mean_pool(states, torch.tensor([0, 512], dtype=torch.int32)).item() == 1.0


@pytest.mark.parametrize("pool", [mean_pool, cls_pool])
def test_gradients_flow(pool):
    states = STATES.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pool(x, CU_SEQLENS), (states,))


def test_l2_normalize():
    unit = l2_normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    assert torch.equal(unit, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def module(kind, path=""):
    return {"idx": 0, "name": "0", "path": path, "type": f"sentence_transformers.models.{kind}"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_a_folder_says_its_pooling(tmp_path, settings, expected):
    write(tmp_path, "1_Pooling/config.json", settings)
    assert read_pooling(tmp_path) == expected


def test_a_folder_that_says_nothing_gets_the_mean(tmp_path):
    assert read_pooling(tmp_path) == "mean"


def test_modules_say_where_the_pooling_lies(tmp_path):
    modules = [module("Transformer"), module("Pooling", "5_Pooling"), module("Normalize")]
    write(tmp_path, "modules.json", modules)
    write(tmp_path, "5_Pooling/config.json", {"pooling_mode_cls_token": True})
    write(tmp_path, "1_Pooling/config.json", {"pooling_mode_mean_tokens": True})
    assert read_pooling(tmp_path) == "cls"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "max_tokens"),
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, "lasttoken"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            r"\['mean', 'cls'\]",
        ),
        ("1_Pooling/config.json", {"word_embedding_dimension": 8}, r"asks for the pooling \[\]"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_mean_tokens": True, "include_prompt": False},
            "prompt out of pooling",
        ),
        ("1_Pooling/config.json", [1], "expected an object"),
        ("modules.json", [module("Dense", "2_Dense")], "the step 'Dense'"),
        ("modules.json", {"a": 1}, "not a list of modules"),
        ("modules.json", [1], "not a list of modules"),
    ],
)
def test_what_is_not_implemented_is_refused(tmp_path, name, content, message):
    write(tmp_path, name, content)
    with pytest.raises(ValueError, match=message):
        read_pooling(tmp_path)
