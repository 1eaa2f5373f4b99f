"""What tests of the kernels in C++ share."""

import pytest
from support.models import INSTRUCTION_SETS


@pytest.fixture(params=INSTRUCTION_SETS)
def native(request):
    """The name of the kernels of each instruction set that this machine has."""
    return request.param
