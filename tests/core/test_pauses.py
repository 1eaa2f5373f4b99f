"""A forward pass that waits after each layer, and lets others compute meanwhile."""

import pytest
import torch
from support.models import INSTRUCTION_SETS, tiny_encoder

from e5core import pack
from e5core.kernels import BACKENDS, BY_NAME, why_not

CASES = [
    (name, dtype)
    for name in (*BACKENDS, *INSTRUCTION_SETS)
    for dtype in BY_NAME[name].dtypes
    if not why_not(BY_NAME[name], torch.device("cpu"), dtype)
]
IDS = [[0, 7, 8, 9, 2], [0, 20, 2], [0, *range(5, 60), 2]]


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_pauses_change_no_bit(dialect, name, dtype, first_only):
    """Whatever is computed in them, with the same weights and memory."""
    encoder = tiny_encoder(dialect).prepare_for_inference(dtype, name)
    batch, other = pack(IDS, encoder.config), pack([[0, 90, 91, 2], *IDS[::-1]], encoder.config)
    seen = []
    with torch.inference_mode():
        expected, beside = encoder(batch, first_only), encoder(other)
        found = encoder(batch, first_only, lambda: seen.append(encoder(other)))
    assert len(seen) == encoder.config.num_hidden_layers - first_only
    assert torch.equal(found, expected)
    assert all(torch.equal(states, beside) for states in seen)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_what_a_pause_raises_ends_the_pass(dialect, name, dtype):
    encoder = tiny_encoder(dialect).prepare_for_inference(dtype, name)
    batch = pack(IDS, encoder.config)

    def fail():
        raise RuntimeError("enough")

    with torch.inference_mode():
        expected = encoder(batch)
        with pytest.raises(RuntimeError, match="enough"):
            encoder(batch, False, fail)
        assert torch.equal(encoder(batch), expected)
