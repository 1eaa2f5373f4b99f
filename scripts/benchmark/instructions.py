"""Libraries held to an instruction set below the best one of the CPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

# Variables that each library reads when it is loaded, as their documentation has them: PyTorch's
# own operators, oneDNN (in PyTorch), MKL (in PyTorch and CTranslate2), CTranslate2.
SWITCHES = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "DNNL_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "CT2_FORCE_CPU_ISA": "AVX2",
    },
}
# oneDNN alone has a name for AVX2 with AVX-VNNI.
SWITCHES["avxvnni"] = SWITCHES["avx2"] | {
    "ONEDNN_MAX_CPU_ISA": "AVX2_VNNI",
    "DNNL_MAX_CPU_ISA": "AVX2_VNNI",
}


@contextmanager
def held_to(instructions: str | None) -> Iterator[None]:
    """Processes that are started within it are held to these instructions; None is no limit."""
    before = dict(os.environ)
    os.environ |= SWITCHES.get(instructions or "", {})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before
