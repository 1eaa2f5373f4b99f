"""PyTorch's fused attention over groups of texts of equal length."""

from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from e5core.kernels.plain import PlainKernels, text_lengths


class SdpaKernels(PlainKernels):
    name = "sdpa"

    def attention(self, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
        """Neighbouring texts of one length make one dense batch, so no mask is needed.

        Batches come sorted by length (see plan_batches), which makes these groups large.
        """
        lengths = text_lengths(cu_seqlens, max_seqlen)
        groups = [(length, len(list(run))) for length, run in groupby(lengths)]
        outputs = []
        for (length, texts), group in zip(
            groups, qkv.split([length * texts for length, texts in groups]), strict=True
        ):
            # [3, texts, heads, length, head_size]
            query, key, value = group.unflatten(0, (texts, length)).permute(2, 0, 3, 1, 4)
            dense = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
            outputs.append(dense.transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs)
