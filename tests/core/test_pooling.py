"""Mean and first-token pooling."""

import pytest
import torch

from e5core import cls_pool, l2_normalize, mean_pool

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
