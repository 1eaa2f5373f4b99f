"""flash-attn 2 for other libraries where it is not installed: the one that torch carries.

transformers takes flash attention, and sentence-transformers unpadded input, only where the package
flash_attn is there, which has to be compiled. torch holds the same kernels behind an operator of
its own, so a folder with a package of that name lets these libraries run at their best.
"""

import importlib.util
import sys
from pathlib import Path

VERSION = "2.8.3"  # whose functions are there
SOURCE = """
import torch

__version__ = "{version}"


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                           dropout_p=0.0, softmax_scale=None, causal=False, **others):
    return torch.ops.aten._flash_attention_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, int(max_seqlen_q), int(max_seqlen_k), dropout_p,
        causal, False, scale=softmax_scale)[0]


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, **others):
    return torch.ops.aten._flash_attention_forward(
        q, k, v, None, None, q.shape[1], k.shape[1], dropout_p, causal, False,
        scale=softmax_scale)[0]


def flash_attn_with_kvcache(*arguments, **others):
    raise NotImplementedError("no encoder needs it")
"""
PADDING = """
from transformers.modeling_flash_attention_utils import _pad_input as pad_input
from transformers.modeling_flash_attention_utils import _unpad_input as unpad_input
"""


def provide_flash_attn(folder: Path) -> bool:
    """Put the stand-in on the path, before transformers is imported; False if it is not needed."""
    if importlib.util.find_spec("flash_attn") is not None:
        return False
    package, about = folder / "flash_attn", folder / f"flash_attn-{VERSION}.dist-info"
    package.mkdir(), about.mkdir()
    (package / "__init__.py").write_text(SOURCE.format(version=VERSION))
    (package / "bert_padding.py").write_text(PADDING)
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: flash-attn\nVersion: {VERSION}\n"
    )
    (about / "top_level.txt").write_text("flash_attn\n")
    (about / "RECORD").write_text("flash_attn/__init__.py,,\n")
    sys.path.insert(0, str(folder))
    return True
