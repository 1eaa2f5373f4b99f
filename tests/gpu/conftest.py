"""Everything here needs an NVIDIA GPU: `python -m pytest --gpu tests/gpu`."""

import pytest
import torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU, and --gpu")
